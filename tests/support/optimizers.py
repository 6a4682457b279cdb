"""What the tests of optimizers share: their options, and models with gradients from a fixed sequence."""

import torch

import pydl

# Each branch of each kernel once.
OPTIONS = {
    "SGD": [
        {},
        {"weight_decay": 0.1, "maximize": True},
        {"momentum": 0.9, "dampening": 0.2},
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
        {"momentum": 0.5, "maximize": True},
    ],
    "Adam": [
        {},
        {"betas": (0.4, 0.9), "eps": 1e-3},  # below 1/2 torch interpolates from the other end
        {"weight_decay": 0.1, "maximize": True},
        {"amsgrad": True},
    ],
    "AdamW": [{}, {"weight_decay": 0.3, "amsgrad": True, "maximize": True}],
    "RMSprop": [
        {},
        {"centered": True},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"momentum": 0.5, "centered": True, "maximize": True, "alpha": 0.6},
    ],
    "Adadelta": [{}, {"lr": 0.5, "rho": 0.7, "weight_decay": 0.1, "maximize": True}],
}
EVERY = [(name, options) for name, several in OPTIONS.items() for options in several]
# One of each kernel.
KERNELS = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9}),
    ("Adam", {}),
    ("AdamW", {"amsgrad": True}),
    ("RMSprop", {}),
    ("RMSprop", {"centered": True}),
    ("RMSprop", {"momentum": 0.9}),
    ("RMSprop", {"centered": True, "momentum": 0.9}),
    ("Adadelta", {}),
]


def name_of(value):
    """The id of a parameter of these tests."""
    return " ".join(f"{k} {v}" for k, v in value.items()) or "plain" if isinstance(value, dict) else str(value)


# A scalar, remainders, none, channels_last, columns, and more than a chunk.
SHAPES = ((), (1,), (7,), (0, 3), (33, 5), (4, 3, 3, 3), (6, 4), (4099,))


def parameters(dtype, shapes=SHAPES):
    """Parameters from a fixed seed, the fifth in channels_last and the sixth in columns where they are SHAPES."""
    generator = torch.Generator().manual_seed(1)
    found = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    if shapes is SHAPES:
        found[5] = found[5].to(memory_format=torch.channels_last)
        found[6] = found[6].t().contiguous().t()
    return [torch.nn.Parameter(t) for t in found]


def set_grads(params, step):
    """Gradients number ``step``, which lie as their parameters; of the last three, one skips every third step."""
    generator = torch.Generator().manual_seed(100 + step)
    for i, p in enumerate(params):
        values = torch.randn(p.shape, generator=generator) * (0.1 + 0.01 * i)
        p.grad = torch.empty_like(p).copy_(values)
    if len(params) > 2 and step % 3 == 2:
        params[2].grad = None


def run(optimizer, first, last):
    """Steps ``first`` to ``last`` of an optimizer over one list of parameters."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(first, last):
        set_grads(params, step)
        optimizer.step()
    return params


def pair(name, dtype=torch.float64, shapes=SHAPES, **options):
    """The optimizer ``name`` of ours and of torch's, each over the same parameters."""
    return [getattr(library, name)(parameters(dtype, shapes), **options) for library in (pydl.optim, torch.optim)]


def served(optimizer):
    """Whether our kernel takes the next step."""
    return pydl.optim.why_torch(optimizer) is None
