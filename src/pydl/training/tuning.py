"""Fine-tuning: another last layer on a trained body, what of the body stays as it is, and how fast the last one learns.

Source: d2l section "Fine-Tuning".
"""

from fnmatch import fnmatchcase

from torch import nn

from pydl.errors import OptionError
from pydl.nn import Linear, ReLU

BODY = "body"  # the pattern of all but the last layer
NAMED = 3  # names that a sentence lists


def head(model):
    """The name of the last layer, which gives the logits.

    Raises:
        OptionError: for a model that does not end in an affine layer.
    """
    own = [(name, layer) for name, layer in model.named_modules() if list(layer.parameters(recurse=False))]
    if not own or not isinstance(own[-1][1], nn.Linear):
        raise OptionError(
            "--replace-head, --add-layer, --head-lr-factor, --freeze body: expected a model that ends in "
            f"an affine layer, got one that ends in {type(own[-1][1]).__name__ if own else 'nothing'}"
        )
    return own[-1][0]


def extend(model, classes):
    """Puts ReLU and an affine layer of ``classes`` outputs after the last layer, which keeps its weights, in place."""
    parent, _, name = head(model).rpartition(".")
    parent = model.get_submodule(parent)
    old = getattr(parent, name)
    setattr(parent, name, nn.Sequential(old, ReLU(), Linear(old.out_features, classes)))


def freeze(model, patterns):
    """Freezes the parameters whose names match one of ``patterns``; returns the batch norms that are frozen.

    Args:
        patterns: of :mod:`fnmatch`, such as ``layer1.*``; or ``body``, which is all but the last layer.

    Raises:
        OptionError: for a pattern that matches nothing, and where nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        if pattern == BODY:
            last = head(model) + "."
            hit = [name for name in parameters if not name.startswith(last)]
        else:
            hit = [name for name in parameters if fnmatchcase(name, pattern)]
        if not hit:
            some = ", ".join(list(parameters)[:NAMED])
            raise OptionError(
                f"--freeze: expected {BODY} or a pattern of parameters' names ({some}, …), got {pattern!r}"
            )
        for name in hit:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise OptionError(f"--freeze: expected something to be left to train, got {', '.join(patterns)}")
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    return [n for n in norms if n.affine and not n.weight.requires_grad and not n.bias.requires_grad]


def groups(model, lr, factor):
    """The parameters that are trained as an optimizer's groups; the last layer's learning rate is ``factor * lr``."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if factor == 1:
        return [p for _, p in trained]
    last = head(model) + "."
    parts = [[p for name, p in trained if name.startswith(last) == of_head] for of_head in (False, True)]
    return [
        {"params": part, "lr": rate * lr, "factor": rate}
        for part, rate in zip(parts, (1.0, factor), strict=True)
        if part
    ]
