"""``--monitor``: how large activations and gradients are, layer by layer, as the book looks at vanishing and exploding.

Looked at is one real step, the first of each epoch: forward hooks measure what each layer puts out, hooks on those
tensors the gradient that comes back to them, and the parameters' gradients are read after the backward.

Source: d2l section "Numerical Stability and Initialization"; Glorot and Bengio, "Understanding the difficulty of
training deep feedforward neural networks", AISTATS 2010.
"""

import contextlib

import torch
from rich.table import Table

# A layer's activations or gradients are called vanishing or exploding beyond this ratio to the largest, or to 1.
VANISHED, EXPLODED = 1e-4, 1e4


def _rms(tensor):
    return float(tensor.detach().double().square().mean().sqrt()) if tensor.numel() else 0.0


class Monitor:
    """Measures one step of ``model``.

    Attributes:
        rows: of the last step that was watched, a dict per layer in the order they ran: name, kind, activation
            (root mean square of the output), zeros (share of outputs that are 0), gradient (root mean square of the
            loss's gradient by the output), and, where the layer has a weight, weight_gradient and update_scale (the
            root mean squares of the weight's gradient, and of that over the weight's).
    """

    def __init__(self, model):
        self.model, self.rows, self.step = model, [], None

    @contextlib.contextmanager
    def watch(self, step, scale=1.0):
        """Measures step number ``step``, which runs inside the block; ``scale`` is what its loss is multiplied by."""
        self.rows, self.step, handles, layers = [], step, [], []

        def hook(name, layer):
            def look(module, inputs, output):
                output = output[0] if isinstance(output, tuple) else output  # of recurrent layers without their state
                if not torch.is_tensor(output) or any(row["name"] == name for row in self.rows):
                    return
                row = {"name": name, "kind": type(layer).__name__, "activation": _rms(output)}
                row |= {"zeros": float((output == 0).double().mean()) if output.numel() else 0.0, "gradient": None}
                self.rows.append(row)
                layers.append(layer)
                if output.requires_grad:
                    output.register_hook(lambda grad: row.update(gradient=_rms(grad) / scale))

            return look

        for name, layer in self.model.named_modules():
            if name and not list(layer.children()):
                handles.append(layer.register_forward_hook(hook(name, layer)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for row, layer in zip(self.rows, layers, strict=True):
            weight = getattr(layer, "weight", None)
            if isinstance(weight, torch.Tensor) and weight.grad is not None:
                gradient, size = _rms(weight.grad), _rms(weight)
                row |= {"weight_gradient": gradient, "update_scale": gradient / size if size else None}


def verdict(row, rows):
    """``vanishing`` or ``exploding`` for a layer far below the largest gradient of all, or far above 1; else empty."""
    largest = max((other["gradient"] or 0.0 for other in rows), default=0.0)
    scales = [row["activation"], row["gradient"] or 0.0]
    if not all(scale <= EXPLODED for scale in scales):  # nan too
        return "exploding"
    if row["gradient"] is not None and row["gradient"] < VANISHED * largest:
        return "vanishing"
    return ""


def table(rows, step):
    """The rows as a rich table."""
    title = f"scales in step {step} (root mean squares; update: weight's gradient over weight)"
    out = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for name in ("layer", "kind"):
        out.add_column(name)
    for name in ("output", "zeros", "its grad", "weight's", "update"):
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column("", no_wrap=True)

    def number(value):
        return "" if value is None else f"{value:.1e}"

    for row in rows:
        out.add_row(
            row["name"],
            row["kind"],
            number(row["activation"]),
            f"{row['zeros']:.0%}",
            number(row["gradient"]),
            number(row.get("weight_gradient")),
            number(row.get("update_scale")),
            verdict(row, rows),
        )
    return out
