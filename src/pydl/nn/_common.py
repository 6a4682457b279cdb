"""What our layers share."""


class _Eager:
    """What our classes share: TorchScript, which would fix shapes and switches of our ops, is refused in words."""

    def __prepare_scriptable__(self):
        # torch.jit.script asks every submodule for a scriptable stand-in before it compiles anything
        raise no_torchscript(f"pydl.nn.{type(self).__name__}")


def weight_and_bias(module):
    """``module.weight, module.bias``, taken from where a Module keeps them.

    Python looks there last, by ``Module.__getattr__``, which takes 0.8 µs for each before Python 3.12.
    """
    attributes = module.__dict__
    parameters = attributes["_parameters"]
    if "weight" in parameters and "bias" in parameters and "weight" not in attributes and "bias" not in attributes:
        return parameters["weight"], parameters["bias"]
    return module.weight, module.bias  # something else stands in their place: in replicas, after pruning


def running_statistics(module):
    """``module.running_mean, module.running_var`` likewise."""
    attributes = module.__dict__
    buffers = attributes["_buffers"]
    names = "running_mean" in buffers and "running_var" in buffers
    if names and "running_mean" not in attributes and "running_var" not in attributes:
        return buffers["running_mean"], buffers["running_var"]
    return module.running_mean, module.running_var


def no_torchscript(layer):
    """The error with which a layer refuses torch.jit.script."""
    return RuntimeError(
        f"TorchScript: expected every layer to be torch's own, got {layer}; torch.compile, torch.export, "
        "torch.onnx.export and torch.jit.trace take it, and torch.jit.script takes swapped models after pydl.unswap"
    )
