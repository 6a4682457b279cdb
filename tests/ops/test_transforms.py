"""torch.func over our ops: transforms of transforms, forward mode, batched gradients, ensembles; torch in float64."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from grid import CALLS
from testing import assert_close
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import pydl.functional

# vmap runs an op without a batching rule sample by sample, and says so
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def conv_losses():
    """The same scalar of (weight, image) by our convolution and by torch's."""
    bias = torch.randn(3).double()
    return (
        lambda w, x: pydl.functional.conv2d(x, w, bias, stride=2, padding=1, activation="sigmoid").square().sum(),
        lambda w, x: torch.sigmoid(F.conv2d(x, w, bias, stride=2, padding=1)).square().sum(),
    )


TRANSFORMS = {
    "grad": lambda f: grad(f, argnums=(0, 1)),
    "grad of grad": lambda f: grad(lambda w, x: grad(f, argnums=1)(w, x).square().sum()),
    "jacobian of grad": lambda f: jacrev(grad(f)),
    "vmap of grad": lambda f: lambda w, x: vmap(lambda image: grad(f)(w, image[None]))(x),
    "grad of vmap": lambda f: grad(lambda w, x: vmap(lambda image: f(w, image[None]))(x).prod()),
    "both batched": lambda f: lambda w, x: vmap(grad(f, argnums=(0, 1)))(torch.stack([w, 2 * w]), torch.stack([x, -x])),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_conv2d_under_transforms(name):
    weight, image = torch.randn(3, 2, 3, 3).double(), torch.randn(2, 2, 5, 6).double()
    ours, theirs = conv_losses()
    actual, expected = TRANSFORMS[name](ours)(weight, image), TRANSFORMS[name](theirs)(weight, image)
    if torch.is_tensor(expected):
        expected, actual = (expected,), (actual,)
    for p, q in zip(actual, expected, strict=True):
        assert q.abs().max() > 0
        assert_close(p, q, scale=10)


def test_cross_entropy_hessian():
    logits, target = torch.randn(3, 4).double(), torch.tensor([0, 3, 1])
    for ours in (hessian, lambda f: jacrev(jacrev(f))):
        actual = ours(lambda x: pydl.functional.cross_entropy(x, target))(logits)
        assert_close(actual, hessian(lambda x: F.cross_entropy(x, target))(logits))


def statistics():
    return torch.linspace(-1, 1, 3).double(), torch.linspace(1, 2, 3).double()


CLASSES = torch.arange(2 * 5 * 6).view(2, 5, 6) % 3
GATES = [torch.linspace(-1, 1, 36).double().view(6, 6), torch.linspace(-1, 1, 12).double().view(6, 2)]


def gated(f, x):
    options = False, 1, 0.0, False, False, False
    x = x.flatten(1, 2)
    return (torch if f is F else f).gru(x, torch.zeros(1, x.shape[1], 2).double(), GATES, *options)[0]


# each op on an input (2, 3, 5, 6), by torch.nn.functional or ours
OPS = CALLS | {
    "conv2d": lambda f, x: f.conv2d(x, torch.linspace(-1, 1, 108).double().view(4, 3, 3, 3), padding=1),
    "conv_transpose2d": lambda f, x: f.conv_transpose2d(
        x, torch.linspace(-1, 1, 54).double().view(3, 2, 3, 3), stride=2
    ),
    "conv1d": lambda f, x: f.conv1d(x.flatten(2), torch.linspace(-1, 1, 36).double().view(4, 3, 3), padding=1),
    "conv_transpose1d": lambda f, x: f.conv_transpose1d(
        x.flatten(2), torch.linspace(-1, 1, 18).double().view(3, 2, 3), stride=2
    ),
    "linear": lambda f, x: f.linear(x, torch.linspace(-1, 1, 24).double().view(4, 6), torch.ones(4).double()),
    "matmul": lambda f, x: (torch if f is F else f).matmul(x, torch.linspace(-1, 1, 24).double().view(6, 4)),
    "gru": gated,
    "layer_norm": lambda f, x: f.layer_norm(x, (5, 6), torch.linspace(-1, 1, 30).double().view(5, 6)),
    "rms_norm": lambda f, x: f.rms_norm(x, (6,), torch.linspace(-1, 1, 6).double()),
    "group_norm": lambda f, x: f.group_norm(x, 3, torch.linspace(-1, 1, 3).double()),
    "instance_norm": lambda f, x: f.instance_norm(x),
    "mse_loss": lambda f, x: f.mse_loss(x, torch.linspace(-1, 1, 180).double().view(2, 3, 5, 6)),
    "huber_loss per number": lambda f, x: f.huber_loss(x, torch.ones(2, 3, 5, 6).double(), reduction="none"),
    "binary_cross_entropy_with_logits": lambda f, x: f.binary_cross_entropy_with_logits(
        x, torch.linspace(0, 1, 180).double().view(2, 3, 5, 6), pos_weight=torch.linspace(1, 2, 6).double()
    ),
    "batch_norm in training": lambda f, x: f.batch_norm(x, *statistics(), training=True),
    "batch_norm": lambda f, x: f.batch_norm(x, *statistics(), torch.ones(3).double(), torch.ones(3).double()),
    "max_pool2d": lambda f, x: f.max_pool2d(x, 2),
    "avg_pool2d": lambda f, x: f.avg_pool2d(x, 2, padding=1),
    "adaptive_max_pool2d": lambda f, x: f.adaptive_max_pool2d(x, (5, 3)),
    "adaptive_avg_pool2d": lambda f, x: f.adaptive_avg_pool2d(x, 1),
    "max_pool1d": lambda f, x: f.max_pool1d(x.flatten(2), 2),
    "avg_pool1d": lambda f, x: f.avg_pool1d(x.flatten(2), 2, padding=1),
    "conv3d": lambda f, x: f.conv3d(
        x.unflatten(3, (3, 2)), torch.linspace(-1, 1, 108).double().view(2, 3, 3, 3, 2), padding=1
    ),
    "max_pool3d": lambda f, x: f.max_pool3d(x.unflatten(3, (3, 2)), 2, padding=1),
    "avg_pool3d": lambda f, x: f.avg_pool3d(x.unflatten(3, (3, 2)), 2, padding=1),
    "adaptive_avg_pool3d": lambda f, x: f.adaptive_avg_pool3d(x.unflatten(3, (3, 2)), 1),
    "adaptive_max_pool3d": lambda f, x: f.adaptive_max_pool3d(x.unflatten(3, (3, 2)), (5, 1, 2)),
    "cross_entropy": lambda f, x: f.cross_entropy(x, CLASSES, label_smoothing=0.1),
    "cross_entropy per row": lambda f, x: f.cross_entropy(x, CLASSES, reduction="none"),
    "cross_entropy of probabilities": lambda f, x: f.cross_entropy(x, torch.ones(2, 3, 5, 6).double() / 3),
}
if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # from torch 2.13 on
    LAYER = torch.linspace(-1, 1, 24).double().view(4, 6)
    OPS["linear_cross_entropy"] = lambda f, x: f.linear_cross_entropy(x[:, 0, 0], LAYER, CLASSES[:, 0, 1])
    OPS["linear_cross_entropy per row"] = lambda f, x: f.linear_cross_entropy(
        x[:, 0, 0], LAYER, CLASSES[:, 0, 1], reduction="none", label_smoothing=0.1
    )


@pytest.mark.parametrize("name", OPS)
def test_forward_mode(name):
    """torch.func.jvp, jacfwd and dual numbers give torch's tangents: the ops step aside."""
    x, tangent = torch.randn(2, 2, 3, 5, 6).double()
    ours, theirs = (lambda x, f=f: OPS[name](f, x) for f in (pydl.functional, F))
    for actual, expected in zip(
        torch.func.jvp(ours, (x,), (tangent,)), torch.func.jvp(theirs, (x,), (tangent,)), strict=True
    ):
        assert expected.abs().max() > 0
        assert_close(actual, expected)
    assert_close(jacfwd(ours)(x), jacfwd(theirs)(x))
    with forward_ad.dual_level():
        duals = [forward_ad.unpack_dual(f(forward_ad.make_dual(x, tangent))).tangent for f in (ours, theirs)]
    assert_close(*duals)


@pytest.mark.parametrize("name", OPS)
def test_hessian(name):
    x = torch.randn(2, 3, 5, 6).double()
    ours, theirs = (lambda x, f=f: OPS[name](f, x).square().sum() for f in (pydl.functional, F))
    assert_close(hessian(ours)(x), hessian(theirs)(x), scale=100)


@pytest.mark.parametrize("name", [*OPS, "dropout"])
def test_batched_gradients(name):
    """``is_grads_batched``: a vmap over the gradients, inside the backward pass."""
    seed = torch.tensor([5])
    op = OPS.get(name) or (lambda f, x: pydl.functional.dropout(x, 0.5, seed=seed))
    x = torch.randn(2, 3, 5, 6).double().requires_grad_()
    output = op(pydl.functional, x)
    grads = torch.randn(3, *output.shape).double()
    (actual,) = torch.autograd.grad(output, x, grads, is_grads_batched=True, retain_graph=True)
    by_vmap = vmap(lambda g: torch.autograd.grad(output, x, g, retain_graph=True)[0])(grads)
    reference = op(F, x) if name in OPS else output  # dropout is ours alone: one gradient at a time
    expected = torch.stack([torch.autograd.grad(reference, x, g, retain_graph=True)[0] for g in grads])
    assert_close(actual, expected, scale=10)
    assert_close(by_vmap, expected, scale=10)


def test_batched_gradients_of_parameters():
    x = torch.randn(2, 3, 5, 6).double()
    parameters = [torch.randn(s).double().requires_grad_() for s in ((4, 3, 3, 3), (4,), (4,), (4,))]
    w, b, scale, shift = parameters
    ours, theirs = (
        f.batch_norm(f.conv2d(x, w, b), None, None, scale, shift, training=True) for f in (pydl.functional, F)
    )
    grads = torch.randn(3, *ours.shape).double()
    actual = torch.autograd.grad(ours, parameters, grads, is_grads_batched=True)
    expected = torch.autograd.grad(theirs, parameters, grads, is_grads_batched=True)
    for p, q in zip(actual, expected, strict=True):
        assert_close(p, q, scale=100)


def ensemble(f, batched):
    """Three models' batch norms in training by one vmap; returns results and running statistics."""
    x = torch.linspace(-1, 2, 2 * 3 * 5 * 6).double().view(2, 3, 5, 6).sin()
    weights = torch.linspace(1, 2, 9).double().view(3, 3)
    mean, var = torch.zeros(3, 3).double(), torch.ones(3, 3).double()

    def one(x, w, mean, var):
        return f.batch_norm(x, mean, var, w, w, training=True, momentum=0.3)

    inputs = torch.stack([x, 2 * x, x + 1]) if batched else x
    output = vmap(one, in_dims=(0 if batched else None, 0, 0, 0))(inputs, weights, mean, var)
    return output, mean, var


@pytest.mark.parametrize("batched", [True, False])
def test_ensemble_of_batch_norms_in_training(batched):
    for actual, expected in zip(ensemble(pydl.functional, batched), ensemble(F, batched), strict=True):
        assert_close(actual, expected)


def test_ensemble_with_shared_statistics_is_refused_as_by_torch():
    x = torch.randn(3, 2, 3).double()
    for f in (pydl.functional, F):
        mean, var = torch.zeros(3).double(), torch.ones(3).double()
        with pytest.raises(RuntimeError, match=r"running_mean|in place|inplace"):
            vmap(lambda x, f=f, m=mean, v=var: f.batch_norm(x, m, v, training=True))(x)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("target_dim", [0, None])
def test_vmap_of_cross_entropy(reduction, target_dim):
    x, target = torch.randn(3, 4, 5).double(), torch.tensor([[0, 1, 2, 3], [4, -100, 1, 2], [3, 3, 3, 0]])
    target = target if target_dim == 0 else target[1]
    ours, theirs = (
        vmap(lambda x, t, f=f: f.cross_entropy(x, t, reduction=reduction), in_dims=(0, target_dim))(x, target)
        for f in (pydl.functional, F)
    )
    assert_close(ours, theirs)


def _from_before(name, ours):
    """A function of one tensor by ours or by torch's, and its input."""
    f = pydl.functional if ours else F
    weight, target = torch.randn(4, 3, 3, 3).double(), torch.tensor([1, 2])
    image = torch.randn(2, 3, 6, 6).double()
    if name == "convolution and batch norm":
        layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).double()
        return pydl.swap(layers) if ours else layers, image
    if name in CALLS:
        return lambda x: CALLS[name](f, x), image
    return {
        "conv2d": (lambda x: f.conv2d(x, weight), image),
        "conv_transpose2d": (lambda x: f.conv_transpose2d(x, weight.view(3, 4, 3, 3)), image),
        "linear": (lambda x: f.linear(x, weight.view(18, 6)), image),
        "gru": (lambda x: gated(f, x), image),
        "layer_norm": (lambda x: f.layer_norm(x, (6,)), image),
        "rms_norm": (lambda x: f.rms_norm(x, (6, 6)), image),
        "batch_norm": (lambda x: f.batch_norm(x, None, None, training=True), image),
        "max_pool2d": (lambda x: f.max_pool2d(x, 2), image),
        "avg_pool2d": (lambda x: f.avg_pool2d(x, 2), image),
        "cross_entropy": (lambda x: f.cross_entropy(x.mean((2, 3)), target), image),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        *("conv2d", "linear", "layer_norm", "rms_norm", "batch_norm", "max_pool2d", "avg_pool2d", "cross_entropy"),
        *("convolution and batch norm", "conv_transpose2d", "gru", *CALLS),
    ],
)
def test_a_tangent_given_to_a_graph_from_before_is_carried_or_refused(name):
    found = []
    for ours in (True, False):
        torch.manual_seed(0)
        function, x = _from_before(name, ours)
        x.requires_grad_()
        y = function(x)
        tangent = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
        try:
            with forward_ad.dual_level():
                (gradient,) = torch.autograd.grad(y, x, forward_ad.make_dual(torch.ones_like(y), tangent))
                found.append(forward_ad.unpack_dual(gradient).tangent)
        except NotImplementedError as error:
            found.append(str(error))
    if isinstance(found[0], torch.Tensor):
        assert_close(found[0], found[1])
    else:
        assert "expected gradients in reverse mode, got a forward-mode tangent" in found[0]
    assert isinstance(found[1], torch.Tensor) or "does not support it" in found[1]  # silu's: torch refuses it too
