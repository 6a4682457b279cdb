"""nn.MultiheadAttention and what is made of it, swapped, beside torch's in float64."""

import copy
import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from testing import assert_close
from torch import nn

import pydl
from pydl import backend

N, L, S, E, HEADS = 2, 4, 6, 12, 3
AFTER = torch.arange(S) >= torch.tensor([[S], [4]])  # keys that a sample does not have
FUTURE = torch.ones(L, S, dtype=torch.bool).triu(1)


def ops_called(function):
    """What function() returns, and the names of pydl's ops that it calls."""
    with torch.autograd.profiler.profile() as profiler:
        output = function()
    return output, {event.key for event in profiler.key_averages() if event.key.startswith("pydl::")}


def pair(**options):
    layer = nn.MultiheadAttention(E, HEADS, **options)
    return pydl.swap(copy.deepcopy(layer)), layer.double()


def assert_same(ours, exact, tensors, ops=frozenset({"pydl::attention_forward"}), **options):
    """Output, weights and all gradients. Equal tensors in a row stay one tensor, as in self-attention."""

    def leaves(double):
        made = {}
        return [made.setdefault(id(t), (t.double() if double else t.clone()).requires_grad_()) for t in tensors]

    actual_leaves, expected_leaves = leaves(False), leaves(True)
    wide = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in options.items()}
    (actual, weights), called = ops_called(lambda: ours(*actual_leaves, **options))
    assert called >= ops
    expected, expected_weights = exact(*expected_leaves, **wide)
    assert_close(actual, expected, scale=10)
    assert (weights is None) == (expected_weights is None)
    if weights is not None:
        assert_close(weights, expected_weights, scale=10)
    grad = torch.randn(actual.shape)
    ours.zero_grad()
    exact.zero_grad()
    actual.backward(grad)
    expected.backward(grad.double())
    for p, q in zip((*actual_leaves, *ours.parameters()), (*expected_leaves, *exact.parameters()), strict=True):
        assert_close(p.grad, q.grad, scale=20)


CALLS = {
    "no weights": {"need_weights": False},
    "a boolean mask": {"need_weights": False, "attn_mask": FUTURE},
    "an additive mask": {"need_weights": False, "attn_mask": torch.randn(L, S)},
    "a mask for each head": {"need_weights": False, "attn_mask": torch.randn(N * HEADS, L, S)},
    "padding": {"need_weights": False, "key_padding_mask": AFTER},
    "both": {"need_weights": False, "key_padding_mask": AFTER, "attn_mask": FUTURE},
    "causal": {"need_weights": False, "attn_mask": FUTURE, "is_causal": True},
    "causal and padding": {"need_weights": False, "attn_mask": FUTURE, "is_causal": True, "key_padding_mask": AFTER},
}
WITH_WEIGHTS = {
    "weights": {},
    "of each head": {"average_attn_weights": False},
    "masked": {"key_padding_mask": AFTER, "attn_mask": FUTURE},
}


@pytest.mark.parametrize("case", CALLS | WITH_WEIGHTS)
def test_beside_torch(case):
    options = (CALLS | WITH_WEIGHTS)[case]
    ops = {"pydl::attention_forward"} if case in CALLS else {"pydl::softmax_forward", "pydl::linear_forward"}
    for batch_first, other_widths, bias in itertools.product((True, False), (True, False), (True, False)):
        widths = {"kdim": 5, "vdim": 7} if other_widths else {}
        ours, exact = pair(batch_first=batch_first, bias=bias, **widths)
        tensors = (
            torch.randn(N, L, E),
            torch.randn(N, S, widths.get("kdim", E)),
            torch.randn(N, S, widths.get("vdim", E)),
        )
        if not batch_first:
            tensors = [t.transpose(0, 1).contiguous() for t in tensors]
        assert_same(ours, exact, tensors, ops, **options)


def test_of_one_tensor_and_of_two():
    ours, exact = pair(batch_first=True)
    x, y = torch.randn(N, L, E), torch.randn(N, S, E)
    assert_same(ours, exact, (x, x, x), need_weights=False)
    assert_same(ours, exact, (x, y, y), need_weights=False)


def test_unbatched():
    ours, exact = pair()
    tensors = torch.randn(L, E), torch.randn(S, E), torch.randn(S, E)
    for options in ({}, {"attn_mask": FUTURE}, {"attn_mask": torch.randn(HEADS, L, S)}, {"key_padding_mask": AFTER[1]}):
        assert_same(ours, exact, tensors, need_weights=False, **options)
        assert_same(ours, exact, tensors, {"pydl::softmax_forward"}, average_attn_weights=False, **options)


LEFT = {
    "a bias of keys": ({"add_bias_kv": True}, {}),
    "a key of zeros": ({"add_zero_attn": True}, {}),
    "masks of two kinds": ({}, {"key_padding_mask": AFTER, "attn_mask": torch.zeros(L, S)}),
}


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("case", LEFT)
def test_left_to_torch(case):
    made, options = LEFT[case]
    ours, exact = pair(batch_first=True, **made)
    assert_same(ours, exact, (torch.randn(N, L, E), torch.randn(N, S, E), torch.randn(N, S, E)), set(), **options)


REFUSED = {
    "width": lambda m: m(torch.randn(N, L, 5), torch.randn(N, S, E), torch.randn(N, S, E)),
    "samples": lambda m: m(torch.randn(N, L, E), torch.randn(3, S, E), torch.randn(3, S, E)),
    "keys and values": lambda m: m(torch.randn(N, L, E), torch.randn(N, S, E), torch.randn(N, 5, E)),
    "mask": lambda m: m(torch.randn(N, L, E), *[torch.randn(N, S, E)] * 2, attn_mask=torch.ones(L, 5)),
    "mask of integers": lambda m: m(
        torch.randn(N, L, E), *[torch.randn(N, S, E)] * 2, attn_mask=torch.ones(L, S).int()
    ),
    "causal without a mask": lambda m: m(torch.randn(N, L, E), *[torch.randn(N, S, E)] * 2, is_causal=True),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_as_torch_does(case):
    layer = nn.MultiheadAttention(E, HEADS, batch_first=True)
    found = []
    for module in (pydl.swap(copy.deepcopy(layer)), layer):
        with pytest.raises(Exception) as error:  # noqa: PT011 (torch's own type, whichever it is)
            REFUSED[case](module)
        found.append((error.type, str(error.value)))
    assert found[0] == found[1]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("batch_first", [True, False])
def test_strides_are_torchs(batch_first, dims):
    layer = nn.MultiheadAttention(E, HEADS, batch_first=batch_first)
    for options in ({"need_weights": False}, {}, {"average_attn_weights": False}):
        found = []
        for net in (layer, pydl.swap(copy.deepcopy(layer))):
            sizes = (
                [(N, count, E) if batch_first else (count, N, E) for count in (L, S)] if dims == 3 else [(L, E), (S, E)]
            )
            leaves = query, key = [torch.randn(size).requires_grad_() for size in sizes]
            output, weights = net(query, key, key, **options)
            grads = torch.autograd.grad(output, leaves, torch.ones(output.shape))
            found.append([None if t is None else t.stride() for t in (output, weights, *grads)])
        assert found[0] == found[1], options


def test_dropout_of_weights():
    ours, _ = pair(batch_first=True, dropout=0.5)
    x = torch.randn(N, L, E)
    torch.manual_seed(0)
    first = ours(x, x, x, need_weights=False)[0]
    torch.manual_seed(0)
    assert torch.equal(first, ours(x, x, x, need_weights=False)[0])
    assert not torch.equal(first, ours(x, x, x, need_weights=False)[0])
    torch.manual_seed(0)
    assert_close(ours(x, x, x)[0], first, scale=10)  # one mask, whether weights are stored or not
    ours.eval()
    assert torch.equal(ours(x, x, x, need_weights=False)[0], ours(x, x, x, need_weights=False)[0])


def test_steps_aside():
    layer = pydl.swap(nn.MultiheadAttention(E, HEADS, batch_first=True))
    x = torch.randn(N, L, E)

    def served():
        return "pydl::attention_forward" in ops_called(lambda: layer(x, x, x, need_weights=False))[1]

    assert served()
    with backend.use("torch"):
        assert not served()
    replaced = F.multi_head_attention_forward
    try:
        F.multi_head_attention_forward = lambda *args, **kwargs: replaced(*args, **kwargs)
        assert not served()
    finally:
        F.multi_head_attention_forward = replaced
    layer.forward = lambda *args, **kwargs: (x, None)
    assert layer(x, x, x)[0] is x


def test_exported_programs_are_of_torchs_ops():
    layer = pydl.swap(nn.MultiheadAttention(E, HEADS, batch_first=True)).eval()
    x = torch.randn(N, L, E)
    program = torch.export.export(layer, (x, x, x), {"need_weights": False})
    assert not any("pydl" in str(node.target) for node in program.graph.nodes)
    assert_close(program.module()(x, x, x, need_weights=False)[0], layer(x, x, x, need_weights=False)[0])


def test_by_name_and_under_swapped():
    layer = nn.MultiheadAttention(E, HEADS)
    tensors = torch.randn(L, N, E), torch.randn(S, N, E), torch.randn(S, N, E)
    with pydl.swapped():
        (actual, _), called = ops_called(lambda: layer(*tensors, need_weights=False))
    assert "pydl::attention_forward" in called
    assert_close(actual, layer(*tensors, need_weights=False)[0], scale=10)


@pytest.mark.parametrize("training", [True, False])
def test_transformer(training):
    """In evaluation torch's encoder layer takes its own fast path over all of the layer, where it needs no gradient."""
    net = nn.Transformer(E, 2, 1, 1, 20, dropout=0.0, batch_first=True).train(training)
    ours, exact = pydl.swap(copy.deepcopy(net)), copy.deepcopy(net).double()
    rows = {row.name: row for row in pydl.report(ours).rows}
    attentions = "encoder.layers.0.self_attn", "decoder.layers.0.self_attn", "decoder.layers.0.multihead_attn"
    assert {name for name, row in rows.items() if row.layer == "MultiheadAttention"} == set(attentions)
    # whose last projections are read by their owners
    assert {name for name, row in rows.items() if row.served_by == "torch"} == {f"{a}.out_proj" for a in attentions}
    source, target, future = torch.randn(N, S, E), torch.randn(N, L, E), FUTURE[:, :L]
    options = {
        "tgt_mask": future,
        "tgt_is_causal": True,
        "src_key_padding_mask": AFTER,
        "memory_key_padding_mask": AFTER,
    }
    actual = ours(source, target, **options)
    expected = exact(source.double(), target.double(), **options)
    assert_close(actual, expected, scale=20)
    actual.sin().sum().backward()
    expected.sin().sum().backward()
    for p, q in zip(ours.parameters(), exact.parameters(), strict=True):
        assert_close(p.grad, q.grad, scale=50)
    with torch.no_grad():  # the padded tokens of torch's fast path are 0
        assert_close(ours(source, target, **options), expected, scale=20)


# ---- attention as the book writes it: bmm and a masked softmax


def masked_softmax(scores, lengths):
    """Of the first keys alone. The others get a large negative score, so that a row without keys has their mean."""
    if lengths is None:
        return F.softmax(scores, dim=-1)
    limit = lengths[:, None, None] if lengths.dim() == 1 else lengths[:, :, None]
    return F.softmax(scores.masked_fill(torch.arange(scores.shape[-1]) >= limit, -1e6), dim=-1)


class DotProductAttention(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, lengths=None):
        self.weights = masked_softmax(torch.bmm(query, key.transpose(1, 2)) / query.shape[-1] ** 0.5, lengths)
        return torch.bmm(self.dropout(self.weights), value)


class AdditiveAttention(nn.Module):
    def __init__(self, hidden, dropout):
        super().__init__()
        self.of_query, self.of_key, self.of_both = (nn.LazyLinear(n, bias=False) for n in (hidden, hidden, 1))
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, lengths=None):
        both = torch.tanh(self.of_query(query).unsqueeze(2) + self.of_key(key).unsqueeze(1))
        self.weights = masked_softmax(self.of_both(both).squeeze(-1), lengths)
        return torch.bmm(self.dropout(self.weights), value)


class MultiHeadAttention(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.attention = heads, DotProductAttention(dropout)
        self.of_query, self.of_key, self.of_value, self.last = (nn.LazyLinear(width, bias=False) for _ in range(4))

    def forward(self, query, key, value, lengths=None):
        def cut(x):
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1)

        if lengths is not None:
            lengths = lengths.repeat_interleave(self.heads, 0)
        parts = cut(self.of_query(query)), cut(self.of_key(key)), cut(self.of_value(value))
        output = self.attention(*parts, lengths)
        return self.last(output.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2))


BOOKS = {
    "dot product": (lambda p: DotProductAttention(p), {"matmul", "softmax_forward"}),
    "additive": (lambda p: AdditiveAttention(8, p), {"matmul", "softmax_forward", "linear_forward"}),
    "multi-head": (lambda p: MultiHeadAttention(E, HEADS, p), {"matmul", "softmax_forward", "linear_forward"}),
}


@pytest.mark.parametrize("name", BOOKS)
def test_the_books_classes(name, monkeypatch):
    monkeypatch.setattr(pydl.ops.matmul, "WORTH_A_CALL", 0)
    build, ops = BOOKS[name]
    net = build(0.0)
    tensors = torch.randn(N, L, E), torch.randn(N, S, E), torch.randn(N, S, E)
    with torch.no_grad():
        net(*tensors)
    exact = copy.deepcopy(net).double()
    for lengths in (None, torch.tensor([S, 2]), torch.tensor([0, 3]), torch.arange(N * L).view(N, L) % (S + 1)):
        leaves = [t.clone().requires_grad_() for t in tensors]
        wide = [t.double().requires_grad_() for t in tensors]
        with pydl.swapped():
            actual, called = ops_called(functools.partial(net, *leaves, lengths))
            assert called >= {f"pydl::{op}" for op in ops}
            actual.sin().sum().backward()
        expected = exact(*wide, lengths)
        expected.sin().sum().backward()
        assert_close(actual, expected, scale=10)
        for p, q in zip((*leaves, *net.parameters()), (*wide, *exact.parameters()), strict=True):
            assert_close(p.grad, q.grad, scale=20)
        net.zero_grad()
        exact.zero_grad()


def test_the_books_dropout_is_ours():
    net, x = DotProductAttention(0.5), torch.randn(N, S, E)
    with pydl.swapped():
        torch.manual_seed(0)
        first, called = ops_called(lambda: net(x, x, x))
        torch.manual_seed(0)
        assert torch.equal(first, net(x, x, x))
        assert "pydl::dropout" in called
        net.eval()
        assert_close(net(x, x, x), F.scaled_dot_product_attention(*[x.double()] * 3), scale=10)
