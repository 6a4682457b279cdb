"""swap, unswap and freeze: what is done to all layers of a model."""

import warnings

import torch

from pydl import optim
from pydl.swapping.bind import bind, unbind
from pydl.swapping.bound import is_bound
from pydl.swapping.container import FusedForward, could_fuse
from pydl.swapping.layer import is_swapped, why_left


def swap(module, fuse=True):
    """Puts pydl's kernels under the layers of ``module`` that they serve, in place.

    Types, parameters, ``state_dict`` keys, hooks and ``repr`` stay; copies, checkpoints, lazy layers and DataParallel
    replicas work. Layers that are left alone are named, with the reason, by :func:`report`. A second call changes
    nothing but to serve layers that were added or changed since.

    An optimizer of torch's becomes one of :mod:`pydl.optim`, with its state.

    Args:
        module: a ``torch.nn.Module``: a model, one layer, or a loss; or a ``torch.optim.Optimizer``.
        fuse: also computes chains of layers, such as batch norm and ReLU, by one kernel, between the neighbours of a
            ``Sequential``. A layer that is called by itself, or that has hooks, still gives its own output.

    Returns:
        The same ``module``.

    Raises:
        TypeError: when it is no module, or one compiled by TorchScript.

    >>> net = pydl.swap(torch.nn.Sequential(torch.nn.Linear(20, 5), torch.nn.ReLU()))
    >>> net(torch.randn(4, 20)).shape
    torch.Size([4, 5])
    """
    if isinstance(module, torch.optim.Optimizer):
        return optim.swap(module)
    _check("swap", module)
    for layer in module.modules():
        if not is_swapped(layer) and why_left(layer) is None:
            bind(layer)
    for container in module.modules():
        if not fuse:
            if is_bound(container, FusedForward):
                unbind(container)
        elif could_fuse(container) and not is_bound(container) and "forward" not in container.__dict__:
            bind(container)
        if is_bound(container, FusedForward):
            container.forward.plan(container)
    return module


def unswap(module):
    """Undoes :func:`swap` completely, in place: no attribute is left behind. Returns the same ``module``.

    >>> net = pydl.unswap(pydl.swap(torch.nn.Linear(20, 5)))
    >>> type(net)
    <class 'torch.nn.modules.linear.Linear'>
    """
    if isinstance(module, torch.optim.Optimizer):
        return optim.unswap(module)
    _check("unswap", module)
    for layer in module.modules():
        unbind(layer)
    return module


def freeze(module):
    """Prepares a swapped model for prediction: each batch norm is folded into the convolution before it, once.

    The model is put into evaluation mode. What is folded is kept beside the model, not in its ``state_dict``, and is
    used in evaluation without gradients, as long as the parameters and running statistics are the same tensors and have
    not been written to (``tensor.data`` writes past that check: freeze again after it; and freeze copies of the model
    again). ``train()`` goes on as ever. Tensors that were made under ``torch.inference_mode`` do not note that they are
    written to: what they are part of is not folded, with a warning.

    Args:
        module: a ``torch.nn.Module`` that :func:`swap` has been called on; it is swapped if not.

    Returns:
        The same ``module``.

    Raises:
        TypeError: when it is no module, or one compiled by TorchScript.

    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    >>> pydl.freeze(net).training
    False
    """
    _check("freeze", module)
    swap(module).eval()
    for name, container in module.named_modules():
        for chain in container.forward.plan(container).chains if is_bound(container, FusedForward) else ():
            chain.freeze()
            if chain.not_frozen:
                layers = " and ".join(f"{name}.{link}" if name else link for link in chain.names[:2])
                warnings.warn(f"freeze: {layers} are not folded: {chain.not_frozen}", stacklevel=2)
    return module


def _check(name, module):
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"{name}: expected module to be a torch.nn.Module, got {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(f"{name}: expected module to be an ordinary torch.nn.Module, got one compiled by TorchScript")
