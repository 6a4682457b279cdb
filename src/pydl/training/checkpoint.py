"""Checkpoints: written whole or not at all, read with ``weights_only=True``, and told from anything else."""

import os
import pickle
import tempfile
import zipfile
from pathlib import Path

import torch

from pydl.errors import CheckpointError

FORMAT, VERSION = "pydl-train", 1
KEYS = {"model", "optimizer", "random", "order", "step", "step_in_epoch", "losses", "correct", "seconds"}
KEYS |= {"config", "classes", "examples", "preprocessing", "epoch", "history"}
NAME = "checkpoint.pt"


def save(path, content):
    """Writes ``content`` to ``path`` atomically: a kill or a full disk leaves the file that was there before.

    Raises:
        CheckpointError: when the disk refuses.
    """
    path = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as RuntimeError
        raise CheckpointError(f"{path}: the checkpoint could not be written: {error}; the last one is kept") from None
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def find(path):
    """The checkpoint file that ``path`` means: itself, or ``checkpoint.pt`` in the folder."""
    path = Path(path)
    if path.is_dir():
        path = path / NAME
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    return path


def why_unreadable(path, error):
    """In our words: torch's are about options of its own functions."""
    if isinstance(error, PermissionError):
        return "the file may not be read"
    if path.stat().st_size == 0:
        return "the file is empty"
    if not zipfile.is_zipfile(path):  # what torch.save writes
        return "the file was cut off or damaged, or was never one"
    if isinstance(error, pickle.UnpicklingError):
        return "it holds objects other than tensors, numbers and text, which could be code and are not opened"
    return "the file is damaged"


def mismatch(model, state):
    """Where the weights ``state`` do not fit ``model``, in words; None where they do."""
    expected = model.state_dict()
    for name in expected:
        if name not in state:
            return f"it lacks {name}"
        if not torch.is_tensor(state[name]) or state[name].shape != expected[name].shape:
            shape = tuple(getattr(state[name], "shape", ()))
            return f"expected {name} to be of shape {tuple(expected[name].shape)}, got {shape}"
    more = [name for name in state if name not in expected]
    return f"it has {more[0]}, which the model has not" if more else None


def load(path):
    """The content of a checkpoint of ``pydl train``, on the CPU.

    Raises:
        CheckpointError: for a file that is absent, damaged, or not written by ``pydl train``.
    """
    path = find(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise a dozen types, from EOFError to UnpicklingError
        raise CheckpointError(f"{path}: not a readable checkpoint: {why_unreadable(path, error)}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of `pydl train`")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: expected version {VERSION} of the checkpoint format, got {content.get('version')!r}"
        )
    if missing := KEYS - set(content):
        raise CheckpointError(f"{path}: the checkpoint lacks {', '.join(sorted(missing))}")
    return content
