"""torch.func over our ops: transforms of transforms, against torch in float64; forward mode is refused in words."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
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
    actual = hessian_of(lambda x: pydl.functional.cross_entropy(x, target), logits)
    assert_close(actual, hessian(lambda x: F.cross_entropy(x, target))(logits))


def hessian_of(f, x):
    """Reverse over reverse: torch.func.hessian itself is forward over reverse, which our ops refuse."""
    return jacrev(jacrev(f))(x)


@pytest.mark.parametrize("transform", [jacfwd, hessian])
def test_forward_mode_is_refused_in_words(transform):
    weight, image = torch.randn(3, 2, 3, 3).double(), torch.randn(2, 2, 5, 6).double()
    with pytest.raises(NotImplementedError, match=r"conv2d.*: expected gradients in reverse mode, got a forward-mode"):
        transform(conv_losses()[0])(weight, image)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(image, image)
        with pytest.raises(NotImplementedError, match=r"conv2d.*: expected gradients in reverse mode"):
            pydl.functional.conv2d(dual, weight)
