"""Batches one after the other, made ready ahead of time by worker processes where that is asked for."""

import torch
from torch.utils.data import DataLoader, Dataset

from pydl.errors import UserError


class _Indexed(Dataset):
    """Batches by index tensors. An error comes back as a value, for a loader would wrap its sentence in a traceback."""

    def __init__(self, batches):
        self.batches = batches

    def __getitem__(self, indices):
        try:
            return self.batches[indices]
        except UserError as error:
            return error


def in_order(batches, indices, workers, device):
    """Yields ``batches[i]`` on ``device`` for each index tensor ``i`` of ``indices``.

    Args:
        batches: a :class:`pydl.data.Batches`, or what gives tuples alike; with workers, one that lies on the CPU.
        indices: a list of int64 tensors.
        workers: processes that read, decode and preprocess batches while the model computes; 0 does it in between.
        device: where the batches go. For a GPU they pass through pinned memory, from which the copy runs beside the
            computation.
    """
    if workers == 0:
        for index in indices:
            yield moved(batches[index], device)
        return
    loader = DataLoader(
        _Indexed(batches),
        batch_size=None,
        sampler=[index.cpu() for index in indices],
        num_workers=workers,
        pin_memory=torch.device(device).type == "cuda",
    )
    for item in loader:
        if isinstance(item, UserError):
            raise item
        yield moved(item, device)


def moved(item, device):
    """A tensor on ``device``, or the tensors of tuples of them."""
    if torch.is_tensor(item):
        return item.to(device, non_blocking=True)
    return tuple(moved(part, device) for part in item)
