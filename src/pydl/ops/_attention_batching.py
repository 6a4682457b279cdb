"""Rules of torch.func.vmap for attention: samples of vmap are samples of one call."""

import torch

from pydl.ops import _attention_schema, _library  # noqa: F401  (the former defines the ops)


def _folded(tensor, dim, size, batch):
    """(size, batch, ...) as (size * batch, ...), of a tensor whose first dimension, ``batch``, may be 1."""
    if tensor is None:
        return None
    tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.expand(size, batch, *tensor.shape[2:]).flatten(0, 1)


def _one_by_one(op, info, in_dims, args):
    """Where dropout counts the elements of each sample from 0, or a sample's mask has a gradient of its own."""
    calls = [
        op(*(arg if dim is None else arg.select(dim, i) for arg, dim in zip(args, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    return tuple(map(torch.stack, zip(*calls, strict=True))), (0,) * len(calls[0])


def _rule(name, tensors):
    """The rule of an op whose first arguments are so many tensors, seed the last of them."""

    def rule(ops, info, in_dims, *args):
        op, size = getattr(ops, name), info.batch_size
        if args[tensors - 1] is not None:
            return _one_by_one(op, info, in_dims, args)
        query, dim = (args[0], in_dims[0])  # or the gradient of the output, of as many samples
        batch = query.shape[0] if dim is None else query.movedim(dim, 0).shape[1]
        folded = (_folded(t, d, size, batch) for t, d in zip(args[:tensors], in_dims, strict=False))
        found = op(*folded, *args[tensors:])
        # a gradient that is not needed is empty, and of no sample
        made = [t.dim() > 1 for t in found]
        outputs = (t.unflatten(0, (size, batch)) if m else t for t, m in zip(found, made, strict=True))
        return tuple(outputs), tuple(0 if m else None for m in made)

    _library.vmap(name, rule)


def _mask_rule(ops, info, in_dims, *args):
    found, dims = _one_by_one(lambda *each: (ops.attention_backward_mask(*each),), info, in_dims, args)
    return found[0], dims[0]


_library.vmap("attention_backward_mask", _mask_rule)
_rule("attention_forward", 6)
_rule("attention_backward", 9)
