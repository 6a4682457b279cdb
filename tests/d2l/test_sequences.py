"""Text, translation, attention and recurrent nets, by values that are known."""

import itertools
import math
import random

import pytest
import torch
from torch import nn

from pydl import d2l
from pydl.d2l import spelling, text


def test_prose_needs_no_download(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYDL_DATA", raising=False)
    monkeypatch.setattr("pydl.d2l.images._said", set())
    lines = d2l.read_time_machine()
    assert capsys.readouterr().out.count("Python's reference manual") == 1
    assert set("".join(lines)) == set(" abcdefghijklmnopqrstuvwxyz")
    assert sum(map(len, lines)) > 200_000
    paragraphs = list(text._manual())
    assert len(lines) == len(paragraphs)
    corpus, vocab = d2l.load_corpus_time_machine()
    assert len(vocab) == 28
    assert len(corpus) == sum(map(len, lines))
    assert "".join(vocab.to_tokens(corpus[:100])) == "".join(lines)[:100]
    assert d2l.load_corpus_time_machine(1000)[0] == corpus[:1000]


def test_paragraphs_come_once(monkeypatch):
    import pydoc_data.topics

    monkeypatch.setattr(pydoc_data.topics, "topics", {"A": "one\ntwo\n\nthree", "B": "one\n  two\n \n\nfour"})
    assert list(text._manual()) == ["one", "two", "three", "four"]


def test_the_novel_is_read_where_it_is(monkeypatch, tmp_path, capsys):
    (tmp_path / "timemachine.txt").write_text("The Time Machine, by H. G. Wells [1898]\n\n\nI\n")
    monkeypatch.setenv("PYDL_DATA", str(tmp_path))
    assert d2l.read_time_machine() == ["the time machine by h g wells", "", "", "i"]
    assert capsys.readouterr().out == ""


def test_tokens_and_their_numbers():
    lines = ["a b b", "", "c b a"]
    tokens = d2l.tokenize(lines)
    assert tokens == [["a", "b", "b"], [], ["c", "b", "a"]]
    assert d2l.tokenize(["ab c"], "char") == [["a", "b", " ", "c"]]
    with pytest.raises(ValueError, match="expected token to be word or char, got 'line'"):
        d2l.tokenize(lines, "line")
    assert d2l.count_corpus(tokens) == d2l.count_corpus(["a", "b", "b", "c", "b", "a"]) == {"a": 2, "b": 3, "c": 1}
    assert d2l.count_corpus([]) == {}
    vocab = d2l.Vocab(tokens, min_freq=2, reserved_tokens=["<pad>"])
    assert vocab.idx_to_token == ["<unk>", "<pad>", "b", "a"]
    assert vocab.token_freqs == [("b", 3), ("a", 2), ("c", 1)]
    assert (len(vocab), vocab.unk, vocab["a"], vocab["c"], vocab[["b", "x"]]) == (4, 0, 3, 0, [2, 0])
    assert vocab.to_tokens([2, 3]) == vocab.to_tokens(torch.tensor([2, 3])) == ["b", "a"]
    assert vocab.to_tokens(1) == vocab.to_tokens(torch.tensor(1)) == "<pad>"
    assert len(d2l.Vocab()) == 1


@pytest.mark.parametrize("batch_size, num_steps, length", [(2, 5, 35), (3, 4, 100), (1, 1, 2), (4, 3, 12)])
@pytest.mark.parametrize("seed", range(3))
def test_stretches_of_a_corpus(batch_size, num_steps, length, seed):
    torch.manual_seed(seed)
    corpus = list(range(length))
    batches = list(d2l.seq_data_iter_random(corpus, batch_size, num_steps))
    seen = []
    for X, Y in batches:
        assert X.shape == Y.shape == (batch_size, num_steps)
        assert torch.equal(X + 1, Y)  # a token further
        assert torch.equal(X - X[:, :1], torch.arange(num_steps).expand_as(X))  # neighbours
        seen += X.flatten().tolist()
    assert len(seen) == len(set(seen))  # none twice
    begin = min(seen, default=0)
    assert begin < 2 * num_steps * batch_size
    assert len(batches) >= (length - num_steps) // num_steps // batch_size
    batches = list(d2l.seq_data_iter_sequential(corpus, batch_size, num_steps))
    for (X, Y), (following, _) in itertools.pairwise(batches):
        assert torch.equal(X + 1, Y)
        assert torch.equal(X[:, -1] + 1, following[:, 0])  # a row goes on
    assert len(batches) == (length - 1 - int(batches[0][0][0, 0])) // batch_size // num_steps if batches else True


def test_loaders_begin_anew():
    torch.manual_seed(0)
    for use_random_iter in (False, True):
        loader, vocab = d2l.load_data_time_machine(4, 10, use_random_iter, max_tokens=500)
        assert len(vocab) == 28
        first, second = list(loader), list(loader)
        assert len(first) in (10, 11, 12)
        assert abs(len(first) - len(second)) <= 1
        assert all(X.max() < 28 for X, _ in first)


@pytest.mark.parametrize("number, english, french", [
    (0, "zero", "zéro"),
    (16, "sixteen", "seize"),
    (21, "twenty one", "vingt et un"),
    (71, "seventy one", "soixante et onze"),
    (77, "seventy seven", "soixante dix-sept"),
    (80, "eighty", "quatre vingts"),
    (81, "eighty one", "quatre vingt un"),
    (99, "ninety nine", "quatre vingt dix-neuf"),
    (100, "one hundred", "cent"),
    (200, "two hundred", "deux cents"),
    (201, "two hundred one", "deux cent un"),
    (1000, "one thousand", "mille"),
    (1980, "one thousand nine hundred eighty", "mille neuf cent quatre vingts"),
    (80_200, "eighty thousand two hundred", "quatre vingt mille deux cents"),
    (200_000, "two hundred thousand", "deux cent mille"),
    (300_071, "three hundred thousand seventy one", "trois cent mille soixante et onze"),
])  # fmt: skip
def test_numbers_in_words(number, english, french):
    assert (spelling.english(number), spelling.french(number)) == (english, french)


def test_numbers_are_distinct():
    for words in (spelling.english, spelling.french):
        assert len({words(number) for number in range(10_000)}) == 10_000


def test_pairs_of_sentences(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYDL_DATA", raising=False)
    data_iter, source, target = d2l.load_data_nmt(batch_size=64, num_steps=8)
    assert sum(len(batch[0]) for batch in data_iter) == 600
    for X, X_len, Y, Y_len in data_iter:
        for array, lengths, vocab in ((X, X_len, source), (Y, Y_len, target)):
            assert array.shape[1] == 8
            for row, length in zip(array.tolist(), lengths.tolist(), strict=True):
                assert all(number == vocab["<pad>"] for number in row[length:])
                assert all(number != vocab["<pad>"] for number in row[:length])
                assert length == 8 or row[length - 1] == vocab["<eos>"]
    random.seed(0)
    assert d2l.read_data_nmt() == d2l.read_data_nmt()
    (tmp_path / "data" / "fra-eng").mkdir(parents=True)
    (tmp_path / "data" / "fra-eng" / "fra.txt").write_text("Go.\tVa !\tCC-BY\nHi, you.\tSalut, toi.\tCC-BY\n")
    text = d2l.preprocess_nmt(d2l.read_data_nmt())
    assert d2l.tokenize_nmt(text) == (
        [["go", "."], ["hi", ",", "you", "."]],
        [["va", "!"], ["salut", ",", "toi", "."]],
    )
    assert d2l.tokenize_nmt(text, 1) == ([["go", "."]], [["va", "!"]])
    vocab = d2l.Vocab([["a", "b"]], reserved_tokens=["<pad>", "<bos>", "<eos>"])
    array, lengths = d2l.build_array_nmt([["a"], ["a", "b", "a", "b"]], vocab, 4)
    assert array.tolist() == [[4, 3, 1, 1], [4, 5, 4, 5]]
    assert lengths.tolist() == [2, 4]
    assert d2l.truncate_pad([1, 2, 3], 2, 0) == [1, 2]
    assert d2l.truncate_pad([1, 2, 3], 5, 0) == [1, 2, 3, 0, 0]


@pytest.mark.parametrize("predicted, label, k, score", [
    ("a b c d", "a b c d", 4, 1.0),
    ("a b b c d", "a b c d e f", 2, math.exp(1 - 6 / 5) * (4 / 5) ** 0.5 * (3 / 4) ** 0.25),
    ("a a a a", "a b", 1, (1 / 4) ** 0.5),  # an a of the label counts once
    ("c d", "a b", 1, 0.0),
    ("a", "a b", 2, 0.0),  # no pair of words
    ("", "a", 1, 0.0),
    ("a b", "a b c d", 1, math.exp(-1)),
])  # fmt: skip
def test_bleu(predicted, label, k, score):
    assert d2l.bleu(predicted, label, k) == pytest.approx(score)


def test_masks():
    X = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert d2l.sequence_mask(X, torch.tensor([1, 2])).tolist() == [[1, 0, 0], [4, 5, 0]]
    masked = d2l.sequence_mask(torch.ones(2, 3, 2), torch.tensor([1, 2]), value=-1)
    assert masked[:, :, 0].tolist() == masked[:, :, 1].tolist() == [[1, -1, -1], [1, 1, -1]]


def test_masked_softmax():
    X = torch.randn(2, 2, 4, dtype=torch.float64)
    torch.testing.assert_close(d2l.masked_softmax(X, None), X.softmax(-1))
    found = d2l.masked_softmax(X, torch.tensor([2, 3]))
    for sample, length in ((0, 2), (1, 3)):
        torch.testing.assert_close(found[sample, :, :length], X[sample, :, :length].softmax(-1))
        assert not found[sample, :, length:].any()
    found = d2l.masked_softmax(X, torch.tensor([[1, 3], [0, 4]]))
    assert found[0, 0].tolist() == [1, 0, 0, 0]
    assert found[1, 0].tolist() == [0.25] * 4  # no key at all
    torch.testing.assert_close(found[1, 1], X[1, 1].softmax(-1))
    X.requires_grad_()
    d2l.masked_softmax(X, torch.tensor([0, 3])).sin().sum().backward()
    assert not X.grad[0].any()
    assert X.grad[1, :, :3].all()


def test_masked_loss():
    loss = d2l.MaskedSoftmaxCELoss()
    found = loss(torch.ones(3, 4, 10), torch.ones((3, 4), dtype=torch.long), torch.tensor([4, 2, 0]))
    torch.testing.assert_close(found, math.log(10) * torch.tensor([1, 0.5, 0]))
    pred, label = torch.randn(2, 3, 5, requires_grad=True), torch.tensor([[0, 1, 2], [3, 4, 0]])
    found = loss(pred, label, torch.tensor([1, 3]))
    found.sum().backward()
    each = nn.functional.cross_entropy(pred.detach().permute(0, 2, 1), label, reduction="none")
    torch.testing.assert_close(found.detach(), torch.stack((each[0, 0] / 3, each[1].mean())))
    assert not pred.grad[0, 1:].any()


def test_attention_by_products_and_by_a_net():
    keys, values = torch.ones(2, 10, 2), torch.arange(40.0).reshape(1, 10, 4).repeat(2, 1, 1)
    valid_lens = torch.tensor([2, 6])
    dot = d2l.DotProductAttention(dropout=0.5).eval()
    earlier = d2l.AdditiveAttention(key_size=2, query_size=20, num_hiddens=8, dropout=0.1).eval()
    later = d2l.AdditiveAttention(8, 0.1).eval()
    for attention, width in ((dot, 2), (earlier, 20), (later, 20)):
        found = attention(torch.randn(2, 1, width), keys, values, valid_lens)
        torch.testing.assert_close(found[:, 0], torch.tensor([[2.0, 3, 4, 5], [10, 11, 12, 13]]))  # equal keys: means
        expected = torch.tensor([[0.5] * 2 + [0] * 8, [1 / 6] * 6 + [0] * 4])
        torch.testing.assert_close(attention.attention_weights[:, 0], expected)
        assert not attention.attention_weights.requires_grad
    with pytest.raises(TypeError, match="AdditiveAttention: expected the arguments to be"):
        d2l.AdditiveAttention(1, 2, 3)


def reference_heads(layer, X, Y, lengths):
    mask = torch.arange(Y.shape[1]) < lengths.view(-1, 1, 1, 1)
    q, k, v = (
        linear(t).unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
        for linear, t in ((layer.W_q, X), (layer.W_k, Y), (layer.W_v, Y))
    )
    found = nn.functional.scaled_dot_product_attention(q, k, v, mask)
    return layer.W_o(found.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("arguments", [(100, 100, 100, 100, 5, 0.5), (100, 5, 0.5), (100, 5, 0.5, True)])
def test_several_heads(arguments):
    torch.manual_seed(0)
    layer = d2l.MultiHeadAttention(*arguments).eval()
    X, Y, lengths = torch.randn(2, 4, 100), torch.randn(2, 6, 100), torch.tensor([3, 2])
    found = layer(X, Y, Y, lengths)
    torch.testing.assert_close(found, reference_heads(layer, X, Y, lengths))
    torch.testing.assert_close(layer(X, Y, Y, lengths[:, None].repeat(1, 4)), found)
    assert layer.attention.attention_weights.shape == (10, 4, 6)
    assert (layer.W_q.bias is not None) == (len(arguments) == 4)
    with pytest.raises(ValueError, match="multiple of 3 heads"):
        d2l.MultiHeadAttention(100, 3, 0.5)


def test_heads_and_back():
    X = torch.arange(24.0).reshape(2, 3, 4)
    apart = d2l.transpose_qkv(X, 2)
    assert apart.shape == (4, 3, 2)
    assert apart[1].tolist() == [[2, 3], [6, 7], [10, 11]]  # the second head of the first sample
    assert torch.equal(d2l.transpose_output(apart, 2), X)


@pytest.mark.parametrize("width", [6, 5])
def test_positions(width):
    layer = d2l.PositionalEncoding(width, 0.5, max_len=20).eval()
    found = layer(torch.zeros(1, 10, width))
    for i in (0, 1, 9):
        for column in range(width):
            angle = i / 10000 ** (column // 2 * 2 / width)
            expected = math.cos(angle) if column % 2 else math.sin(angle)
            assert found[0, i, column].item() == pytest.approx(expected, abs=1e-6)
    assert layer.P.shape == (1, 20, width)
    torch.testing.assert_close(layer(torch.ones(2, 10, width)), found.expand(2, -1, -1) + 1)
    assert not layer.state_dict()


@pytest.mark.parametrize("layer", [nn.RNN(5, 7), nn.GRU(5, 7, 2), nn.LSTM(5, 7, 2, bidirectional=True)])
def test_recurrent_model(layer):
    net = d2l.RNNModel(layer, vocab_size=5)
    state = net.begin_state(batch_size=2, device=torch.device("cpu"))
    X = torch.randint(5, (2, 3))
    found, state = net(X, state)
    assert found.shape == (6, 5)
    reference, _ = layer(nn.functional.one_hot(X.T, 5).float())
    torch.testing.assert_close(found, net.linear(reference).flatten(0, 1))
    again, _ = net(X, state)
    assert not torch.equal(found, again)


class Counts:
    """Says that the letter after this one comes next."""

    def __call__(self, X, state):
        return nn.functional.one_hot((X.T.flatten() + 1) % 26, 26).float(), state + 1

    def begin_state(self, batch_size, device):
        return torch.zeros(1)


def test_what_a_model_writes():
    vocab = d2l.Vocab()
    vocab.idx_to_token = list("abcdefghijklmnopqrstuvwxyz")
    vocab.token_to_idx = {letter: number for number, letter in enumerate(vocab.idx_to_token)}
    assert d2l.predict_ch8("wa", 4, Counts(), vocab, torch.device("cpu")) == "wabcde"
    assert d2l.predict_ch8("wa", 0, Counts(), vocab, torch.device("cpu")) == "wa"


def test_perplexity():
    class Uniform(nn.Module):
        """No idea."""

        def __init__(self):
            super().__init__()
            self.scores = nn.Parameter(torch.zeros(4))

        def forward(self, X, state):
            return self.scores.expand(X.numel(), 4), state

        def begin_state(self, batch_size, device):
            return torch.zeros(1)

    net = Uniform()
    batches = [(torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.long))] * 2
    for random_iter in (False, True):
        perplexity, speed = d2l.train_epoch_ch8(
            net,
            batches,
            nn.CrossEntropyLoss(),
            torch.optim.SGD(net.parameters(), lr=0.0),
            torch.device("cpu"),
            random_iter,
        )
        assert perplexity == pytest.approx(4)
        assert speed > 0


def test_encoders_and_decoders():
    for part, call in ((d2l.Encoder(), lambda e: e(1)), (d2l.Decoder(), lambda d: d.init_state(1))):
        with pytest.raises(NotImplementedError):
            call(part)
    with pytest.raises(NotImplementedError):
        d2l.AttentionDecoder().attention_weights  # noqa: B018
    encoder = d2l.Seq2SeqEncoder(vocab_size=10, embed_size=8, num_hiddens=16, num_layers=2).eval()
    output, state = encoder(torch.zeros((4, 7), dtype=torch.long))
    assert (output.shape, state.shape) == ((7, 4, 16), (2, 4, 16))
    torch.testing.assert_close(output[-1], state[-1])


class Echo(d2l.Decoder):
    """Says its state's tokens one by one."""

    attention_weights = "looked"

    def init_state(self, enc_outputs, valid_len):
        assert valid_len.tolist() == [3]
        return enc_outputs[0].tolist()

    def forward(self, X, state):
        return nn.functional.one_hot(torch.tensor([[state[0]]]), 10), state[1:]


class AsItIs(d2l.Encoder):
    def forward(self, X, valid_len):
        return X


@pytest.mark.parametrize("steps, expected, looks", [(5, "b a", 3), (2, "b a", 2)])
def test_translation_ends_at_its_end(steps, expected, looks):
    vocab = d2l.Vocab([["a", "a", "b"]], reserved_tokens=["<pad>", "<bos>", "<eos>"])
    net = d2l.EncoderDecoder(AsItIs(), Echo())
    if steps == 2:
        net.decoder.init_state = lambda X, valid_len: X[0].tolist()
    found, weights = d2l.predict_seq2seq(net, "B A", vocab, vocab, steps, torch.device("cpu"), True)
    assert (found, weights) == (expected, ["looked"] * looks)
