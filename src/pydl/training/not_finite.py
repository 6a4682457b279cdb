"""A loss that became nan or infinite: in which step, and which layer was the first whose output is not finite."""

import torch

from pydl.errors import TrainingError


class NotFinite(TrainingError):
    """The loss became nan or infinite at ``step``, counted from 1 over the whole run."""

    def __init__(self, step, value, layer):
        where = f"; {layer} is the first layer whose output is not finite" if layer else ""
        super().__init__(f"the loss became {value} in step {step}{where}; a smaller --lr may help")
        self.step = step


def first_layer(model, images):
    """(place, text) of the first layer, in the order they run, whose output is not all finite; None when all are."""
    found, ran = [], []

    def look(name, kind):
        def hook(module, inputs, output):
            ran.append(name)
            output = output[0] if isinstance(output, tuple) else output  # of recurrent layers without their state
            if not found and torch.is_tensor(output) and not output.isfinite().all():
                found.append((len(ran), f"{name} ({kind})"))

        return hook

    leaves = [(name, m) for name, m in model.named_modules() if name and not list(m.children())]
    handles = [m.register_forward_hook(look(name, type(m).__name__)) for name, m in leaves]
    try:
        with torch.no_grad():
            model(*images) if isinstance(images, tuple) else model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
