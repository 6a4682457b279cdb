"""Options in every form: what torch takes gives torch's shape, what it refuses is refused with its exception type."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from grid import CALLS as OF_ONE_TENSOR
from grid import ROWS

import pydl
import pydl.functional as PF
from pydl._torch_range import release

OLD_TORCH = release(torch.__version__) < (2, 12)

NUMBERS = [1, 0, 2, -1, np.int64(1), np.int32(1), True, 1.0, 0.5, np.float32(1), np.float64(0.5), torch.tensor(1)]
# no numpy arrays of no dimensions: torch takes them for one integer and refuses them for the next
NUMBERS += [torch.tensor(0.5), torch.tensor([0.5])]
SEQUENCES = [(1,), [1], (1, 1), [1, 2], torch.Size([1, 1]), (np.int64(1), 1), [torch.tensor(1)] * 2, np.array([1, 1])]
SEQUENCES += [torch.tensor([1, 1]), [1.0, 1], (1, 1, 1), (), [], range(1, 2), {1}]
OTHERS = [None, False, np.bool_(True), "1", "same", "valid", "mean", "none", "sum", "elementwise_mean"]
FORMS = [*NUMBERS, *SEQUENCES, *OTHERS]

# the same in every run: an eps of -1 makes of some numbers the inverse of almost nothing
RANDOM = torch.Generator().manual_seed(0)
IMAGE, WEIGHT = torch.randn(1, 2, 6, 6, generator=RANDOM), torch.randn(2, 2, 3, 3, generator=RANDOM)
VOLUME = torch.randn(1, 2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
LOGITS, TARGET = torch.randn(4, 3, generator=RANDOM), torch.tensor([0, 1, 2, 0])
STEPS, STATE, GATES = torch.randn(4, 3, 2), torch.zeros(1, 3, 3), [torch.ones(9, 2), torch.eye(9, 3), *torch.ones(2, 9)]
GRU = {"has_biases": True, "num_layers": 1, "dropout": 0.0, "train": True, "bidirectional": False, "batch_first": False}
GRU_CELL = {"hx": LOGITS, "w_ih": GATES[1], "w_hh": GATES[1]}
STATISTICS = {"running_mean": torch.zeros(2), "running_var": torch.ones(2)}
CALLS = {
    "conv2d": (("stride", "padding", "dilation", "groups"), lambda f, o: f.conv2d(IMAGE, WEIGHT, **o)),
    "conv_transpose2d": (
        ("stride", "padding", "output_padding", "groups", "dilation"),
        lambda f, o: f.conv_transpose2d(IMAGE, WEIGHT, **o),
    ),
    "max_pool2d": (
        ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
        lambda f, o: f.max_pool2d(IMAGE, **{"kernel_size": 2, **o}),
    ),
    "conv1d": (("stride", "padding", "dilation", "groups"), lambda f, o: f.conv1d(IMAGE[:, :, 0], WEIGHT[..., 0], **o)),
    "conv_transpose1d": (
        ("stride", "padding", "output_padding", "groups", "dilation"),
        lambda f, o: f.conv_transpose1d(IMAGE[:, :, 0], WEIGHT[..., 0], **o),
    ),
    "max_pool1d": (
        ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
        lambda f, o: f.max_pool1d(IMAGE[0], **{"kernel_size": 2, **o}),
    ),
    "avg_pool1d": (
        ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
        lambda f, o: f.avg_pool1d(IMAGE[0], **{"kernel_size": 2, **o}),
    ),
    "adaptive_avg_pool2d": (("output_size",), lambda f, o: f.adaptive_avg_pool2d(IMAGE, **o)),
    "adaptive_avg_pool1d": (("output_size",), lambda f, o: f.adaptive_avg_pool1d(IMAGE[0], **o)),
    "adaptive_max_pool1d": (
        ("output_size", "return_indices"),
        lambda f, o: f.adaptive_max_pool1d(IMAGE[0], **{"output_size": 2, **o}),
    ),
    "adaptive_max_pool2d": (
        ("output_size", "return_indices"),
        lambda f, o: f.adaptive_max_pool2d(IMAGE, **{"output_size": 2, **o}),
    ),
    "avg_pool2d": (
        ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
        lambda f, o: f.avg_pool2d(IMAGE, **{"kernel_size": 2, **o}),
    ),
    "conv3d": (
        ("stride", "padding", "dilation", "groups"),
        lambda f, o: f.conv3d(VOLUME, WEIGHT[:, :, None], **o),
    ),
    "max_pool3d": (
        ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
        lambda f, o: f.max_pool3d(VOLUME, **{"kernel_size": 2, **o}),
    ),
    "avg_pool3d": (
        ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
        lambda f, o: f.avg_pool3d(VOLUME, **{"kernel_size": 2, **o}),
    ),
    "adaptive_avg_pool3d": (("output_size",), lambda f, o: f.adaptive_avg_pool3d(VOLUME, **o)),
    "adaptive_max_pool3d": (
        ("output_size", "return_indices"),
        lambda f, o: f.adaptive_max_pool3d(VOLUME, **{"output_size": 2, **o}),
    ),
    "batch_norm": (
        ("training", "momentum", "eps"),
        lambda f, o: f.batch_norm(IMAGE, *(t.clone() for t in STATISTICS.values()), **{"training": True, **o}),
    ),
    "batch_norm in evaluation": (
        ("momentum", "eps"),
        lambda f, o: f.batch_norm(IMAGE, *(t.clone() for t in STATISTICS.values()), **o),
    ),
    "dropout": (("p", "training"), lambda f, o: f.dropout(LOGITS.clone(), **o)),
    "dropout1d": (("p", "training"), lambda f, o: f.dropout1d(LOGITS.clone(), **o)),
    "dropout2d": (("p", "training"), lambda f, o: f.dropout2d(IMAGE.clone(), **o)),
    "linear": (("weight", "bias"), lambda f, o: f.linear(LOGITS, **{"weight": torch.ones(2, 3), **o})),
    "layer_norm": (
        ("normalized_shape", "weight", "bias", "eps"),
        lambda f, o: f.layer_norm(LOGITS, **{"normalized_shape": (3,), **o}),
    ),
    "group_norm": (("weight", "bias", "eps"), lambda f, o: f.group_norm(IMAGE, 3, **o)),
    "instance_norm": (("weight", "bias", "momentum", "eps"), lambda f, o: f.instance_norm(IMAGE, **o)),
    "rms_norm": (
        ("normalized_shape", "weight", "eps"),
        lambda f, o: f.rms_norm(LOGITS, **{"normalized_shape": (3,), **o}),
    ),
    "mse_loss": (("size_average", "reduce", "reduction", "weight"), lambda f, o: f.mse_loss(LOGITS, LOGITS + 1, **o)),
    "l1_loss": (("reduction", "weight"), lambda f, o: f.l1_loss(LOGITS, LOGITS + 1, **o)),
    "smooth_l1_loss": (("reduction", "beta"), lambda f, o: f.smooth_l1_loss(LOGITS, LOGITS + 1, **o)),
    "huber_loss": (("reduction", "delta", "weight"), lambda f, o: f.huber_loss(LOGITS, LOGITS + 1, **o)),
    "binary_cross_entropy_with_logits": (
        ("weight", "size_average", "reduce", "reduction", "pos_weight"),
        lambda f, o: f.binary_cross_entropy_with_logits(LOGITS, LOGITS.sigmoid(), **o),
    ),
    "scaled_dot_product_attention": (
        ("attn_mask", "is_causal", "scale", "enable_gqa"),  # masks of dropout differ
        lambda f, o: f.scaled_dot_product_attention(IMAGE, IMAGE, IMAGE, **o),
    ),
    "gru": (
        ("has_biases", "num_layers", "dropout", "train", "bidirectional", "batch_first"),
        lambda f, o: (torch if f is F else f).gru(STEPS, STATE, GATES, **(GRU | o)),
    ),
    "gru_cell": (
        ("hx", "b_ih"),
        lambda f, o: (torch if f is F else f).gru_cell(
            LOGITS, **{"hx": LOGITS, "w_ih": GATES[1], "w_hh": GATES[1], **o}
        ),
    ),
    "cross_entropy": (
        ("target", "weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing"),
        lambda f, o: f.cross_entropy(LOGITS, **{"target": TARGET, **o}),
    ),
}
CALLS |= {
    name: (ROWS[name].options, lambda f, o, call=call: call(f, LOGITS.clone(), **o))
    for name, call in OF_ONE_TENSOR.items()
    if ROWS[name].options
}
if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # from torch 2.13 on
    CALLS["linear_cross_entropy"] = (
        ("weight", "reduction", "ignore_index", "label_smoothing"),
        lambda f, o: f.linear_cross_entropy(LOGITS, **{"linear_weight": torch.eye(3), "target": TARGET, **o}),
    )


def outcome(call, library, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            output = call(library, options)
        except Exception as error:
            return type(error)
    return [t for t in output] if isinstance(output, tuple) else output


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{type(form).__name__} {form}")
@pytest.mark.parametrize("op", CALLS)
def test_form_beside_torch(op, form):
    names, call = CALLS[op]
    for name in names:
        expected, actual = (outcome(call, f, {name: form}) for f in (F, PF))
        if OLD_TORCH and (op, name) == ("batch_norm in evaluation", "eps") and type(form) in (int, bool) and not form:
            # an eps of 0, which torch 2.11 refuses and newer ones take; pydl takes it beside any
            assert expected is ValueError
            expected = IMAGE
        if isinstance(expected, type):
            # where torch compares an array of several numbers before it asks for one, the error is the comparison's
            several = isinstance(form, np.ndarray) or (isinstance(form, torch.Tensor) and form.numel() > 1)
            assert isinstance(actual, type) if several else actual is expected, name
        elif op.startswith("dropout"):
            assert actual.shape == expected.shape, name
        else:
            torch.testing.assert_close(actual, expected, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


def test_backend_is_in_force_at_once():
    before = pydl.backend.current()
    with pytest.raises(ValueError, match="backend: expected the name to be one of torch, cpu, cuda, triton, got 'foo'"):
        pydl.backend.use("foo")
    assert pydl.backend.current() == before
    asked = pydl.backend.use("torch")
    try:
        assert pydl.backend.current() == "torch"
        with pydl.backend.use("cpu"):
            assert pydl.backend.current() == "cpu"
            with pytest.raises(RuntimeError, match="inside"), pydl.backend.use("torch"):
                raise RuntimeError("inside")
            assert pydl.backend.current() == "cpu"
        assert pydl.backend.current() == "torch"
    finally:
        asked.__exit__(None, None, None)
    assert pydl.backend.current() == before


def test_backend_and_isa_as_decorators():
    before, isa, lowest = pydl.backend.current(), pydl.backend.current_isa(), pydl.backend.isas()[0]

    @pydl.backend.use("torch")
    @pydl.backend.isa(lowest)
    def inside(depth):
        return (pydl.backend.current(), pydl.backend.current_isa()) if depth == 0 else inside(depth - 1)

    assert (pydl.backend.current(), pydl.backend.current_isa()) == (before, isa)
    for _ in range(2):
        assert inside(2) == ("torch", lowest)
        assert (pydl.backend.current(), pydl.backend.current_isa()) == (before, isa)


def test_isa_is_in_force_at_once():
    before, lowest = pydl.backend.current_isa(), pydl.backend.isas()[0]
    with pytest.raises(ValueError, match="isa: expected the instruction set to be one of"):
        pydl.backend.isa("sse9")
    asked = pydl.backend.isa(lowest)
    assert pydl.backend.current_isa() == lowest
    with asked:
        assert pydl.backend.current_isa() == lowest
    assert pydl.backend.current_isa() == before
