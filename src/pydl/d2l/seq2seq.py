"""Encoders and decoders, and the training of a translator."""

import torch
from torch import nn

from pydl.d2l import serving
from pydl.d2l.animator import Animator
from pydl.d2l.attention import MaskedSoftmaxCELoss
from pydl.d2l.counting import Accumulator, Timer
from pydl.d2l.places import try_gpu
from pydl.d2l.problems import Classifier
from pydl.d2l.training import grad_clipping
from pydl.d2l.translation import truncate_pad


class Encoder(nn.Module):
    """What turns a source into what a decoder begins with."""

    def forward(self, X, *args):
        """The subclass's."""
        raise NotImplementedError


class Decoder(nn.Module):
    """What turns the tokens so far and a state into scores for the next ones, and a state."""

    def init_state(self, enc_outputs, *args):
        """The first state, from the encoder's output; the subclass's."""
        raise NotImplementedError

    def forward(self, X, state):
        """The subclass's."""
        raise NotImplementedError


class AttentionDecoder(Decoder):
    """A decoder that keeps what it attends to."""

    @property
    def attention_weights(self):
        """Of the last call; the subclass's."""
        raise NotImplementedError


class EncoderDecoder(Classifier):
    """An encoder and a decoder, one after the other; the result is the decoder's.

    That is the earlier edition's meaning. What the later one does with a model is here too, and takes that result.
    """

    def __init__(self, encoder, decoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder, self.decoder = encoder, decoder

    def forward(self, enc_X, dec_X, *args):
        """(scores, state)."""
        return self.decoder(dec_X, self.decoder.init_state(self.encoder(enc_X, *args), *args))

    def accuracy(self, Y_hat, Y, averaged=True):
        """The share of right predictions, or 1 and 0 of each; of scores, or of (scores, state)."""
        return super().accuracy(_scores(Y_hat), Y, averaged)

    def loss(self, Y_hat, Y, averaged=True):
        """Cross entropy of scores (N, T, classes), or of (scores, state)."""
        return super().loss(_scores(Y_hat), Y, averaged)

    @torch.no_grad()
    def predict_step(self, batch, device, num_steps, save_attention_weights=False):
        """(numbers (N, num_steps) of the likeliest words, weights): word for word, after the first word of the target.

        Args:
            batch: (source, target from ``<bos>`` on, valid lengths of the source, ...), as :class:`MTFraEng` builds it.
            save_attention_weights: whether ``weights`` lists the decoder's ``attention_weights`` of each word.
        """
        source, target, source_len, *_ = (tensor.to(device) for tensor in batch)
        state = self.decoder.init_state(self.encoder(source, source_len), source_len)
        words, weights = [target[:, :1]], []
        for _ in range(num_steps):
            scores, state = self.decoder(words[-1], state)
            words.append(scores.argmax(dim=2))
            if save_attention_weights:
                weights.append(self.decoder.attention_weights)
        return torch.cat(words[1:], dim=1), weights


def _scores(found):
    return found if torch.is_tensor(found) else found[0]


class Seq2Seq(EncoderDecoder):
    """The later edition's translator, trained by Adam: forward gives scores alone, padding counts nothing."""

    def __init__(self, encoder, decoder, tgt_pad, lr):
        super().__init__(encoder, decoder)
        self.save_hyperparameters()

    def forward(self, enc_X, dec_X, *args):
        """Scores (N, T, classes)."""
        return super().forward(enc_X, dec_X, *args)[0]

    def loss(self, Y_hat, Y):
        """The mean of the cross entropies of words that are no padding."""
        counts = Y.reshape(-1) != self.tgt_pad
        return (super().loss(Y_hat, Y, averaged=False) * counts).sum() / counts.sum()

    def validation_step(self, batch):
        """Plots the loss of a batch."""
        self.plot("loss", self.loss(self(*batch[:-1]), batch[-1]), train=False)

    def configure_optimizers(self):
        """Adam with the learning rate ``self.lr``."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Seq2SeqEncoder(Encoder):
    """An embedding and a GRU of several layers."""

    def __init__(self, vocab_size, embed_size, num_hiddens, num_layers, dropout=0, **kwargs):
        super().__init__(**kwargs)
        self.embedding = nn.Embedding(vocab_size, embed_size)
        self.rnn = nn.GRU(embed_size, num_hiddens, num_layers, dropout=dropout)
        self.apply(init_seq2seq)

    def forward(self, X, *args):
        """(outputs (T, N, num_hiddens), state (num_layers, N, num_hiddens)) of token numbers (N, T)."""
        return self.rnn(self.embedding(X.T.long()))


def init_seq2seq(module):
    """Glorot's uniform distribution for the weights of affine layers and GRUs; to be applied to a net."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    if isinstance(module, nn.GRU):
        for name, parameter in module.named_parameters():
            if "weight" in name:
                nn.init.xavier_uniform_(parameter)


def train_seq2seq(net, data_iter, lr, num_epochs, tgt_vocab, device=None, *, swap=True):
    """Trains an :class:`EncoderDecoder` by Adam, each step given the right tokens before it; gradients up to norm 1.

    Args:
        data_iter: :func:`load_data_nmt`'s.
        device: :func:`try_gpu`'s if None.
        swap: keyword-only: whether :func:`pydl.swap` is called on the net.
    """
    device = try_gpu() if device is None else device
    net.apply(init_seq2seq)
    net.to(device)
    swapped = serving.serve(net, swap)
    optimizer, loss = torch.optim.Adam(net.parameters(), lr=lr), MaskedSoftmaxCELoss()
    animator = Animator("epoch", "loss", xlim=[min(10, num_epochs), num_epochs])
    bos, timer = tgt_vocab["<bos>"], Timer()

    def found(net, batch):
        X, X_len, Y, Y_len = batch
        begun = torch.cat((torch.full_like(Y[:, :1], bos), Y[:, :-1]), dim=1)
        return loss(_scores(net(X, begun, X_len)), Y, Y_len).sum()

    net.train()
    with serving.training(swapped, optimizer):
        for epoch in range(num_epochs):
            began, metric = Timer(), Accumulator(2)
            for batch in data_iter:
                batch = [tensor.to(device) for tensor in batch]
                optimizer.zero_grad()
                total = found(net, batch)
                total.backward()
                grad_clipping(net, 1)
                optimizer.step()
                metric.add(total.detach(), batch[3].sum())
            if (epoch + 1) % 10 == 0 or epoch == num_epochs - 1:
                animator.add(epoch + 1, (metric[0] / metric[1],))
    print(f"loss {metric[0] / metric[1]:.3f}, {metric[1] / began.stop():.1f} tokens/sec on {device}")
    seconds = timer.stop()
    if swapped:
        serving.tell(net, lambda net: found(net, batch), seconds)


@torch.no_grad()
def predict_seq2seq(net, src_sentence, src_vocab, tgt_vocab, num_steps, device=None, save_attention_weights=False):
    """(translation, weights): word for word the likeliest, up to ``<eos>`` or ``num_steps`` words.

    ``weights`` lists the decoder's ``attention_weights`` of each word where ``save_attention_weights``.
    """
    device = try_gpu() if device is None else device
    net.eval()
    words = [*src_vocab[src_sentence.lower().split(" ")], src_vocab["<eos>"]]
    valid_len = torch.tensor([min(len(words), num_steps)], device=device)
    source = torch.tensor([truncate_pad(words, num_steps, src_vocab["<pad>"])], device=device)
    state = net.decoder.init_state(net.encoder(source, valid_len), valid_len)
    token = torch.tensor([[tgt_vocab["<bos>"]]], device=device)
    found, weights = [], []
    for _ in range(num_steps):
        scores, state = net.decoder(token, state)
        token = scores.argmax(dim=2)
        if save_attention_weights:
            weights.append(net.decoder.attention_weights)
        if (number := int(token)) == tgt_vocab["<eos>"]:
            break
        found.append(number)
    return " ".join(tgt_vocab.to_tokens(found)), weights
