"""From gradients to new weights: the optimizer, clipping, the L1 penalty and the scale of half-precision gradients."""

import torch

from pydl import optim


def make_optimizer(config, parameters, sparse=False):
    """Our optimizer, whose steps that are torch's (on a GPU, under the backend ``torch``) take torch's fused form.

    Either way one call serves all parameters, so that small models are not held up by it. ``sparse`` gradients take
    torch's SGD or its SparseAdam, which moves the rows that have one.
    """
    parameters = list(parameters)
    if sparse:
        if config.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=config.lr)
        return torch.optim.SparseAdam(parameters, lr=config.lr)
    if config.optimizer in ("sgd", "momentum"):
        momentum = 0.9 if config.optimizer == "momentum" else 0.0
        return optim.SGD(parameters, lr=config.lr, momentum=momentum, weight_decay=config.weight_decay, fused=True)
    kind = optim.Adam if config.optimizer == "adam" else optim.AdamW
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


class Stepper:
    """Optimizer, clipping, L1 penalty and, for mixed precision on a GPU, the scale of the loss.

    On a CPU mixed precision means bfloat16, whose range is float32's; on a GPU float16, whose smallest gradients would
    become 0 if the loss were not scaled up before the backward and the gradients down after it.
    """

    def __init__(self, config, parameters, device, sparse=False):
        self.optimizer = make_optimizer(config, parameters, sparse)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.clip, self.l1 = config.clip, config.l1
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp and device.type == "cuda")

    def set_lr(self, lr):
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("factor", 1.0)

    def clear(self):
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss):
        """Adds the gradients of ``loss``, in the scaler's scale until :meth:`step`, to those there are."""
        self.scaler.scale(loss).backward()

    def step(self):
        """One step of the optimizer; the gradients are clipped before the penalties come to them, L1's as L2's.

        The gradient of l1 · Σ |w| is l1 · sign(w), and 0 at 0.
        """
        self.scaler.unscale_(self.optimizer)
        if self.clip is not None:
            optim.clip_grad_norm_(self.parameters, self.clip)
        if self.l1:
            with torch.no_grad():
                for parameter in self.parameters:
                    parameter.grad.add_(parameter.sign(), alpha=self.l1)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self):
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
