"""Devices."""

import torch


def cpu():
    """The CPU."""
    return torch.device("cpu")


def num_gpus():
    """How many accelerators there are: CUDA's, Apple's or any other that this torch knows."""
    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def gpu(i=0):
    """The accelerator with number ``i``."""
    kind = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cuda"
    return torch.device(kind, i)


def try_gpu(i=0):
    """``gpu(i)`` where there is one, else the CPU."""
    return gpu(i) if num_gpus() > i else cpu()


def try_all_gpus():
    """All accelerators, or the CPU where there is none, as a list."""
    return [gpu(i) for i in range(num_gpus())] or [cpu()]
