"""``with pydl.swapped():`` serves calls of torch's functions by ours, for code that has no module to swap."""

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from pydl import functional
from pydl.swapping.rules import RULES


def _batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled=True):
    """torch.batch_norm's own order of arguments; which library computes it is no option here."""
    return functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    """torch.layer_norm's own arguments; which library computes it is no option here."""
    return functional.layer_norm(input, normalized_shape, weight, bias, eps)


def _group_norm(input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    """torch.group_norm's own arguments; which library computes it is no option here."""
    return functional.group_norm(input, num_groups, weight, bias, eps)


def _instance_norm(input, weight, bias, mean, var, use_input_stats, momentum, eps, cudnn_enabled):
    """torch.instance_norm's own order of arguments; which library computes it is no option here."""
    return functional.instance_norm(input, mean, var, weight, bias, use_input_stats, momentum, eps)


def _dropout(input, p, train):
    return functional.dropout(input, p, train)


def _softmax(input, dim, dtype=None):
    return functional.softmax(input, dim, dtype=dtype)


def _log_softmax(input, dim, dtype=None):
    return functional.log_softmax(input, dim, dtype=dtype)


# What functions of torch's become with ``return_indices``; called by themselves, they return them whatever that says.
def _max_pool2d_with_indices(
    input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=True
):
    return functional.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)


def _max_pool1d_with_indices(
    input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=True
):
    return functional.max_pool1d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)


def _adaptive_max_pool1d_with_indices(input, output_size, return_indices=True):
    return functional.adaptive_max_pool1d(input, output_size, return_indices=True)


def _adaptive_max_pool2d_with_indices(input, output_size, return_indices=True):
    return functional.adaptive_max_pool2d(input, output_size, return_indices=True)


def _max_pool3d_with_indices(
    input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=True
):
    return functional.max_pool3d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)


def _adaptive_max_pool3d_with_indices(input, output_size, return_indices=True):
    return functional.adaptive_max_pool3d(input, output_size, return_indices=True)


def _forms(name, *torchs):
    """Torch's functions of that name by ours, in the forms that ours has; others (``out_dtype``, ``out``) are torch's.

    Args:
        name: of ours in ``pydl.functional``.
        torchs: torch's callables.

    Returns:
        A dict of these and what serves them.
    """
    ours = getattr(functional, name)
    code = ours.__code__
    count, names = code.co_argcount, frozenset(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])

    def serving(torchs):
        def served(*args, **kwargs):
            if len(args) > count or not kwargs.keys() <= names:
                return torchs(*args, **kwargs)
            return ours(*args, **kwargs)

        served.__name__ = name
        return served

    return {call: serving(call) for call in torchs}


_OURS = {call: getattr(functional, rule.name) for rule in RULES for call in rule.calls}
# those whose arguments come in another order
_OURS |= {torch.layer_norm: _layer_norm, torch.group_norm: _group_norm, torch.instance_norm: _instance_norm}
_OURS[torch.rnn_relu] = functional.rnn_relu  # RNN's other function
_OURS[torch.rnn_relu_cell] = functional.rnn_relu_cell
_OURS |= {torch.batch_norm: _batch_norm, torch.dropout: _dropout, F.max_pool2d_with_indices: _max_pool2d_with_indices}
_OURS |= {
    F.max_pool1d_with_indices: _max_pool1d_with_indices,
    F.adaptive_max_pool1d_with_indices: _adaptive_max_pool1d_with_indices,
    F.adaptive_max_pool2d_with_indices: _adaptive_max_pool2d_with_indices,
    F.max_pool3d_with_indices: _max_pool3d_with_indices,
    F.adaptive_max_pool3d_with_indices: _adaptive_max_pool3d_with_indices,
}
for _name in ("matmul", "mm", "bmm", "addmm", "baddbmm", "sigmoid", "tanh"):
    _OURS |= _forms(_name, getattr(torch, _name), getattr(torch.Tensor, _name))
_OURS[F.scaled_dot_product_attention] = functional.scaled_dot_product_attention
_OURS |= {torch.softmax: _softmax, torch.Tensor.softmax: _softmax}
_OURS |= {torch.log_softmax: _log_softmax, torch.Tensor.log_softmax: _log_softmax}
_OURS[torch.linalg.matmul] = _OURS[torch.matmul]  # X @ W is Tensor.matmul


def ours_of(function):
    """What serves a function of torch's here, or None."""
    return _OURS.get(function)


class swapped(TorchFunctionMode):
    """Serves ``torch.nn.functional``'s (and torch's own) ``cross_entropy, conv2d, max_pool2d, ...`` by pydl.

    Products of matrices are among them, however they are written: ``X @ W``, ``torch.matmul``, ``X.mm(W)``,
    ``torch.bmm``, ``torch.addmm``.

    Inside the block, in this thread, whoever calls them: a loss that is a plain function, or the modules of a model
    that was not swapped. Results are those of ``pydl.functional``; nothing is fused. The backward is ours wherever it
    runs.

    >>> model, x, target = torch.nn.Linear(20, 5), torch.randn(4, 20), torch.tensor([0, 1, 2, 3])
    >>> with pydl.swapped():
    ...     loss = torch.nn.functional.cross_entropy(model(x), target)
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return _OURS.get(function, function)(*args, **(kwargs or {}))
