"""Dropout (Srivastava et al., JMLR 2014; d2l chapter "Dropout"): zero with probability p, scale the rest by 1/(1-p).

A pure function of (input, p, seed): the mask is recomputed from the seed by a counter-based generator and never
stored, so backward is the same op on the gradient, and manual_seed, checkpointing, graph capture and torch.compile
need no code of their own.
Spatial dropout, where whole channels live or die (Tompson et al., CVPR 2015), is the same op with ``shared_dims``.
"""

import warnings

import torch
import torch.nn.functional as F

from pydl import backend
from pydl._private import alive, below_autograd, dispatch_modes
from pydl.aside import is_torchs
from pydl.ops import _library, _nodes
from pydl.ops._memory_format import product_strides, row_major
from pydl.ops._nodes import is_compiling
from pydl.ops._options import number, switch

__all__ = ["dropout", "dropout1d", "dropout2d", "dropout3d"]

# seed is a tensor on the input's device, so that a captured graph draws a new mask at each replay. shared_dims trailing
# dimensions share one decision.
_library.define(
    "dropout", "(Tensor input, float p, Tensor seed, int shared_dims=0) -> Tensor", triton="dropout.dropout"
)


@_library.fake("dropout")
def _(input, p, seed, shared_dims=0):
    return torch.empty_like(input)


def _setup_context(ctx, inputs, output):
    _, ctx.p, seed, ctx.shared_dims = inputs
    ctx.save_for_backward(seed)


def _backward(ops, ctx, grad_output):
    (seed,) = ctx.saved_tensors
    return ops.dropout(grad_output, ctx.p, seed, ctx.shared_dims), None, None, None


_library.autograd("dropout", _setup_context, _backward)


def _vmap(ops, info, in_dims, input, p, seed, shared_dims=0):
    """Each sample's mask is that of its own seed: equal for all samples when the seed is (``randomness="same"``)."""
    input_dim, seed_dim = in_dims[0], in_dims[2]
    if seed_dim is None:
        # the samples share every decision: one more trailing dimension of that kind
        output = ops.dropout(input.movedim(input_dim, -1), p, seed, shared_dims + 1)
        return output, output.dim() - 1
    seeds = seed.movedim(seed_dim, 0)
    inputs = [input] * info.batch_size if input_dim is None else input.movedim(input_dim, 0)
    return torch.stack([ops.dropout(x, p, s, shared_dims) for x, s in zip(inputs, seeds, strict=True)]), 0


_library.vmap("dropout", _vmap)


class _TransformedDropout(torch.autograd.Function):
    """The same for torch.func and forward-mode AD: linear in the input, so the tangent is dropped out alike."""

    generate_vmap_rule = True

    @staticmethod
    def forward(ops, input, p, seed, shared_dims):
        return ops.dropout(input, p, seed, shared_dims)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.ops, _, ctx.p, seed, ctx.shared_dims = inputs
        ctx.save_for_backward(seed)
        ctx.save_for_forward(seed)

    @staticmethod
    def backward(ctx, grad_output):
        (seed,) = ctx.saved_tensors
        return None, _apply(ctx.ops, grad_output, ctx.p, seed, ctx.shared_dims), None, None, None

    @staticmethod
    def jvp(ctx, _ops, tangent, _p, _seed, _shared_dims):
        (seed,) = ctx.saved_tensors
        return ctx.ops.dropout(tangent, ctx.p, seed, ctx.shared_dims)


class _EagerDropout(torch.autograd.Function):
    """The same in eager mode with the fewest hops: each op is called below the autograd layer of the dispatcher.

    The registered formula above, which torch.compile uses, costs more than a small call's kernel. With create_graph the
    backward goes through it, and so can be differentiated again.
    """

    @staticmethod
    def forward(ctx, input, rest):
        ops, p, seed, shared_dims = rest
        ctx.rest = ops, p, shared_dims
        ctx.to_save = (seed,)  # what ctx.save_for_backward sets
        ctx.factor = _factor(input, p, shared_dims)
        with below_autograd():
            return _laid_out(_library.quick(ops).dropout(input, p, seed, shared_dims), input, *ctx.factor)

    @staticmethod
    def backward(ctx, grad_output):
        ops, p, shared_dims = ctx.rest
        (seed,) = ctx.saved_tensors
        if _library.transforms_active():  # torch.func.vmap over the gradient
            return _apply(ops, grad_output, p, seed, shared_dims), None
        if torch.is_grad_enabled():
            return ops.dropout(grad_output, p, seed, shared_dims), None
        with below_autograd():
            grad_input = _library.quick(ops).dropout(grad_output, p, seed, shared_dims)
            return _laid_out(grad_input, grad_output, *ctx.factor), None


_eager = _library.eager(_EagerDropout)

_PLAIN = (torch.Tensor, torch.nn.Parameter)


# torch's dropout is a product of the input and a tensor of factors, and its strides are that product's: those of an
# input that is dense, and what torch makes of the two otherwise. Our op lays its result out as torch.empty_like does.
def _factor(input, p, shared_dims):
    """(sizes or None for the input's, strides) of torch's factors; a single 0 where everything is dropped."""
    if p == 1.0:
        return (), ()
    if not shared_dims:
        return None, input.stride()
    kept = input.dim() - shared_dims
    sizes = (*input.shape[:kept], *(1,) * shared_dims)
    return sizes, row_major(sizes)


def _laid_out(output, input, factor_sizes, factor_strides):
    """``output`` in the strides of torch's product of ``input`` and the factors."""
    sizes, strides = input.shape, input.stride()
    dense = output.stride() == strides and (factor_sizes is not None or factor_strides == strides)
    if dense and (1 not in sizes or strides == row_major(sizes)):
        return output
    factor = torch.empty_strided(sizes if factor_sizes is None else factor_sizes, factor_strides)
    if factor_sizes is None:
        factor = torch.empty_like(factor)  # never written to; on the meta device it would get other strides
    expected = product_strides(torch.empty_strided(sizes, strides, device="meta"), factor)
    return output if output.stride() == expected else output.new_empty_strided(sizes, expected).copy_(output)


def _apply(ops, input, p, seed, shared_dims):
    if _library.transforms_active():
        return _TransformedDropout.apply(ops, input, p, seed, shared_dims)
    if (
        input.requires_grad
        and type(input) in _PLAIN
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and dispatch_modes() == 0
    ):
        return _eager(alive(input), (ops, p, seed, shared_dims))
    output = ops.dropout(input, p, seed, shared_dims)
    if torch.compiler.is_compiling() or (input.requires_grad and torch.is_grad_enabled()):
        return output
    return _laid_out(output, input, *_factor(input, p, shared_dims))


_SUPPORTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def dropout(input, p=0.5, training=True, inplace=False, *, seed=None):
    """Zeroes each element of ``input`` with probability ``p`` and scales the others by ``1 / (1 - p)``.

    Args:
        input: any shape; float32, float64, bfloat16 or float16 (other dtypes are served by torch).
        p: probability of an element to be zeroed.
        training: without it the input itself is returned.
        inplace: writes the result over ``input``.
        seed: int64 tensor of one element on the input's device that determines the mask; drawn from torch's generator
            when not given. The same (shape, p, seed) gives the same mask on every device and backend of pydl.

    Returns:
        A tensor of ``input``'s shape, dtype and memory format. A dropped inf or nan is 0.

    Raises:
        ValueError: when p is not in [0, 1].
        TypeError: when input or seed is not a tensor.
        RuntimeError: when seed is not one int64 on the input's device.

    >>> F.dropout(torch.ones(6), p=0.5, seed=torch.tensor(0))
    tensor([0., 2., 2., 2., 2., 0.])
    """
    if seed is None and inplace is False and not is_compiling():
        output = _nodes.dropout(input, p, training)
        if output is not NotImplemented:
            return output
    return _ask("dropout", input, p, training, inplace, seed)


def dropout1d(input, p=0.5, training=True, inplace=False, *, seed=None):
    """Zeroes whole channels: each ``input[n, c]`` of an (N, C, L) or (C, L) input, with probability ``p``.

    Arguments, result and errors are those of :func:`dropout`; another rank than 2 or 3 is a RuntimeError, as in torch.

    >>> F.dropout1d(torch.ones(3, 4), p=0.5, seed=torch.tensor(3))  # three channels of four numbers
    tensor([[2., 2., 2., 2.],
            [0., 0., 0., 0.],
            [2., 2., 2., 2.]])
    """
    return _ask("dropout1d", input, p, training, inplace, seed)


def dropout2d(input, p=0.5, training=True, inplace=False, *, seed=None):
    """Zeroes whole channels: each ``input[n, c]`` of an (N, C, H, W) input, with probability ``p``.

    A 3-D input is read as (N, C, L), with a warning, as torch does; other ranks warn and drop ``input[n, c]`` too.
    Arguments, result and errors are those of :func:`dropout`.

    >>> F.dropout2d(torch.ones(1, 3, 2, 2), p=0.5, seed=torch.tensor(3)).sum((2, 3))
    tensor([[8., 0., 8.]])
    """
    return _ask("dropout2d", input, p, training, inplace, seed)


def dropout3d(input, p=0.5, training=True, inplace=False, *, seed=None):
    """Zeroes whole channels: each ``input[n, c]`` of an (N, C, D, H, W) or ``input[c]`` of a (C, D, H, W) input.

    Other ranks warn, as in torch, and are read as unbatched. Arguments, result and errors are those of :func:`dropout`.

    >>> F.dropout3d(torch.ones(1, 3, 2, 2, 2), p=0.5, seed=torch.tensor(3)).sum((2, 3, 4))
    tensor([[16.,  0., 16.]])
    """
    return _ask("dropout3d", input, p, training, inplace, seed)


def _ask(name, input, p, training, inplace, seed):
    if not isinstance(input, torch.Tensor):
        raise TypeError(f"{name}: expected input to be a Tensor, got {type(input).__name__}")
    if is_torchs(input) and (seed is None or not _library.transforms_active()):
        return _by_torch(name, input, p, training, inplace, seed)
    return dropout_unasked(name, input, p, training, inplace, seed)


def dropout_unasked(name, input, p, training, inplace, seed=None):
    """:func:`dropout`, or another of its ``name``, for who has asked whether it is torch's (aside.py)."""
    p = number(name, "p", p)
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{name}: expected p to be a probability in [0, 1], got {p}")
    shared_dims = 0 if name == "dropout" else _shared_dims(name, input)
    training, inplace = switch(name, "training", training), bool(inplace)
    if not training or p == 0.0 or input.numel() == 0:
        return input
    if shared_dims < 0:
        raise RuntimeError(
            f"{name}: expected input to have at least 2 dimensions (batch and channel), got shape {tuple(input.shape)}"
        )
    ops = backend.ops_for(input) if input.dtype in _SUPPORTED else None
    if ops is None:
        return _by_torch(name, input, p, training, inplace, seed)
    if seed is None:
        # torch.randint even under compile: a seed op of our own would be merged by common-subexpression elimination,
        # and two dropouts would share a mask
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=input.device)
    else:
        _check_seed(name, seed, input.device)
    output = _apply(ops, input, p, seed, shared_dims)
    return input.copy_(output) if inplace else output


def _shared_dims(name, input):
    """How many trailing dimensions share a decision; ranks that torch warns about or refuses are so here."""
    dims = input.dim()
    if name == "dropout1d":
        if dims not in (2, 3):
            raise RuntimeError(
                f"dropout1d: expected input to be 2-D (C, L) or 3-D (N, C, L), got {dims}-D of shape "
                f"{tuple(input.shape)}"
            )
        return 1
    if name == "dropout2d":
        if dims == 3:
            _warn(
                "dropout2d: expected input to be 4-D (N, C, H, W), got 3-D, which is read as (N, C, L) as torch does; "
                "dropout1d says so without this warning"
            )
        elif dims != 4:
            _warn(f"dropout2d: expected input to be 3-D or 4-D, got {dims}-D, which torch deprecates; dropout takes it")
        return dims - 2
    if dims not in (4, 5):
        _warn(f"dropout3d: expected input to be 4-D or 5-D, got {dims}-D, which torch deprecates; dropout takes it")
    return 3 if dims == 5 else dims - 1


def _warn(message):
    warnings.warn(message, UserWarning, stacklevel=6)  # to the caller of dropout2d


def _check_seed(name, seed, device):
    if not isinstance(seed, torch.Tensor):
        raise TypeError(f"{name}: expected seed to be an int64 Tensor of one element, got {type(seed).__name__}")
    if seed.dtype != torch.int64 or seed.numel() != 1:
        raise RuntimeError(
            f"{name}: expected seed to be an int64 tensor of one element, got {seed.dtype} of shape {tuple(seed.shape)}"
        )
    if seed.device != device:
        raise RuntimeError(f"{name}: expected seed to be on the input's device {device}, got one on {seed.device}")


def _by_torch(name, input, p, training, inplace, seed):
    if seed is not None:
        raise ValueError(f"{name}: expected seed to be None where torch's own kernel runs, got {seed}")
    return getattr(F, name)(input, p, training, inplace)
