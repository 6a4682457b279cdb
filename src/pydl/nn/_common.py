"""What our layers share."""


class _Eager:
    """What our classes share: TorchScript, which would fix shapes and switches of our ops, is refused in words."""

    def __prepare_scriptable__(self):
        # torch.jit.script asks every submodule for a scriptable stand-in before it compiles anything
        raise no_torchscript(f"pydl.nn.{type(self).__name__}")


def no_torchscript(layer):
    """The error with which a layer refuses torch.jit.script."""
    return RuntimeError(
        f"TorchScript: expected every layer to be torch's own, got {layer}; torch.compile, torch.export, "
        "torch.onnx.export and torch.jit.trace take it, and torch.jit.script takes swapped models after pydl.unswap"
    )
