"""GPT: its options, the window and its cache, weights from files, and runs from the command line."""

import math
import re

import pytest
import torch
from gpt2 import GPT2
from runs import assert_same_state, command_line, no_pictures, numbers, one_thread, run  # noqa: F401  (fixtures)

import pydl as package
from pydl import models, train
from pydl.errors import CheckpointError, MissingExtra, OptionError
from pydl.text import continued
from pydl.training import weights
from pydl.training.config import Config

SMALL = {"hidden": 16, "layers": 2, "heads": 4, "positions": 12}
VARIANTS = {
    "gpt-2": {},
    "rotary": {"rotary": 1},
    "rms": {"norm": "rms"},
    "swiglu": {"swiglu": 1},
    "grouped": {"kv_heads": 2},
    "all": {"rotary": 1, "norm": "rms", "swiglu": 1, "kv_heads": 1},
}
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def small(novel, options=None, **more):
    options = {**SMALL, **(options or {})}
    return {"data": "text", "root": novel, "batch_size": 4, "num_steps": 12, **more, "options": options}


def net(options=None, **more):
    """A small model with weights large enough that every layer counts."""
    torch.manual_seed(0)
    model = models.get("gpt", vocab_size=9, **{**SMALL, **(options or {}), **more}).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@variants
def test_token_by_token_from_the_cache_is_the_whole_at_once(options):
    model, tokens = net(options), torch.randint(9, (2, 12))
    with torch.no_grad():
        whole, _ = model(tokens)
        parts, state = [], None
        for step in range(12):
            logits, state = model(tokens[:, step : step + 1], state)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert (whole.flatten(0, 1).std(0) > 0.1).all()
    kv_heads = options.get("kv_heads", 4)
    assert [tuple(t.shape) for t in state] == [(2, 12)] + [(2, kv_heads, 12, 4)] * 4


@variants
def test_twenty_steps_agree_with_torchs(options, novel):
    config = Config("gpt", **small(novel, {"dropout": 0.0, **options}, clip=0.1, optimizer="sgd", lr=1.0))
    ours, torchs = train.learners(config.resolved(), ("cpu", "torch"))
    for one in (ours, torchs):
        one.run(20)
    torch.testing.assert_close(ours._losses[:20], torchs._losses[:20], rtol=1e-5, atol=1e-5)
    assert ours._losses[19] < ours._losses[0]
    for p, q in zip(ours.model.parameters(), torchs.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    assert ours.evaluate()[0] == pytest.approx(torchs.evaluate()[0], rel=1e-5)
    for row in package.report(ours.model).rows:
        assert row.reason == "" or row.reason.startswith("pydl has no kernel"), row


def test_a_full_window_goes_on_from_its_last_half():
    model, tokens = net(), torch.randint(9, (1, 17))
    with torch.no_grad():
        _, state = model(tokens[:, :12])
        for step in range(12, 17):
            logits, state = model(tokens[:, step : step + 1], state)
            first = 6  # of the window: the last half of what was full
            torch.testing.assert_close(logits, model(tokens[:, first : step + 1])[0][:, -1:])
            assert torch.equal(state[0], tokens[:, first : step + 1])
        logits, _ = model(tokens[:, 5:15], model(tokens[:, :5])[1])  # 15 tokens; 2 of those before fit
        torch.testing.assert_close(logits, model(tokens[:, 3:15])[0][:, 2:])
        logits, _ = model(tokens[:, 5:], model(tokens[:, :5])[1])  # none fits
        torch.testing.assert_close(logits, model(tokens[:, 5:])[0])
        with pytest.raises(ValueError, match="gpt: expected at most 12 tokens at a time, got 13"):
            model(tokens[:, :13])
        assert len(continued(model, [3], 40)) == 40


def test_rotary_scores_depend_on_distances_alone():
    rotary = net({"rotary": 1}).blocks[0].attention.rotary
    q, k = torch.randn(1, 1, 1, 4), torch.randn(1, 1, 1, 4)
    near, far = ((rotary(q, place) * rotary(k, place - 2)).sum() for place in (3, 11))
    torch.testing.assert_close(near, far)
    assert abs(near - (rotary(q, 3) * rotary(k, 2)).sum()) > 1e-3
    torch.testing.assert_close(rotary(q, 7).norm(), q.norm())


def test_grouped_queries_are_heads_that_share_keys():
    model, whole = net({"kv_heads": 2}), net()
    state = model.state_dict()
    for block in range(2):
        for kind in ("weight", "bias"):
            name = f"blocks.{block}.attention.qkv.{kind}"
            q, k, v = state[name].split([16, 8, 8])
            k, v = (part.unflatten(0, (2, 4)).repeat_interleave(2, 0).flatten(0, 1) for part in (k, v))
            state[name] = torch.cat([q, k, v])
    whole.load_state_dict(state)
    tokens = torch.randint(9, (2, 10))
    torch.testing.assert_close(model(tokens)[0], whole(tokens)[0])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"hidden": 0}, "expected hidden to be at least 1, got 0"),
        ({"heads": 3}, "expected heads to divide hidden, 128, got 3"),
        ({"kv_heads": 3}, "expected kv_heads to divide heads, 4, got 3"),
        ({"hidden": 12, "rotary": 1}, "expected an even width of each head with rotary, got 3"),
        ({"norm": "batch"}, "expected norm to be one of layer, rms, got 'batch'"),
    ],
)
def test_bad_options(options, message, tmp_path, novel):
    with pytest.raises(ValueError, match=f"gpt: {message}"):
        models.get("gpt", **options)
    with pytest.raises(OptionError, match=f"--option .*: gpt: {message}"):
        run(tmp_path / "out", "gpt", data="text", root=novel, options=options)


def test_what_does_not_fit_the_window_is_said_in_a_sentence(tmp_path, novel, pydl):
    for options, message in (
        ({"partition": "sequential"}, "--partition: expected random for gpt, got sequential"),
        ({"num_steps": 13}, "--num-steps: expected at most gpt's 12 positions, got 13; --option positions=13"),
    ):
        with pytest.raises(OptionError, match=message):
            run(tmp_path / "out", "gpt", **{**small(novel), **options})
    run(tmp_path / "run", "gpt", **small(novel, max_steps=1))
    code, out, err = pydl("generate", tmp_path / "run", "thirteen long")
    assert (code, out, err) == (2, "", "pydl: PREFIX: expected at most 12 tokens, got 13\n")
    code, out, err = pydl("generate", tmp_path / "run", "twelve long ", "--length=30", "--top-p=0.9")
    assert (code, len(out)) == (0, 43)
    assert re.fullmatch(r"30 tokens, [\d,]+ tokens/s\n", err)
    code, out, err = pydl("generate", tmp_path / "run", "twelve", "--top-p=0")
    assert (code, err) == (2, "pydl: --top-p: expected a probability above 0, got 0.0\n")


def reference():
    torch.manual_seed(1)
    return GPT2(vocab_size=9, **SMALL)


def published(model):
    """The state_dict as GPT-2's files have it: with the masks of attention, and without the last layer's copy."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    for block in range(2):
        state[f"transformer.h.{block}.attn.bias"] = torch.ones(1, 1, 12, 12).tril()
        state[f"transformer.h.{block}.attn.masked_bias"] = torch.tensor(-1e4)
    return state


@pytest.mark.parametrize("form", ["published", "whole", "bare", "own"])
def test_gpt2s_weights_from_a_file(form, tmp_path):
    theirs, ours, path = reference(), net(), tmp_path / "gpt2.pt"
    state = published(theirs)
    if form == "whole":  # with the tied last layer
        state = theirs.state_dict()
    elif form == "bare":
        state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    elif form == "own":
        state = ours.own_names(state)
    torch.save(state, path)
    weights.load(ours, path)
    tokens = torch.randint(9, (2, 12))
    torch.testing.assert_close(ours(tokens)[0], theirs(tokens))
    assert theirs(tokens).std() > 0.5


def test_safetensors(tmp_path):
    theirs, path = reference(), tmp_path / "gpt2.safetensors"
    try:
        from safetensors.torch import save_file
    except ImportError:
        path.write_bytes(b"never read")
        with pytest.raises(MissingExtra, match=r"--weights gpt2.safetensors needs safetensors, .*\[weights\]"):
            weights.load(net(), path)
        return
    save_file({name: tensor.contiguous() for name, tensor in published(theirs).items()}, path)
    ours, tokens = net(), torch.randint(9, (2, 12))
    weights.load(ours, path)
    torch.testing.assert_close(ours(tokens)[0], theirs(tokens))
    path.write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="not a readable file of weights"):
        weights.load(net(), path)


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "w.pt"
    for change, message in (
        (lambda s: s.pop("transformer.h.1.ln_2.bias"), "it lacks blocks.1.norm2.bias"),
        (lambda s: s.update(extra=torch.ones(1)), "it has extra, which the model does not know"),
        (
            lambda s: [s.pop(name) for name in list(s) if ".h.1." in name],
            r"it lacks blocks.1.norm1.weight, .* and 7 more",
        ),
        (
            lambda s: s.update({"transformer.wte.weight": torch.ones(10, 16)}),
            r"expected embedding.weight to be of shape \(9, 16\), got \(10, 16\)",
        ),
        (lambda s: s.update({"lm_head.weight": torch.ones(9, 16)}), "it has lm_head.weight, which"),  # not tied
        (lambda s: s.update(note="text"), "expected a state_dict, names with tensors, got something else"),
    ):
        state = published(reference())
        change(state)
        torch.save(state, path)
        with pytest.raises(CheckpointError, match=rf"w\.pt: .*{message}"):
            weights.load(net(), path)
    path.write_text("x")
    with pytest.raises(CheckpointError, match="not a readable file of weights: the file was cut off or damaged"):
        weights.load(net(), path)
    with pytest.raises(CheckpointError, match=r"none\.pt: there is no such file of weights"):
        weights.load(net(), tmp_path / "none.pt")


def test_a_run_begins_with_the_weights_of_a_file_and_resumes_without_it(tmp_path, novel):
    result, _ = run(tmp_path / "first", "gpt", **small(novel, max_steps=30, epochs=1, lr=0.01))
    torch.save(result.model.state_dict(), tmp_path / "w.pt")
    options = small(novel, epochs=2, weights=str(tmp_path / "w.pt"), lr=1e-9, warmup=0)
    again, _ = run(tmp_path / "again", "gpt", max_steps=5, **options)
    assert again.history[0]["loss"] < 0.95 * math.log(27)
    for p, q in zip(again.model.parameters(), result.model.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    (tmp_path / "w.pt").unlink()
    run(None, resume=tmp_path / "again", max_steps=8)


@pytest.mark.parametrize("stop", [10, 40])  # an epoch has 28 steps
def test_resumed_equals_unbroken_bit_for_bit(tmp_path, novel, stop):
    options = small(novel, {"dropout": 0.1}, epochs=2, accumulate=2, batch_size=16)
    unbroken, _ = run(tmp_path / "unbroken", "gpt", **options)
    run(tmp_path / "parts", "gpt", max_steps=stop, **options)
    result, _ = run(None, resume=tmp_path / "parts", max_steps=None)
    assert numbers(result.history) == numbers(unbroken.history)
    assert_same_state(tmp_path / "unbroken", tmp_path / "parts")


@pytest.mark.parametrize("options", [{}, VARIANTS["all"]], ids=["gpt-2", "all"])
def test_amp_beside_torchs(tmp_path, novel, options):
    result, text = run(
        tmp_path, "gpt", **small(novel, {"dropout": 0.0, **options}, amp=True, compare=True, max_steps=12)
    )
    row = result.history[-1]
    assert row["test_perplexity"] == pytest.approx(row["torch_test_perplexity"], rel=3e-2)
    assert "test perplexity" in text
