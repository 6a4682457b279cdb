"""The later edition's language models and translators, by values that are known and beside torch's layers."""

import pytest
import torch
from torch import nn

from pydl import d2l


def test_stretches_of_prose(monkeypatch, tmp_path):
    (tmp_path / "timemachine.txt").write_text("The Time, Machine\n\n" + "ab " * 100)
    monkeypatch.setenv("PYDL_DATA", str(tmp_path))
    data = d2l.TimeMachine(batch_size=8, num_steps=5, num_train=20, num_val=10)
    assert "".join(data.vocab.to_tokens(data.X[0])) == "the t"
    assert "".join(data.vocab.to_tokens(data.Y[0])) == "he ti"
    assert torch.equal(data.X[1:], data.Y[:-1])  # a stretch begins at each character
    train = torch.cat([X for X, _ in data.train_dataloader()])
    assert [len(X) for X, _ in data.train_dataloader()] == [8, 8, 4]
    assert torch.equal(train.unique(dim=0), data.X[:20].unique(dim=0))
    assert torch.equal(torch.cat([Y for _, Y in data.val_dataloader()]), data.Y[20:30])
    corpus, vocab = data.build("He, he!", data.vocab)
    assert vocab is data.vocab
    assert "".join(vocab.to_tokens(corpus)) == "he he "
    assert data.build("zz")[1].idx_to_token == ["<unk>", "z"]


def scratch_of(layer):
    """The same net from scratch."""
    found = d2l.RNNScratch(layer.input_size, layer.hidden_size)
    with torch.no_grad():
        found.W_xh.copy_(layer.weight_ih_l0.T)
        found.W_hh.copy_(layer.weight_hh_l0.T)
        found.b_h.copy_(layer.bias_ih_l0 + layer.bias_hh_l0)
    return found


def test_a_recurrent_net_from_scratch_is_torchs():
    torch.manual_seed(0)
    concise = d2l.RNN(6, 7)
    scratch = scratch_of(concise.rnn)
    X, H = torch.randn(5, 3, 6), torch.randn(3, 7)
    for state, begin in ((None, None), (H, H[None]), ((H,), H[None])):
        outputs, last = scratch(X, state)
        expected, state = concise(X, begin)
        torch.testing.assert_close(torch.stack(outputs), expected)
        torch.testing.assert_close(last, state[0])
    gru = d2l.GRU(6, 7, 2)
    outputs, state = gru(X)
    assert (outputs.shape, state.shape, gru.num_layers) == ((5, 3, 7), (2, 3, 7), 2)


def test_language_models_from_scratch_and_of_layers():
    torch.manual_seed(0)
    vocab = d2l.Vocab(list("abcde"))
    concise = d2l.RNNLM(d2l.RNN(len(vocab), 7), len(vocab))
    X = torch.randint(len(vocab), (3, 4))
    found = concise(X)
    assert found.shape == (3, 4, len(vocab))
    states, _ = concise.rnn(nn.functional.one_hot(X.T, len(vocab)).float())
    torch.testing.assert_close(found, concise.linear(states).transpose(0, 1))
    scratch = d2l.RNNLMScratch(scratch_of(concise.rnn.rnn), len(vocab))
    with torch.no_grad():
        scratch.W_hq.copy_(concise.linear.weight.T)
        scratch.b_q.copy_(concise.linear.bias)
    torch.testing.assert_close(scratch(X), found)
    assert len(list(scratch.parameters())) == 5
    numbers = vocab[["a", "b"]]
    for _ in range(6):  # the likeliest letter after all of them
        numbers.append(int(concise(torch.tensor([numbers]))[0, -1].argmax()))
    expected = "".join(vocab.to_tokens(numbers))
    assert concise.predict("ab", 6, vocab) == scratch.predict("ab", 6, vocab) == expected
    assert concise.predict("ab", 0, vocab) == "ab"


def test_pairs_as_arrays(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYDL_DATA", raising=False)
    data = d2l.MTFraEng(batch_size=8, num_steps=6, num_train=30, num_val=10)
    source, before, lengths, target = data.arrays
    assert source.shape == before.shape == target.shape == (40, 6)
    assert torch.equal(before[:, 1:], target[:, :-1])
    assert (before[:, 0] == data.tgt_vocab["<bos>"]).all()
    assert torch.equal(lengths, (source != data.src_vocab["<pad>"]).sum(1))
    assert [len(batch[0]) for batch in data.train_dataloader()] == [8, 8, 8, 6]
    assert torch.equal(torch.cat([batch[3] for batch in data.val_dataloader()]), target[30:])
    source, before, lengths, target = data.build(["two thousand .", "One."], ["deux mille .", "Un."])
    assert data.src_vocab.to_tokens(source[0]) == ["two", "thousand", ".", "<eos>", "<pad>", "<pad>"]
    assert data.tgt_vocab.to_tokens(before[0]) == ["<bos>", "deux", "mille", ".", "<eos>", "<pad>"]
    assert data.src_vocab.to_tokens(source[1][:3]) == ["one", ".", "<eos>"]  # small letters, marks apart
    assert lengths.tolist() == [4, 3]


class Decoder(d2l.AttentionDecoder):
    """Scores of the next word from the last one and the mean of the source."""

    attention_weights = "looked"

    def __init__(self, vocab_size, hiddens):
        super().__init__()
        self.embedding, self.dense = nn.Embedding(vocab_size, hiddens), nn.Linear(hiddens, vocab_size)

    def init_state(self, enc_all_outputs, *args):
        return enc_all_outputs[0].mean(0)

    def forward(self, X, state):
        return self.dense(self.embedding(X) + state.unsqueeze(1)), state


def make(kind, data, **options):
    torch.manual_seed(0)
    encoder = d2l.Seq2SeqEncoder(len(data.src_vocab), 8, 8, 1)
    return kind(encoder, Decoder(len(data.tgt_vocab), 8), **options)


class OfTheBook(d2l.EncoderDecoder):
    """What the later edition's reader writes himself."""

    def __init__(self, encoder, decoder, tgt_pad, lr):
        super().__init__(encoder, decoder)
        self.save_hyperparameters()

    def validation_step(self, batch):
        self.plot("loss", self.loss(self(*batch[:-1]), batch[-1]), train=False)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def loss(self, Y_hat, Y):
        l = super().loss(Y_hat, Y, averaged=False)  # noqa: E741  (the book's name)
        mask = (Y.reshape(-1) != self.tgt_pad).type(torch.float32)
        return (l * mask).sum() / mask.sum()


def test_translators_of_both_editions(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    data = d2l.MTFraEng(batch_size=32, num_steps=8, num_train=64, num_val=32)
    pad = data.tgt_vocab["<pad>"]
    batch = next(iter(data.val_dataloader()))
    earlier = make(d2l.EncoderDecoder, data)
    scores, state = earlier(*batch[:-1])
    assert state.shape == (32, 8)
    torch.testing.assert_close(earlier.loss((scores, state), batch[-1]), earlier.loss(scores, batch[-1]))
    assert earlier.accuracy((scores, state), batch[-1]) == earlier.accuracy(scores, batch[-1])
    losses = []
    for kind in (d2l.Seq2Seq, OfTheBook):
        model = make(kind, data, tgt_pad=pad, lr=0.02)
        model.board.display = False
        found = model(*batch[:-1])
        assert torch.is_tensor(found) == (kind is d2l.Seq2Seq)
        expected = nn.functional.cross_entropy(scores.flatten(0, 1), batch[-1].flatten(), ignore_index=pad)
        torch.testing.assert_close(model.loss(found, batch[-1]), expected)
        d2l.Trainer(max_epochs=3, gradient_clip_val=1).fit(model, data)
        losses.append(model.board.data["val_loss"][1])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][-1] < losses[0][0]
    numbers, weights = model.predict_step(batch, d2l.cpu(), 3, True)
    assert (numbers.shape, weights) == ((32, 3), ["looked"] * 3)
    first = model(batch[0], batch[1][:, :1], batch[2])[0].argmax(2)
    assert torch.equal(numbers[:, :1], first)
    assert model.predict_step(batch, d2l.cpu(), 3)[1] == []


def test_encoders_begin_by_glorot():
    encoder = d2l.Seq2SeqEncoder(10, 8, 16, 1)
    bound = (6 / (48 + 8)) ** 0.5
    assert bound * 0.9 < encoder.rnn.weight_ih_l0.abs().max() <= bound


def test_checks():
    d2l.check_len([1, 2], 2)
    d2l.check_shape(torch.ones(2, 3), (2, 3))
    with pytest.raises(ValueError, match="check_len: expected the length to be 3, got 2"):
        d2l.check_len([1, 2], 3)
    with pytest.raises(ValueError, match=r"check_shape: expected the shape to be \(3, 2\), got \(2, 3\)"):
        d2l.check_shape(torch.ones(2, 3), (3, 2))
