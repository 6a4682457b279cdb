"""Where a run happens: which backend, on which device."""

import torch

from pydl import backend
from pydl.errors import OptionError
from pydl.training.processes import environment


def place(config):
    """(backend, device) that a run uses: what was asked for, or the GPU where our kernels serve it, else the CPU."""
    status = backend.available()
    asked = config.backend
    if asked is not None and asked not in status:
        raise OptionError(f"--backend: expected one of {', '.join(status)}, got {asked!r}")
    gpu = torch.cuda.is_available()
    if config.device is None:
        ours = gpu and (status["cuda"] or status["triton"])
        name = "cuda" if (asked in ("cuda", "triton") and gpu) or (ours and asked in (None, "torch")) else "cpu"
    else:
        name = config.device
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OptionError(f"--device: expected cpu or cuda, or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"--device: expected cpu or cuda, got {name!r}")
    if device.type == "cuda" and (not gpu or (device.index or 0) >= torch.cuda.device_count()):
        raise OptionError(f"--device: expected a device of this machine, got {name!r}; it has no such GPU")
    if device.type == "cuda" and device.index is None:
        many = environment().world > 1  # under torchrun each process of a machine takes a GPU of its own
        index = environment().local_rank if many else torch.cuda.current_device()
        gpus = torch.cuda.device_count()
        if index >= gpus:
            raise OptionError(f"torchrun: expected at most {gpus} processes here, one per GPU, got number {index + 1}")
        device = torch.device("cuda", index)
    try:
        if asked is None:
            return backend.current(device), device
        with backend.use(asked):
            return backend.current(device), device
    except RuntimeError as error:
        raise OptionError(f"--backend: {str(error).removeprefix('backend: ')}") from None
