"""Products of matrices, of batches of them, and with something added (d2l chapter "Linear Algebra").

    mm, bmm, matmul    left @ right
    addmm, baddbmm     beta * input + alpha * (left @ right)

One op, on the CPU alone, which reads transposes and repeated matrices where they lie. Its gradients are products by the
other factor's transpose, so that it is closed under differentiation to any order. What costs less than a call of ours
does, and what has vectors in it, is left to torch.
"""

import torch

from pydl import backend
from pydl._private import alive, below_autograd, functorch_active
from pydl.aside import is_torchs
from pydl.ops import _library, _nodes
from pydl.ops._autocast import lowered
from pydl.ops._nodes import is_compiling
from pydl.ops.linear import SUPPORTED, WORTH_ASKING, lies_in_columns

__all__ = ["addmm", "baddbmm", "bmm", "matmul", "mm"]

# column_major: the columns of the result lie one after another in memory, as torch leaves some gradients.
_library.define(
    "matmul", "(Tensor left, Tensor right, Tensor? addend, float beta, float alpha, bool column_major) -> Tensor"
)


def _check(condition, message):
    if not condition:
        raise RuntimeError(f"matmul: expected {message}")


# The checks of csrc/matmul.cpp once more, for tracing, which never gets there.
@_library.fake("matmul")
def _(left, right, addend, beta, alpha, column_major):
    shapes = f"got shapes {tuple(left.shape)} and {tuple(right.shape)}"
    _check(left.dim() >= 2 and right.dim() >= 2, f"matrices of at least 2 dimensions, {shapes}")
    _check(left.shape[-1] == right.shape[-2], f"as many columns on the left as rows on the right, {shapes}")
    _check(right.dtype == left.dtype, f"right to be of the dtype of left, got {right.dtype} and {left.dtype}")
    batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    size = (*batch, left.shape[-2], right.shape[-1])
    if addend is not None:
        _check(addend.dtype == left.dtype, f"addend to be of the dtype of left, got {addend.dtype} and {left.dtype}")
        torch.broadcast_shapes(addend.shape, size)
    if column_major:
        return left.new_empty((size[1], size[0])).t()
    return left.new_empty(size)


def _is_column_major(matrix):
    return matrix.stride() == (1, matrix.shape[0])


def _layouts(left, right):
    """How torch lays out the gradients of left and right: each True for column-major, False for row-major.

    Of a stack, as the matrix that has all its rows.

    Two matrices: as each lies itself. A stack of matrices times one is a matrix times a matrix, for torch too. One that
    wants a gradient times a stack is torch's transposed product: the gradient of the stack is that of a stack of
    transposes, and that of the one is column-major unless it is a row-major matrix itself.
    """
    if left.dim() == 2:
        if right.dim() == 2:
            return _is_column_major(left), _is_column_major(right)
        if left.requires_grad:
            return left.stride() != (left.shape[1], 1), lies_in_columns(right.mT, left, None)
    elif right.dim() == 2:
        return lies_in_columns(left, right, None), _is_column_major(right)
    return False, False


def _remember(ctx, left, right, addend):
    """What the backward has to know of the shapes."""
    ctx.layouts, ctx.addend_size = _layouts(left, right), None if addend is None else addend.shape
    left_size, right_size = left.shape, right.shape
    # one product for each: nothing was broadcast
    ctx.plain = len(left_size) == len(right_size) and (len(left_size) == 2 or left_size[:-2] == right_size[:-2])
    if not ctx.plain:
        ctx.sizes, ctx.transposed = (left_size, right_size), len(left_size) == 2 and left.requires_grad


def _context(ctx, inputs, output):
    left, right, addend, ctx.beta, ctx.alpha, _ = inputs
    needs_left, needs_right = ctx.needs_input_grad[:2]
    _remember(ctx, left, right, addend)
    ctx.save_for_backward(left if needs_right else None, right if needs_left else None)


def _backward(ops, ctx, grad, needs=None):
    left, right = ctx.saved_tensors
    needs_left, needs_right, needs_addend = needs or ctx.needs_input_grad[:3]
    to_left = to_right = to_addend = None
    if ctx.plain:
        left_in_columns, right_in_columns = ctx.layouts
        if needs_left:
            to_left = ops.matmul(grad, right.mT, None, 0.0, ctx.alpha, left_in_columns)
        if needs_right:
            to_right = ops.matmul(left.mT, grad, None, 0.0, ctx.alpha, right_in_columns)
    else:
        if needs_left:
            to_left = _to_left(ops, ctx, grad, right)
        if needs_right:
            to_right = _to_right(ops, ctx, grad, left)
    if needs_addend:
        to_addend = grad if grad.shape == ctx.addend_size else grad.sum_to_size(ctx.addend_size)
        if ctx.beta != 1:
            to_addend = to_addend * ctx.beta
    return to_left, to_right, to_addend, None, None, None


def _to_left(ops, ctx, grad, right):
    """The gradient of a left that was broadcast, or whose right was."""
    (size, right_size), (in_columns, _) = ctx.sizes, ctx.layouts
    if len(right_size) == 2:  # rows of one matrix
        return ops.matmul(grad.flatten(0, -2), right.t(), None, 0.0, ctx.alpha, in_columns).view(size)
    if in_columns:
        return ops.matmul(right, grad.mT, None, 0.0, ctx.alpha, False).flatten(0, -3).sum(0).t()
    return ops.matmul(grad, right.mT, None, 0.0, ctx.alpha, False).sum_to_size(size)


def _to_right(ops, ctx, grad, left):
    """The gradient of a right that was broadcast, or whose left was."""
    (_, size), (_, in_columns) = ctx.sizes, ctx.layouts
    if len(size) == 2:
        left, grad = left.flatten(0, -2), grad.flatten(0, -2)
        return ops.matmul(left.t(), grad, None, 0.0, ctx.alpha, in_columns)
    if in_columns:
        rows = ops.matmul(grad.mT.flatten(0, -2), left, None, 0.0, ctx.alpha, True)
        return rows.unflatten(0, (*size[:-2], size[-1])).mT
    if ctx.transposed:
        return ops.matmul(grad.mT, left, None, 0.0, ctx.alpha, False).mT
    return ops.matmul(left.mT, grad, None, 0.0, ctx.alpha, False).sum_to_size(size)


_library.autograd("matmul", _context, _backward)


class _EagerMatmul(torch.autograd.Function):
    """The same in eager mode with the fewest hops: the op is called below the autograd layer of the dispatcher."""

    @staticmethod
    def forward(ctx, left, right, addend, rest):
        ctx.ops, ctx.beta, ctx.alpha = ops, beta, alpha = rest
        with below_autograd():
            output = _library.quick(ops).matmul(left, right, addend, beta, alpha, False)
        _remember(ctx, left, right, addend)
        ctx.depth = left.shape[-1]
        # what ctx.save_for_backward sets
        ctx.to_save = left if right.requires_grad else None, right if left.requires_grad else None
        return output

    @staticmethod
    def backward(ctx, grad):
        *needs, _ = ctx.needs_input_grad
        if needs[0] and needs[1] and grad.numel() * ctx.depth > WORTH_ASKING:
            needs[0], needs[1] = _library.wanted(ctx, 0), _library.wanted(ctx, 1)
        if _library.transforms_active():  # torch.func.vmap over the gradient
            return _backward(_library.transformed(ctx.ops), ctx, grad, needs)[:4]
        if torch.is_grad_enabled():
            return _backward(ctx.ops, ctx, grad, needs)[:4]
        with below_autograd():
            return _backward(_library.quick(ctx.ops), ctx, grad, needs)[:4]


_apply = _library.eager(_EagerMatmul)

WORTH_A_CALL = 2_000_000  # multiplications: below it torch's product may be over before ours has begun


def _multiplications(left, right):
    """Of left @ right; if these do not fit each other, any number: the op says so."""
    count = left.numel() * right.shape[-1]
    if right.dim() > 2:  # a batch that left has not, or has but once
        count = max(count, right.numel() * left.shape[-2])
    return count


def _served_by(left, right, addend=None, dims=0, numbers=()):
    """The ops that serve a product of tensors of ``dims`` dimensions (0: of any number), or None: it is torch's."""
    if not is_compiling() and _nodes.is_small_product(left, right, WORTH_A_CALL):
        return None
    try:
        if is_torchs(left, right, addend) or left.dim() < 2 or right.dim() < 2:
            return None
        if left.dtype not in SUPPORTED or right.layout is not torch.strided:
            return None
        if dims and not _are(dims, left, right, addend):
            return None
        if not all(isinstance(number, (int, float)) for number in numbers):
            return None
        if not (torch.compiler.is_compiling() or functorch_active()) and _multiplications(left, right) < WORTH_A_CALL:
            return None
    except AttributeError:  # no tensor: torch says so in its own words
        return None
    return backend.ops_for(left, "matmul")


def _are(dims, left, right, addend):
    """Whether torch's function takes tensors of these dimensions; where it does not, it says so itself."""
    if left.dim() != dims or right.dim() != dims or (addend is not None and addend.dim() > dims):
        return False
    return dims == 2 or left.shape[0] == right.shape[0]


def _product(ops, left, right, addend=None, beta=1.0, alpha=1.0):
    transforms = functorch_active()
    if transforms:
        ops = _library.transformed(ops)
    device_type = left.device.type
    if torch.is_autocast_enabled(device_type):
        left, right, addend = lowered(device_type, left, right, addend)
    if transforms or torch.compiler.is_compiling():
        return ops.matmul(left, right, addend, beta, alpha, False)
    if torch.is_grad_enabled():
        return _apply(alive(left), alive(right), None if addend is None else alive(addend), (ops, beta, alpha))
    with below_autograd():
        return _library.quick(ops).matmul(left, right, addend, beta, alpha, False)


def _by_torch(function, out, *args, **options):
    return function(*args, **options) if out is None else function(*args, **options, out=out)


def matmul(input, other, *, out=None):
    """``input @ other``, as :func:`torch.matmul`.

    Args:
        input: (..., M, K); float32, float64, bfloat16 or float16 on the CPU, with any strides. Sums are accumulated in
            float32 (float64 for float64), in blocks; float16 is copied to float32 and back.
        other: (..., K, N), of the same dtype; the dimensions before the last two broadcast.
        out: keyword-only: where it is given, the product is torch's, as are products with a vector, of other dtypes and
            devices, and those too small for a call of ours to pay (fewer than 2 million multiplications).

    Returns:
        (..., M, N), contiguous. The result does not depend on the number of threads.

    Raises:
        RuntimeError: shapes or dtypes that do not fit.

    >>> F.matmul(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
    tensor([[11.]])
    """
    ops = _served_by(input, other) if out is None else None
    if ops is None:
        return _by_torch(torch.matmul, out, input, other)
    if input.dim() == 3 == other.dim() and input.shape[0] != other.shape[0]:
        # a batch of one that wants a gradient is a matrix: the gradient is summed in the product, and lies as torch's
        if input.shape[0] == 1 and input.requires_grad:
            input = input.squeeze(0)
        elif other.shape[0] == 1 and other.requires_grad:
            other = other.squeeze(0)
    return _product(ops, input, other)


def mm(input, mat2, *, out=None):
    """``input @ mat2`` of two matrices, (M, K) and (K, N), as :func:`torch.mm`; served as :func:`matmul` is.

    >>> F.mm(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
    tensor([[11.]])
    """
    ops = _served_by(input, mat2, dims=2) if out is None else None
    return _by_torch(torch.mm, out, input, mat2) if ops is None else _product(ops, input, mat2)


def bmm(input, mat2, *, out=None):
    """``input @ mat2`` of two batches that do not broadcast, (B, M, K) and (B, K, N), as :func:`torch.bmm`; served as
    :func:`matmul` is.

    >>> F.bmm(torch.ones(2, 1, 3), torch.ones(2, 3, 2)).tolist()
    [[[3.0, 3.0]], [[3.0, 3.0]]]
    """
    ops = _served_by(input, mat2, dims=3) if out is None else None
    return _by_torch(torch.bmm, out, input, mat2) if ops is None else _product(ops, input, mat2)


def addmm(input, mat1, mat2, *, beta=1, alpha=1, out=None):
    """``beta * input + alpha * (mat1 @ mat2)`` of two matrices, as :func:`torch.addmm`; served as :func:`matmul` is.

    Args:
        input: broadcasts to (M, N); not read where ``beta`` is 0.
        mat1: (M, K).
        mat2: (K, N).
        beta: keyword-only: a number.
        alpha: keyword-only: a number.
        out: keyword-only: where it is given, the product is torch's.

    Returns:
        (M, N), contiguous.

    Raises:
        RuntimeError: shapes or dtypes that do not fit.

    >>> F.addmm(torch.ones(2), torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[2., 3.],
            [4., 5.]])
    """
    ops = _served_by(mat1, mat2, input, 2, (beta, alpha)) if out is None else None
    if ops is None:
        return _by_torch(torch.addmm, out, input, mat1, mat2, beta=beta, alpha=alpha)
    return _product(ops, mat1, mat2, input, float(beta), float(alpha))


def baddbmm(input, batch1, batch2, *, beta=1, alpha=1, out=None):
    """``beta * input + alpha * (batch1 @ batch2)`` of two batches, (B, M, K) and (B, K, N), as :func:`torch.baddbmm`;
    ``input`` broadcasts to (B, M, N). Otherwise as :func:`addmm`.

    >>> F.baddbmm(torch.zeros(2), torch.ones(3, 1, 2), torch.ones(3, 2, 2), alpha=0.5).shape
    torch.Size([3, 1, 2])
    """
    ops = _served_by(batch1, batch2, input, 3, (beta, alpha)) if out is None else None
    if ops is None:
        return _by_torch(torch.baddbmm, out, input, batch1, batch2, beta=beta, alpha=alpha)
    return _product(ops, batch1, batch2, input, float(beta), float(alpha))
