"""pydl train and pydl translate with translators."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from runs import assert_same_state, command_line, no_pictures, numbers, one_thread, pictures, run  # noqa: F401  (fixtures)

import pydl as package
from pydl import backend, data, models, train
from pydl.d2l import spelling
from pydl.errors import CheckpointError, MissingExtra, OptionError
from pydl.text import greedy
from pydl.text.pairs import EOS, PAD
from pydl.training import curves
from pydl.training.config import Config
from pydl.translate import Translator

MODELS = models.names("translation")
# options that keep a step short
SMALL = {name: {"embedding": 8, "hidden": 16, "layers": 1, "dropout": 0.0} for name in ("seq2seq", "seq2seq_attention")}
SMALL["transformer"] = {"width": 16, "hidden": 24, "heads": 2, "blocks": 2, "dropout": 0.0}
FORMS = [*((name, {}) for name in MODELS), ("seq2seq_attention", {"attention": "dot"}), ("seq2seq", {"layers": 2})]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Numbers below 200 in words."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.txt"
    path.write_text(spelling.pairs(200).replace(" .", ""), encoding="utf-8")
    return str(path)


def small(model, file, own=None, **options):
    options = {"batch_size": 16, "num_steps": 8, **options}
    return {"data": "pairs", "root": file, "options": {**SMALL[model], **(own or {})}, **options}


def learners(model, file, backends=("cpu", "torch"), own=None, **options):
    return train.learners(Config(model, **small(model, file, own, **options)).resolved(), backends)


def built(model, own=None, **options):
    return models.get(model, **{"source_vocab_size": 11, "vocab_size": 9, **SMALL[model], **(own or {}), **options})


def batch():
    torch.manual_seed(1)
    source, target = torch.randint(4, 11, (3, 7)), torch.randint(4, 9, (3, 6))
    return source, torch.tensor([7, 3, 5]), target


@pytest.mark.parametrize("model, own", FORMS)
def test_word_by_word_is_as_all_at_once(model, own):
    """What later words are is not seen, nor what stands behind a source's length; rows do not see each other."""
    net, (source, lengths, target) = built(model, own).eval(), batch()
    whole = net(source, lengths, target)
    assert whole.shape == (3, 6, 9)
    state, parts = net.begin(source, lengths), []
    for start, end in ((0, 1), (1, 4), (4, 6)):
        logits, state, _ = net.decode(target[:, start:end], state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    behind = source.clone()
    behind[1, 3:], behind[2, 5:] = PAD, PAD
    assert torch.equal(net(behind, lengths, target), whole)
    torch.testing.assert_close(net(source[1:2, :3], lengths[1:2], target[1:2]), whole[1:2])
    later = target.clone()
    later[:, 3:] = 4
    torch.testing.assert_close(net(source, lengths, later)[:, :3], whole[:, :3])
    rows = torch.tensor([2, 0, 0])
    taken = net.take(net.decode(target[:, :2], net.begin(source, lengths))[1], rows)
    torch.testing.assert_close(net.decode(target[rows, 2:], taken)[0], whole[rows, 2:])
    net.train()
    net(source, lengths, target).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("model, own", FORMS)
def test_weights_are_shares_of_what_is_seen(model, own):
    net, (source, lengths, target) = built(model, own).eval(), batch()
    logits, _, weights = net.decode(target, net.begin(source, lengths), need_weights=True)
    torch.testing.assert_close(logits, net(source, lengths, target))
    if model == "seq2seq":
        assert weights is None
        return
    assert weights.shape == (3, 2 if model == "transformer" else 1, 6, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert torch.count_nonzero(weights[1, ..., 3:]) == torch.count_nonzero(weights[2, ..., 5:]) == 0
    assert weights[1, ..., :3].min() > 0
    assert net.decode(target, net.begin(source, lengths))[2] is None


def test_attention_by_hand():
    """Additive scores as written down, one query and one key at a time."""
    from pydl.models.attention import Additive

    torch.manual_seed(0)
    attention, values, query = Additive(3).requires_grad_(False), torch.randn(2, 4, 3), torch.randn(2, 1, 3)
    context, weights = attention(query, attention.keys(values), values, torch.tensor([4, 2]))
    for row, length in ((0, 4), (1, 2)):
        scores = [
            float(
                attention.score.weight @ torch.tanh(attention.query.weight @ query[row, 0] + attention.key.weight @ k)
            )
            for k in values[row, :length]
        ]
        by_hand = torch.tensor(scores).softmax(0)
        torch.testing.assert_close(weights[row, 0, :length], by_hand)
        torch.testing.assert_close(context[row, 0], by_hand @ values[row, :length])


def test_the_transformer_is_torchs():
    """An encoder and a decoder block with torch's weights give what torch's layers give."""
    from pydl.models.transformer import DecoderBlock, EncoderBlock

    torch.manual_seed(0)
    x, y, lengths = torch.randn(3, 7, 16), torch.randn(3, 5, 16), torch.tensor([7, 2, 4])
    behind = torch.arange(7) >= lengths[:, None]
    options = {"dropout": 0.0, "batch_first": True}
    encoder, decoder = (
        kind(16, 2, 24, **options) for kind in (torch.nn.TransformerEncoderLayer, torch.nn.TransformerDecoderLayer)
    )
    ours, theirs = EncoderBlock(16, 2, 24, 0.0), DecoderBlock(16, 2, 24, 0.0)

    def own(block, layer):
        block.attention.all.load_state_dict(
            {"weight": layer.self_attn.in_proj_weight, "bias": layer.self_attn.in_proj_bias}
        )
        block.attention.output.load_state_dict(layer.self_attn.out_proj.state_dict())
        block.net[0].load_state_dict(layer.linear1.state_dict())
        block.net[2].load_state_dict(layer.linear2.state_dict())
        for i in (1, 2, 3):
            if hasattr(layer, f"norm{i}"):
                getattr(block, f"add{i}").norm.load_state_dict(getattr(layer, f"norm{i}").state_dict())

    own(ours, encoder), own(theirs, decoder)
    cross = decoder.multihead_attn
    for part, rows in ((theirs.cross.query, slice(0, 16)), (theirs.cross.memory, slice(16, 48))):
        part.load_state_dict({"weight": cross.in_proj_weight[rows], "bias": cross.in_proj_bias[rows]})
    theirs.cross.output.load_state_dict(cross.out_proj.state_dict())
    memory = ours(x, lengths)
    seen = ~behind[..., None]
    torch.testing.assert_close(memory * seen, encoder(x, src_key_padding_mask=behind) * seen)
    found = theirs(y, None, theirs.cross.memory(memory), lengths, False)[0]
    future = torch.nn.Transformer.generate_square_subsequent_mask(5)
    expected = decoder(y, memory, tgt_mask=future, memory_key_padding_mask=behind, tgt_is_causal=True)
    torch.testing.assert_close(found, expected)


def test_one_hot_words_are_all_alike_unlike():
    words = torch.nn.functional.one_hot(torch.arange(50)).float()
    cosines = torch.nn.functional.cosine_similarity(words[:, None], words, dim=-1)
    assert torch.equal(cosines, torch.eye(50))


def test_shuffled_words_keep_their_vectors_without_positions():
    from pydl.models.transformer import EncoderBlock, Words

    torch.manual_seed(0)
    words, block = Words(50, 16, 0.0, 20), EncoderBlock(16, 2, 24, 0.0)
    tokens, order, lengths = torch.randint(50, (2, 9)), torch.randperm(9), torch.tensor([9, 9])

    def vectors(tokens, positions):
        x = words(tokens)
        return block(x if positions else x - words.positions[: tokens.shape[1]], lengths)

    torch.testing.assert_close(vectors(tokens[:, order], False), vectors(tokens, False)[:, order])
    assert (vectors(tokens[:, order], True) - vectors(tokens, True)[:, order]).abs().max() > 0.1


@pytest.mark.parametrize(
    "model, options, message",
    [
        ("seq2seq", {"hidden": 0}, "expected hidden to be at least 1, got 0"),
        ("seq2seq_attention", {"attention": "cosine"}, "expected attention to be one of additive, dot, got 'cosine'"),
        ("transformer", {"heads": 3}, "expected width to be a multiple of 3 heads, got 16"),
        ("transformer", {"blocks": 0}, "expected blocks to be at least 1, got 0"),
        ("transformer", {"positions": 8}, "expected at most 8 tokens, one a position, got 9"),
    ],
)
def test_bad_options(model, options, message, tmp_path, file):
    if "positions" not in options:
        with pytest.raises(ValueError, match=f"{model}: {message}"):
            built(model, options)
    with pytest.raises(OptionError, match=f"--option .*: {model}: {message}"):
        run(tmp_path / "out", model, **small(model, file, options))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("model, own", FORMS)
def test_twenty_steps_agree_with_torchs(model, own, smoothing, file):
    if smoothing and own:
        return
    options = {"lr": 0.5, "optimizer": "sgd", "schedule": "constant", "warmup": 0, "label_smoothing": smoothing}
    ours, torchs = learners(model, file, own=own, epochs=2, **options)
    assert ours.backend == "cpu"
    for one in (ours, torchs):
        done = 0
        while done < 20:
            done += min(20 - done, one.epoch_steps - one.step_in_epoch)
            one.run(20)
            if done < 20:
                one.end_epoch()
        one.losses = one._losses[: one.step_in_epoch]
    torch.testing.assert_close(ours.losses, torchs.losses, rtol=1e-5, atol=1e-5)
    for p, q in zip(ours.model.parameters(), torchs.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=2e-5)
    assert ours.evaluate()[0] == pytest.approx(torchs.evaluate()[0], rel=1e-5)
    assert ours.scores() == torchs.scores()


@pytest.mark.parametrize("model", ["seq2seq", "transformer"])
def test_losses_are_means_over_words(tmp_path, file, model):
    options = small(model, file, lr=1e-12, optimizer="sgd", epochs=1, schedule="constant", label_smoothing=0.2)
    result, _ = run(tmp_path, model, **options)
    (one,) = learners(model, file, ["torch"])
    row, net = result.history[0], result.model.eval()

    def mean(pairs, smoothing):
        losses, count = 0.0, 0
        for i in range(len(pairs)):
            inputs, answer = pairs[torch.tensor([i])]
            assert PAD not in answer
            assert answer[0, -1] == EOS
            logits = net(*inputs)[0].double()
            losses += torch.nn.functional.cross_entropy(
                logits, answer[0], reduction="sum", label_smoothing=smoothing
            ).item()
            count += answer.numel()
        return losses / count, count

    loss, count = mean(one.train, 0.2)
    assert row["loss"] == pytest.approx(loss, rel=1e-5)
    assert round(row["tokens_per_second"] * row["seconds"]) == pytest.approx(count, rel=1e-2)
    assert row["test_loss"] == pytest.approx(mean(one.test, 0.0)[0], rel=1e-5)
    assert row["test_perplexity"] == pytest.approx(math.exp(row["test_loss"]))


def test_scores_are_those_of_the_words_that_are_written(file):
    import sacrebleu

    (one,) = learners("seq2seq_attention", file, ["cpu"], {"hidden": 32}, lr=0.02, schedule="constant")
    for _ in range(8):
        one.run(one.epoch_steps)
        one.end_epoch()
    found, right = [], [target for _, target in one.test.texts]
    for i in range(len(one.test)):
        (source, lengths, _), _ = one.test[torch.tensor([i])]
        with backend.use("cpu"):
            (words,) = greedy(one.model.eval(), source, lengths, 10)
        found.append(" ".join(one.vocab.to_tokens(words)))
    scores = one.scores()
    assert scores["exact_match"] == sum(a == b for a, b in zip(found, right, strict=True)) / len(right)
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(found, [right], force=True, tokenize="none").score)
    assert 0 < scores["bleu"] < 100


# an epoch has 12 steps: inside the first one, inside the second one
@pytest.mark.parametrize("model, stop", [("seq2seq", 5), ("seq2seq_attention", 15), ("transformer", 15)])
def test_resumed_equals_unbroken_bit_for_bit(tmp_path, file, model, stop):
    options = small(model, file, {"dropout": 0.1}, epochs=2, label_smoothing=0.1)
    unbroken, _ = run(tmp_path / "unbroken", model, **options)
    assert unbroken.history[0]["step"] == 12
    run(tmp_path / "parts", model, max_steps=stop, **options)
    result, _ = run(None, resume=tmp_path / "parts", max_steps=None)
    assert numbers(result.history) == numbers(unbroken.history)
    assert_same_state(tmp_path / "unbroken", tmp_path / "parts")
    samples = [(tmp_path / name / "samples.txt").read_text() for name in ("unbroken", "parts")]
    assert samples[0] == samples[1]


@pytest.mark.usefixtures("pictures")
def test_what_a_run_shows_and_keeps(tmp_path, file):
    options = small("transformer", file, {"blocks": 1}, compare=True, epochs=2, tensorboard=True, monitor=True)
    result, text = run(tmp_path / "run", "transformer", report=True, **options)
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    for words in ("exact match", "BLEU", "test perplexity", "tokens/s", "× ", "epoch 1/2", "→"):
        assert words.strip() in text
    assert row["bleu"] == pytest.approx(row["torch_bleu"], rel=1e-2, abs=0.5)
    assert row["sample"] in (tmp_path / "run/samples.txt").read_text()
    assert row["sample"].splitlines()[0] in text
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"curves.png", "monitor.png", "attention.png", "samples.txt", "checkpoint.pt", "best.pt"} <= names
    assert "confusion.png" not in names
    kinds = {
        layer["kind"] for layer in json.loads((tmp_path / "run/monitor.jsonl").read_text().splitlines()[0])["layers"]
    }
    assert kinds == {"Embedding", "Dropout", "Linear", "LayerNorm", "ReLU"}
    assert result.history[-1]["exact_match"] <= 1


def test_early_stopping(tmp_path, file):
    options = small("seq2seq", file, epochs=9, patience=1, lr=1e-12, optimizer="sgd", schedule="constant")
    result, text = run(tmp_path / "run", "seq2seq", **options)
    assert len(result.history) < 9
    assert "stopped early: the test loss has not fallen for 1 epochs" in text


def test_what_does_not_fit_is_said_in_a_sentence(tmp_path, file, monkeypatch):
    fits = small("seq2seq", file)
    lm = "expected a language model"
    for model, options, message in (
        ("seq2seq", {**fits, "size": 28}, "--size: expected a model of images to take it, got seq2seq"),
        ("seq2seq", {**fits, "tokens": "char"}, f"--tokens: {lm} to take it, got seq2seq"),
        ("seq2seq", {**fits, "partition": "random"}, f"--partition: {lm} to take it, got seq2seq"),
        ("lenet", {"num_steps": 5}, f"--num-steps: {lm}, a translator, BERT, ELMo, a reward model or a policy"),
        ("gru_lm", {"language": "fr"}, "--language: expected a translator to take it, got gru_lm"),
        ("seq2seq", {**fits, "language": "fr"}, "--language: expected the data set numbers to take it, got pairs"),
        (
            "seq2seq",
            {**fits, "label_smoothing": 1.0},
            "--label-smoothing: expected a number from 0 to below 1, got 1",
        ),
        (
            "weight_decay",
            {"label_smoothing": 0.1},
            "--label-smoothing: expected a model that chooses to take it, got w",
        ),
        ("seq2seq", {"data": "prose"}, "expected a set that fits seq2seq, got 'prose', which is a text"),
        ("lenet", {"data": "pairs", "root": file}, "expected a set that fits lenet, got 'pairs', which is a pairs"),
    ):
        with pytest.raises(OptionError, match=message):
            run(tmp_path / "out", model, **options)
        assert not (tmp_path / "out").exists()
    with pytest.raises(OptionError, match="--folds: expected a data set of examples in memory, got 'pairs'"):
        train.cross_validate(Config("seq2seq", **fits), 3, out=tmp_path / "folds")
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    with pytest.raises(MissingExtra, match=r'BLEU of a translation needs sacrebleu, .* "pydl-kernels\[train\]"'):
        run(tmp_path / "out", "seq2seq", **fits)
    monkeypatch.setitem(__import__("sys").modules, "num2words", None)
    with pytest.raises(MissingExtra, match="data set 'numbers' needs num2words, which is not installed"):
        data.get("numbers")


def test_resume_refuses_another_vocabulary(tmp_path, file):
    run(tmp_path / "run", "seq2seq", **small("seq2seq", file, max_steps=1))
    for side, message in ((0, "the source's vocabulary of the checkpoint"), (1, "the vocabulary of the checkpoint, 3")):
        lines = [line.split("\t") for line in Path(file).read_text(encoding="utf-8").splitlines()]
        for line in lines:
            line[side] = line[side].replace("t", "d")
        (tmp_path / "other.txt").write_text("\n".join("\t".join(line) for line in lines), encoding="utf-8")
        with pytest.raises(CheckpointError, match=f"expected {message}"):
            run(None, resume=tmp_path / "run", root=str(tmp_path / "other.txt"))


@pytest.mark.parametrize("model", MODELS)
def test_translate(pydl, tmp_path, file, model, monkeypatch):
    words = [f"--option={name}={value}" for name, value in SMALL[model].items()]
    words += ["--data=pairs", f"--root={file}", "--batch-size=16", "--num-steps=8", "--epochs=1", "--lr=0.01"]
    code, out, err = pydl("train", model, f"--out={tmp_path}/run", *words)
    assert (code, err) == (0, "")
    assert "exact match" in out

    def text(*more):
        code, out, err = pydl("translate", tmp_path / "run", "One Hundred twenty", *more)
        assert (code, err) == (0, "")
        return out

    assert text() == text("--beam=1") == text("--backend=torch")
    assert len(text("--beam=3").split()) <= 8
    picture = tmp_path / "map.png"
    monkeypatch.setattr(curves, "available", lambda: True)
    code, out, err = pydl("translate", tmp_path / "run", "forty two", f"--attention={picture}")
    if model == "seq2seq":
        assert (code, picture.exists()) == (2, False)
        assert err == "pydl: --attention: expected a model with attention, got a run of seq2seq\n"
    else:
        assert (code, err) == (0, "")
        assert picture.read_bytes().startswith(b"\x89PNG")
    if model == "seq2seq_attention":
        code, _, err = pydl("translate", tmp_path / "run", "forty two", f"--attention={tmp_path}/map.doc")
        assert code == 2
        assert err.startswith("pydl: --attention: expected the name of a picture, such as map.png: ")
        monkeypatch.setattr(curves, "available", lambda: False)
        code, _, err = pydl("translate", tmp_path / "run", "forty two", "--attention=map.png")
        assert code == 1
        assert err.startswith("pydl: a picture needs matplotlib, which is not installed")
    for sentence, more, message in (
        ("forty", ["--beam=0"], "--beam: expected a number of at least 1, got 0"),
        ("", [], "SENTENCE: expected from 1 to 8 words (--num-steps of the run), got 0"),
        ("two " * 9, [], "SENTENCE: expected from 1 to 8 words (--num-steps of the run), got 9"),
        ("forty cows", [], "SENTENCE: expected words out of the run's vocabulary"),
        ("<pad>", [], "SENTENCE: expected words out of the run's vocabulary"),
    ):
        code, out, err = pydl("translate", tmp_path / "run", sentence, *more)
        assert (code, out) == (2, "")
        assert err.startswith(f"pydl: {message}")
        assert err.count("\n") == 1


def test_translate_generate_and_predict_refuse_each_others_runs(pydl, tmp_path, file):
    run(tmp_path / "images", "softmax_regression", max_steps=1)
    run(tmp_path / "pairs", "seq2seq", **small("seq2seq", file, max_steps=1))
    for command, words, message in (
        ("translate", ("images", "two"), "expected the checkpoint of a translator, got one of softmax_regression"),
        ("generate", ("pairs", "two"), "expected the checkpoint of a language model, got one of seq2seq"),
        ("predict", ("pairs", "x.png"), "expected the checkpoint of a classifier, got one of seq2seq"),
    ):
        code, _, err = pydl(command, tmp_path / words[0], *words[1:])
        assert code == 1
        assert message in err


@pytest.mark.parametrize("model, own", FORMS)
def test_layers_that_pydl_has_are_pydls(model, own):
    rows = package.report(built(model, own)).rows
    assert rows
    for row in rows:
        assert row.reason == "", row


@pytest.mark.slow
@pytest.mark.parametrize("model, least", [("seq2seq", 0.9), ("seq2seq_attention", 0.9), ("transformer", 0.95)])
def test_recipes_translate_numbers_that_they_never_saw(tmp_path, model, least):
    torch.set_num_threads(os.cpu_count())
    result, _ = run(tmp_path / "run", model)
    row = result.history[-1]
    assert row["exact_match"] >= least, row
    assert row["bleu"] > 95, row
    translator = Translator(tmp_path / "run")
    right = dict(data.get("numbers").test)
    sources = list(right)[:: len(right) // 40]
    assert sum(translator(source, beam=4) == right[source] for source in sources) >= least * len(sources) - 1
