"""rnn_tanh, rnn_relu, gru and lstm against torch in float64: every option, size, dtype and instruction set."""

import copy
import itertools
import re

import pytest
import torch
import torch.utils.flop_counter
from testing import assert_close
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import pydl
from pydl.ops import recurrent

pytestmark = pytest.mark.cpu_kernels

KINDS = {
    "rnn_tanh": (nn.RNN, {}),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
    "gru": (nn.GRU, {}),
    "lstm": (nn.LSTM, {}),
}


@pytest.fixture(autouse=True)
def _every_size_is_ours(monkeypatch):
    monkeypatch.setattr(recurrent, "LEAST_ROWS", dict.fromkeys(recurrent.LEAST_ROWS, 1))


def pair(kind, *sizes, dtype=torch.float32, **options):
    """torch's layer in float64, and ours of ``dtype`` with the same weights."""
    cls, own = KINDS[kind]
    theirs = cls(*sizes, **own, **options).to(dtype).double()
    ours = getattr(pydl.nn, cls.__name__)(*sizes, **own, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours.to(dtype)


def states(kind, *shape, dtype=torch.float32):
    found = tuple((torch.randn(shape) / 2).to(dtype) for _ in range(2 if kind == "lstm" else 1))
    return found if kind == "lstm" else found[0]


def flat(value):
    """All tensors of nested tuples, in order."""
    if isinstance(value, PackedSequence):
        return [value.data]
    return [value] if isinstance(value, torch.Tensor) else [t for v in value for t in flat(v)]


def mapped(value, function):
    if isinstance(value, torch.Tensor | PackedSequence | None):
        return None if value is None else function(value)
    return tuple(mapped(v, function) for v in value)


def leaf(t, dtype):
    t = t.to(dtype) if isinstance(t, torch.Tensor) else PackedSequence(t.data.to(dtype), *t[1:])
    (t.data if isinstance(t, PackedSequence) else t).requires_grad_()
    return t


def outcome(net, x, hx, dtype):
    """Outputs and all gradients by name, for gradients that are not all ones and differ between the outputs."""
    x, hx = (
        mapped(v, lambda t: leaf(t.detach().clone() if isinstance(t, torch.Tensor) else t, dtype)) for v in (x, hx)
    )
    found = {f"output {i}": y for i, y in enumerate(flat(net(x, hx)))}
    grads = [torch.linspace(-1, 2, y.numel()).sin().view(y.shape).to(y.dtype) for y in found.values()]
    leaves = {"input": flat(x)[0]} | {f"hx {i}": t for i, t in enumerate(flat(hx) if hx is not None else [])}
    leaves |= dict(net.named_parameters())
    gradients = torch.autograd.grad(list(found.values()), list(leaves.values()), grads)
    return found | {f"gradient of {n}": g for n, g in zip(leaves, gradients, strict=True)}


def compare(kind, nets, x, hx=None, scale=5.0, dtype=torch.float32):
    expected, actual = (outcome(net, x, hx, d) for net, d in zip(nets, (torch.float64, dtype), strict=True))
    for name, value in expected.items():
        assert actual[name].dtype == dtype, name
        assert actual[name].stride() == value.stride(), name
        # sums over steps and sequences: their size, not each number's own
        size = max(value.square().mean().sqrt().item(), 1.0)
        assert_close(actual[name] / size, value / size, dtype, scale=scale)


@pytest.mark.best_isa
@pytest.mark.parametrize("layers, bidirectional", list(itertools.product((1, 2), (False, True))))
@pytest.mark.parametrize("kind", KINDS)
def test_options(kind, layers, bidirectional, device):
    for batch_first, bias, begins in itertools.product((False, True), repeat=3):
        nets = pair(kind, 5, 9, num_layers=layers, bidirectional=bidirectional, batch_first=batch_first, bias=bias)
        hx = states(kind, layers * (1 + bidirectional), 3, 9) if begins else None
        compare(kind, nets, torch.randn((3, 4, 5) if batch_first else (4, 3, 5)), hx)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes(kind, device):
    """Units of no, one and several whole vectors and what is left; sequences that fill tiles, or do not."""
    sizes = zip((1, 5, 3, 8, 4, 15, 2, 17), (1, 7, 8, 9, 16, 17, 33, 40), (1, 2, 3, 4, 5, 7, 13, 29), strict=True)
    for features, units, batch in sizes:
        compare(kind, pair(kind, features, units), torch.randn(3, batch, features), states(kind, 1, batch, units))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes(kind, dtype, device):
    for reverse in (False, True):
        nets = pair(kind, 6, 11, dtype=dtype, bidirectional=reverse)
        hx = states(kind, 1 + reverse, 5, 11, dtype=dtype)
        compare(kind, nets, torch.randn(4, 5, 6).to(dtype), hx, dtype=dtype, scale=2.0)


LENGTHS = {
    "equal": [4, 4, 4],
    "falling": [6, 4, 4, 1],
    "any order": [2, 6, 1, 5, 6],
    "one": [3],
    "more than a task has": [1 + 5 * i % 7 for i in range(70)],
}


@pytest.mark.best_isa
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences(kind, lengths, device):
    lengths = torch.tensor(LENGTHS[lengths])
    padded = torch.randn(int(lengths.max()), len(lengths), 5)
    x = pack_padded_sequence(padded, lengths, enforce_sorted=False)
    for dtype, bidirectional, begins in (
        (torch.float32, True, True),
        (torch.float32, False, False),
        (torch.float64 if kind == "rnn_relu" else torch.bfloat16, True, True),  # near 0, relu's gradient is either
    ):
        nets = pair(kind, 5, 9, num_layers=2, bidirectional=bidirectional, dtype=dtype)
        hx = states(kind, 2 * (1 + bidirectional), len(lengths), 9, dtype=dtype) if begins else None
        packed = PackedSequence(x.data.to(dtype), *x[1:])
        compare(kind, nets, packed, hx, dtype=dtype, scale=5.0 if dtype == torch.float32 else 3.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_sequence_is_each_sequence_by_itself(kind):
    _, net = pair(kind, 5, 9, bidirectional=True)  # of four steps and more, which pack the weights
    lengths, padded = torch.tensor([4, 6, 5]), torch.randn(6, 3, 5)
    output, _ = net(pack_padded_sequence(padded, lengths, enforce_sorted=False))
    output, found = pad_packed_sequence(output)
    assert torch.equal(found, lengths)
    for i, length in enumerate(lengths):
        assert torch.equal(output[:length, i], net(padded[:length, i])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_few_sequences(kind, device):
    """Weights that are read as they lie (up to three steps of eight sequences), and more steps of one sequence."""
    for steps, batch, features, units in (
        *((1, 1, 5, 16), (1, 8, 4, 17), (2, 3, 9, 32), (3, 1, 1, 40), (1, 2, 7, 9)),
        *((4, 1, 28, 64), (9, 1, 5, 33), (40, 1, 3, 48)),
    ):
        nets = pair(kind, features, units, bidirectional=steps == 3)
        hx = states(kind, 1 + (steps == 3), batch, units)
        compare(kind, nets, torch.randn(steps, batch, features), hx)
    for lengths in ([2, 1], [3, 3, 1, 1]):
        x = pack_padded_sequence(torch.randn(lengths[0], len(lengths), 5), lengths)
        compare(kind, pair(kind, 5, 16, bidirectional=True), x, states(kind, 2, len(lengths), 16))


@pytest.mark.best_isa
@pytest.mark.parametrize("steps, batch, units", [(35, 32, 256), (32, 128, 32), (300, 2, 24)])
@pytest.mark.parametrize("kind", KINDS)
def test_error_of_float32(kind, steps, batch, units, device):
    """5e-6 of the rms of each result: the sums are taken in blocks."""
    nets = pair(kind, 28, units)
    x, hx = torch.randn(steps, batch, 28), states(kind, 1, batch, units)
    expected, actual = (outcome(net, x, hx, d) for net, d in zip(nets, (torch.float64, torch.float32), strict=True))
    for name, value in expected.items():
        error = (actual[name] - value).square().mean().sqrt() / value.square().mean().sqrt()
        assert error < 5e-6, (name, error)


@pytest.mark.best_isa
@pytest.mark.parametrize("kind", KINDS)
def test_thread_count_changes_no_bit(kind, device):
    before = torch.get_num_threads()
    for sizes, shape in (
        ((28, 40), (9, 70, 28)),
        ((6, 33), (40, 3, 6)),
        ((28, 96), (30, 1, 28)),
        ((90, 300), (2, 7, 90)),
    ):
        _, net = pair(kind, *sizes, num_layers=2, bidirectional=True)
        found, x = [], torch.randn(shape)
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                found.append(outcome(net, x, None, torch.float32))
        finally:
            torch.set_num_threads(before)
        for other in found[1:]:
            assert all(torch.equal(other[name], value) for name, value in found[0].items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_carries_on(kind):
    """Sequences in parts, each from the state that the one before left, are the sequences in one."""
    _, net = pair(kind, 5, 19, num_layers=2)
    x = torch.randn(12, 3, 5)
    whole, last = net(x)
    first, state = net(x[:7])
    second, state = net(x[7:], state)
    assert torch.equal(torch.cat([first, second]), whole)
    assert all(map(torch.equal, flat(state), flat(last)))


@pytest.mark.parametrize("kind", KINDS)
def test_far_ends(kind, device):
    """Sums of any size end in 0, 1 or -1; a nan stays in its sequence."""
    theirs, ours = pair(kind, 3, 9)
    for scale in (50.0, 1e4, 1e30):
        x = torch.randn(2, 4, 3) * scale
        assert_close(ours(x)[0], theirs(x.double())[0].float().double(), torch.float32, scale=5)
    x = torch.randn(2, 4, 3)
    x[0, 1, 2] = float("nan")
    output = ours(x)[0]
    assert output[:, 1].isnan().all()
    assert output[:, [0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_between_layers(kind):
    """Of the first layer's outputs some are dropped in training, none of the last's, and none in evaluation."""
    _, net = pair(kind, 5, 9, num_layers=2, dropout=1.0)
    x = torch.randn(4, 3, 5)
    assert torch.equal(net(x)[0], net(2 * x)[0])  # all that the second layer sees is 0
    assert not torch.equal(net.eval()(x)[0], net(2 * x)[0])
    net.train().dropout = 0.5
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(net(x)[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_batch(kind):
    nets = pair(kind, 5, 9, num_layers=2)
    compare(kind, nets, torch.randn(6, 5), states(kind, 2, 9))


# ---- gradients


def arguments(kind, *, bias=True, dtype=torch.float64, requires_grad=True):
    """input, hidden, cell, weight_ih, weight_hh, bias_ih, bias_hh of three units, two features, two sequences."""
    gates = {"gru": 3, "lstm": 4}.get(kind, 1) * 3
    shapes = [(3, 2, 2), (2, 3), (2, 3), (gates, 2), (gates, 3), (gates,), (gates,)]
    found = [torch.randn(s, dtype=dtype, requires_grad=requires_grad) for s in shapes]
    if kind != "lstm":
        found[2] = None
    return found if bias else [*found[:5], None, None]


def one(kind, reverse=False, batch_sizes=None):
    return lambda *tensors: recurrent.run_layer(torch.ops.pydl, kind, tensors, batch_sizes, reverse)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, reverse, packed):
    tensors, sizes = arguments(kind), None
    if packed:
        sizes = torch.tensor([2, 2, 1])
        tensors[0] = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    call = one(kind, reverse, sizes)
    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_only_gradients_asked_for(kind):
    """Each tensor alone, and each output alone: the gradients are those of all together."""
    tensors = arguments(kind)
    given = [i for i, t in enumerate(tensors) if t is not None]
    outputs = one(kind)(*tensors)
    for y in outputs:
        expected = torch.autograd.grad(y.sin().sum(), [tensors[i] for i in given], retain_graph=True)
        for i, gradient in zip(given, expected, strict=True):
            alone = [t if t is None else t.detach().requires_grad_(j == i) for j, t in enumerate(tensors)]
            y_alone = one(kind)(*alone)[[o is y for o in outputs].index(True)]
            assert_close(torch.autograd.grad(y_alone.sin().sum(), alone[i])[0], gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_gradients(kind):
    tensors = [t for t in arguments(kind)]
    output = one(kind)(*tensors)[0]
    grads, leaves = torch.randn(3, *output.shape).double(), [t for t in tensors if t is not None]
    batched = torch.autograd.grad(output, leaves, grads, is_grads_batched=True, retain_graph=True)
    for i, g in enumerate(grads):
        for together, alone in zip(batched, torch.autograd.grad(output, leaves, g, retain_graph=True), strict=True):
            assert_close(together[i], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_gradients_where_one_tensor_is_made_from_another(kind):
    """A penalty on the gradient, with a state that depends on the input."""
    found = []
    for net in pair(kind, 4, 4, dtype=torch.float64):
        x = torch.linspace(-1, 1, 24).double().view(3, 2, 4).requires_grad_()
        state = x.mean(0, keepdim=True).sin()
        output, _ = net(x, (state, state) if kind == "lstm" else state)
        (gradient,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), [x, *net.parameters()]))
    for p, q in zip(*found, strict=True):
        assert_close(q, p)


@pytest.mark.parametrize(
    "written", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "input", "hx", "output"]
)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_written_to_between_forward_and_backward(kind, frozen, written):
    """What torch lets one write to may be written to, and the gradients are those of before; the rest is refused."""
    found = []
    for net in pair(kind, 5, 5, dtype=torch.float64):
        net.weight_ih_l0.requires_grad_(not frozen)
        x, state = torch.linspace(-1, 1, 40).double().view(4, 2, 5), torch.ones(1, 2, 5).double()
        leaves = [t.requires_grad_() for t in (x, state)]
        x, state = (t * 1.0 for t in leaves)
        output, _ = net(x, (state, state * 1.0) if kind == "lstm" else state)
        with torch.no_grad():
            tensors = {"input": x, "hx": state, **dict(net.named_parameters())}
            if written != "output":
                tensors[written].mul_(2)
        loss = (output.add_(1) if written == "output" else output).sum()
        try:
            found.append(torch.autograd.grad(loss, [*leaves, *(p for p in net.parameters() if p.requires_grad)]))
        except RuntimeError as error:
            if not re.search("modified by an inplace operation|has been modified inplace", str(error)):
                raise
            found.append(None)
    if found[0] is None and written in ("output", "input", "hx"):
        return  # ours may know the gradient where torch refuses
    assert (found[0] is None) == (found[1] is None)
    for p, q in zip(*(f or () for f in found), strict=True):
        assert_close(q, p)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved(kind):
    """Only what the formulas need, and nothing where no gradient follows."""
    tensors = arguments(kind, dtype=torch.float32)
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t):
        one(kind)(*tensors)
    own = {"gru": [(6, 4, 3)], "lstm": [(6, 5, 3)]}.get(kind, [(0,)])
    assert sorted(shapes) == sorted([tuple(t.shape) for t in tensors[:5] if t is not None] + own)
    with torch.no_grad():
        assert torch.ops.pydl.recurrent_forward(*tensors, None, kind, False, False)[3].numel() == 0


# ---- beside torch


@pytest.mark.parametrize("kind", KINDS)
def test_forms_of_the_functions(kind):
    """By position and by name, of a tensor and of a packed sequence."""
    theirs, ours = getattr(torch, kind), getattr(pydl.functional, kind)
    net, x, hx = KINDS[kind][0](5, 4, **KINDS[kind][1]), torch.randn(4, 3, 5), states(kind, 1, 3, 4)
    params = net._flat_weights
    packed = torch.randn(6, 5), torch.tensor([3, 2, 1])
    options = {"has_biases": True, "num_layers": 1, "dropout": 0.0, "train": True, "bidirectional": False}
    with torch.no_grad():
        for args, kwargs in (
            ((x, hx, params, *options.values(), False), {}),
            ((x, hx, params), options | {"batch_first": False}),
            ((*packed, hx, params, *options.values()), {}),
            ((*packed, hx), {"params": params} | options),
        ):
            with torch.profiler.profile() as profiler:
                actual = ours(*args, **kwargs)
            assert any(event.key == "pydl::recurrent_forward" for event in profiler.key_averages())
            for p, q in zip(actual, theirs(*args, **kwargs), strict=True):
                torch.testing.assert_close(p, q)


TORCHS = {
    "no sequences": lambda net: net(torch.randn(4, 0, 5)),
    "no steps": lambda net: net(torch.randn(0, 2, 5)),
    "another width": lambda net: net(torch.randn(4, 2, 6)),
    "another state": lambda net: net(torch.randn(4, 2, 5), torch.zeros(1, 3, 9)),
    "four dimensions": lambda net: net(torch.randn(4, 2, 5, 1)),
    "a state of another dtype": lambda net: net(torch.randn(4, 2, 5), torch.zeros(1, 2, 9).double()),
    "input of another dtype": lambda net: net(torch.randn(4, 2, 5).double()),
    "a list": lambda net: net([1.0]),
    "meta": lambda net: copy.deepcopy(net).to("meta")(torch.empty(4, 2, 5, device="meta")),
}


def attempt(call, net):
    try:
        return flat(call(net))
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("case", TORCHS)
@pytest.mark.parametrize("kind", KINDS)
def test_torchs_to_serve_or_to_refuse(kind, case):
    theirs, ours = pair(kind, 5, 9)
    expected, actual = (attempt(TORCHS[case], net) for net in (theirs.float(), ours))
    if isinstance(expected, tuple):
        assert actual == expected
        return
    for p, q in zip(actual, expected, strict=True):
        assert (p.shape, p.dtype, p.device) == (q.shape, q.dtype, q.device)
        assert p.is_meta or torch.equal(p, q)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_and_transforms(kind):
    theirs, ours = pair(kind, 5, 9)
    theirs, x = theirs.float(), torch.randn(3, 4, 2, 5)

    def parameters_of(net):
        return {name: p.detach() for name, p in net.named_parameters()}

    def run(net, x):
        return torch.func.functional_call(net, parameters_of(net), (x,))[0].sum()

    a, b = (torch.func.grad(lambda x, n=net: run(n, x))(x[0]) for net in (theirs, ours))
    assert torch.equal(a, b)
    for net in (theirs, ours):
        with pytest.raises(RuntimeError, match="Batching rule not implemented"):
            torch.func.vmap(lambda x, n=net: run(n, x))(x)
    if kind != "lstm":  # which oneDNN has in bfloat16 on some CPUs alone
        with torch.autocast("cpu", torch.bfloat16):
            a, b = (net(x[0])[0] for net in (theirs, ours))
        assert a.dtype == b.dtype
        assert torch.equal(a, b) if kind != "gru" else torch.equal(b, ours(x[0])[0])
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind):
    ops = torch.ops.pydl
    for sizes in (None, torch.tensor([2, 2, 1])):
        tensors = arguments(kind, dtype=torch.float32)
        tests = ("test_schema", "test_faketensor", "test_autograd_registration")
        if sizes is not None:
            tensors[0] = torch.randn(5, 2, requires_grad=True)
        elif kind == "gru":
            tests = torch.library.opcheck.__kwdefaults__["test_utils"]  # with what compiles, which takes seconds
        torch.library.opcheck(ops.recurrent_forward, (*tensors, sizes, kind, False, True), test_utils=tests)
        detached = [t if t is None else t.detach() for t in tensors]
        output, hidden, _, saved = ops.recurrent_forward(*detached, sizes, kind, True, True)
        grads = output, None, torch.ones_like(hidden) if kind == "lstm" else None
        torch.library.opcheck(
            ops.recurrent_backward,
            (*grads, *detached[:5], output, saved, sizes, kind, True, True, True, True, False, True),
            test_utils=tests,
        )


REFUSED = {
    "kind": (lambda a: a | {"kind": "elman"}, ValueError, "kind to be rnn_tanh, rnn_relu, gru or lstm, got 'elman'"),
    "rank": (lambda a: a | {"input": torch.ones(2, 2)}, RuntimeError, r"input to be 3-D, got shape \(2, 2\)"),
    "state": (
        lambda a: a | {"hidden": torch.ones(3, 3)},
        RuntimeError,
        r"hidden to be of shape \(2, 3\), got \(3, 3\)",
    ),
    "dtype": (lambda a: a | {"hidden": torch.ones(2, 3).double()}, RuntimeError, "hidden to be of the dtype of input"),
    "cell": (lambda a: a | {"cell": torch.ones(2, 3)}, RuntimeError, "cell to be given for lstm alone"),
    "sizes": (
        lambda a: a | {"input": torch.ones(3, 2), "batch_sizes": torch.tensor([1, 2])},
        RuntimeError,
        r"batch_sizes to be positive and not to grow, got \(1, 2\)",
    ),
    "rows": (
        lambda a: a | {"input": torch.ones(3, 2), "batch_sizes": torch.tensor([2, 2])},
        RuntimeError,
        r"input to have as many rows as batch_sizes say, 4, got shape \(3, 2\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    names = ("input", "hidden", "cell", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
    tensors = dict(zip(names, arguments("gru", dtype=torch.float32, requires_grad=False), strict=True))
    tensors |= {"batch_sizes": None, "kind": "gru", "reverse": False, "save": False}
    change, error, message = REFUSED[case]
    with pytest.raises(error, match=f"recurrent: expected {message}"):
        torch.ops.pydl.recurrent_forward(**change(tensors))


@pytest.mark.parametrize("kind", KINDS)
def test_compile(kind):
    tensors = arguments(kind, dtype=torch.float32)

    def step(*tensors):
        return recurrent.run_layer(torch.ops.pydl, kind, tensors, None, False)[0] * 2

    found = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = [t if t is None else t.detach().clone().requires_grad_() for t in tensors]
        y = function(*leaves)
        found.append((y, *torch.autograd.grad(y.sin().sum(), [t for t in leaves if t is not None])))
    for a, e in zip(*found, strict=True):
        torch.testing.assert_close(a, e)


# ---- a model


TEXT = "the time machine by h g wells, the time traveller for so it will be convenient to speak of him " * 4


class CharacterModel(nn.Module):
    def __init__(self, kind):
        super().__init__()
        cls, own = KINDS[kind]
        self.rnn = cls(28, 32, **own)
        self.output = nn.Linear(32, 28)

    def forward(self, x, state):
        y, state = self.rnn(nn.functional.one_hot(x, 28).to(self.output.weight.dtype), state)
        return self.output(y), state


@pytest.mark.parametrize("kind", KINDS)
def test_a_character_model_learns_as_torchs(kind):
    """20 steps of gradient descent with clipping, the state carried over: losses agree with float64's."""
    characters = {c: i for i, c in enumerate(sorted(set(TEXT)))}
    text = torch.tensor([characters[c] for c in TEXT])[: 8 * 44].view(8, 44).t()
    net = CharacterModel(kind)
    losses = []
    for model in (copy.deepcopy(net).double(), pydl.swap(net)):
        optimizer, state, found = torch.optim.SGD(model.parameters(), 1.0), None, []
        for step in range(20):
            first = step % 4 * 10
            state = mapped(state, torch.Tensor.detach)
            scores, state = model(text[first : first + 10], state)
            loss = nn.functional.cross_entropy(scores.flatten(0, 1), text[first + 1 : first + 11].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            found.append(loss.item())
        losses.append(found)
    assert losses[0][-1] < 0.9 * losses[0][0]
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-5, atol=0)


@pytest.mark.parametrize("reverse_too", [False, True])
def test_flops_are_torchs(reverse_too):
    """Of a GRU, which torch counts by its products; its LSTM is one op that it has no formula for."""
    counts = []
    for swap in (False, True):
        layer = nn.GRU(6, 5, num_layers=2, bidirectional=reverse_too)
        if swap:
            pydl.swap(layer)
        x, state = (
            torch.randn(4, 3, 6, requires_grad=True),
            torch.randn(4 if reverse_too else 2, 3, 5, requires_grad=True),
        )
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            layer(x, state)[0].sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
