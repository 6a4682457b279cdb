"""Scaled dot-product attention beside torch eager: forward and all gradients; one query against a cache of keys.

torch.compile takes no part: it calls the same op. ``lengths`` are a boolean mask for torch. The check of dropout, whose
masks differ, is in the tests; here its mean is compared.
"""

import pytest
import torch
import torch.nn.functional as F
from runner import Case, forward_backward

import pydl.functional as PF

MODES = ("plain", "causal", "lengths", "dropout 0.1")


def check_dropout(timed, *tensors):
    """A gradient of the value's sum is 1 for each row of weights, kept or not, on average."""
    value = tensors[2]
    *_, gradient = timed(*tensors[:3], torch.ones_like(tensors[3]))
    assert abs(gradient.mean().item() * value.shape[2] / tensors[0].shape[2] - 1) < 0.02


def case(n, heads, tokens, width, mode, target=None, dtype=torch.float32, quick=False):
    shape = (n, heads, tokens, width)
    lengths = torch.arange(n) * 5 % n * tokens // n + 1  # in no order, half of the tokens on average
    within = (torch.arange(tokens) < lengths[:, None])[:, None, None]

    def ours(query, key, value):
        options = {
            "plain": {},
            "causal": {"is_causal": True},
            "lengths": {"lengths": lengths},
            "dropout 0.1": {"dropout_p": 0.1},
        }
        return PF.scaled_dot_product_attention(query, key, value, **options[mode])

    def torchs(query, key, value):
        options = {
            "plain": {},
            "causal": {"is_causal": True},
            "lengths": {"attn_mask": within},
            "dropout 0.1": {"dropout_p": 0.1},
        }
        return F.scaled_dot_product_attention(query, key, value, **options[mode])

    size = torch.Size(shape).numel() * dtype.itemsize
    return Case(
        "attention",
        f"{n}×{heads}×{tokens}×{width}, {mode}",
        lambda: [torch.randn(shape).to(dtype).requires_grad_() for _ in range(3)] + [torch.randn(shape).to(dtype)],
        ours,
        torchs,
        forward_backward,
        read=(3 + 5) * size,
        written=(1 + 3) * size,
        operations=14 * n * heads * tokens * tokens * width,  # of all pairs: two products, and five
        dtype=dtype,
        compile=False,
        target=target and (target, target),
        quick=quick,
        check=check_dropout if mode.startswith("dropout") else None,
        scale=30.0,
        seconds=1.0,
    )


def one_query(n, heads, keys, width, target):
    """Generation: the newest token against all that came before."""
    return Case(
        "attention",
        f"{n}×{heads}, one query against {keys} keys of {width}",
        lambda: [torch.randn(n, heads, rows, width) for rows in (1, keys, keys)],
        PF.scaled_dot_product_attention,
        F.scaled_dot_product_attention,
        lambda function: lambda *tensors: (function(*tensors),),
        read=2 * n * heads * keys * width * 4,
        written=n * heads * width * 4,
        operations=4 * n * heads * keys * width,
        compile=False,
        target=(target, target),
        quick=True,
        seconds=1.0,
    )


TARGETS = {
    (64, 2, 64, 64): (3.0, 3.8, 5.0, 4.2),
    (128, 4, 9, 64): (6.0, 6.0, 6.0, 2.5),
    (16, 4, 128, 32): (3.0, 4.2, 5.0, 5.0),
    (8, 8, 512, 64): (2.2, 3.8, 4.6, 6.3),
}
CASES = [
    *(
        case(*shape, mode, target, quick=shape[2] == 64)
        for shape, targets in TARGETS.items()
        for mode, target in zip(MODES, targets, strict=True)
    ),
    case(64, 2, 64, 64, "plain", dtype=torch.bfloat16),
    case(8, 8, 512, 64, "causal", dtype=torch.bfloat16),
    one_query(8, 8, 512, 64, 2.0),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_attention(case, compare):
    compare(case)
