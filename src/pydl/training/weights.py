"""``--weights FILE``: first weights from a file, under the model's own names or those that it knows from elsewhere."""

from pathlib import Path

import torch

from pydl.errors import CheckpointError, MissingExtra
from pydl.training import tuning
from pydl.training.checkpoint import FORMAT, NAME, why_unreadable

NAMED = 5  # keys that a sentence lists


def load(model, path, vocabulary=None, config=None):
    """Puts the weights of the file ``path`` into ``model``.

    Args:
        path: a state_dict as ``torch.save`` writes it, or a ``.safetensors`` file (where that library is installed). A
            model with a method ``own_names`` takes other names too: ``gpt`` those of GPT-2, ``bert`` those of BERT,
            ``style`` those of torchvision's VGG. A run of ``pydl train``, its folder or its checkpoint, is taken too.
        vocabulary: the tokens by number; those of a run of ``pydl train`` must be the same. None for no text.
        config: of a run; ``replace_head`` leaves the model's last layer new, ``add_layer`` the one that comes after it.

    Raises:
        CheckpointError: for a file that cannot be read, or does not fit: names that the model has and the file lacks,
            that the file has and the model does not know, and shapes.
        MissingExtra: for ``.safetensors`` without the library.
    """
    path, state = _state(path, vocabulary)
    if hasattr(model, "own_names"):
        state = model.own_names(state)
    expected = model.state_dict()
    if config is not None and (config.replace_head or config.add_layer):
        last = tuning.head(model)
        new = {name for name in expected if name.startswith(f"{last}.")}
        if config.add_layer:
            kept = last.removesuffix("2")  # the new layer is the third of those that stand where the kept one was
            state = {
                name.replace(kept, f"{kept}0.", 1) if name.startswith(kept) else name: state[name] for name in state
            }
        state = {name: t for name, t in state.items() if name not in new} | {name: expected[name] for name in new}
    _check(path, state, expected)
    model.load_state_dict(state)


def outputs(path, name):
    """How many outputs the layer ``name`` of the file has, which ``--add-layer`` keeps.

    Raises:
        CheckpointError: for a file that lacks it.
    """
    path, state = _state(path)
    if f"{name}.weight" not in state:
        raise CheckpointError(f"{path}: the weights do not fit the model: it lacks {name}.weight")
    return len(state[f"{name}.weight"])


def _state(path, vocabulary=None):
    """(the file, its state_dict)."""
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    state = _read(path)
    if state.get("format") == FORMAT:
        theirs = state.get("vocabulary", state["classes"])
        if vocabulary is not None and theirs != vocabulary:
            raise CheckpointError(
                f"{path}: expected a run with the text's vocabulary of {len(vocabulary):,} tokens, got another of "
                f"{len(theirs):,}"
            )
        state = state["model"]
    elif not all(torch.is_tensor(value) for value in state.values()):
        raise CheckpointError(f"{path}: expected a state_dict, names with tensors, got something else")
    return path, state


def _check(path, state, expected):
    """Refuses a ``state`` that lacks names of ``expected``, has others, or other shapes."""
    faults = []
    if missing := [name for name in expected if name not in state]:
        faults.append(f"it lacks {_listed(missing)}")
    if unknown := [name for name in state if name not in expected]:
        faults.append(f"it has {_listed(unknown)}, which the model does not know")
    shapes = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    for name in shapes[:1]:
        faults.append(f"expected {name} to be of shape {tuple(expected[name].shape)}, got {tuple(state[name].shape)}")
    if faults:
        raise CheckpointError(f"{path}: the weights do not fit the model: {'; '.join(faults)}")


def _listed(names):
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _read(path):
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file of weights")
    try:
        if path.suffix == ".safetensors":
            state = _read_safetensors(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except MissingExtra:
        raise
    except Exception as error:  # both libraries raise a dozen types for what they cannot read
        why = str(error).splitlines()[0] if path.suffix == ".safetensors" else why_unreadable(path, error)
        raise CheckpointError(f"{path}: not a readable file of weights: {why}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a state_dict, names with tensors, got something else")
    return state


def _read_safetensors(path):
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise MissingExtra(f"--weights {path.name}", "safetensors", "weights") from None
    return load_file(path)
