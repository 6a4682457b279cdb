"""The later edition's language models of characters: their data, recurrent nets from scratch and of torch's layers."""

import re

import torch
import torch.nn.functional as F
from torch import nn

from pydl.d2l.objects import DataModule, Module
from pydl.d2l.problems import Classifier
from pydl.d2l.text import Vocab, read_time_machine


class TimeMachine(DataModule):
    """Stretches of :func:`read_time_machine`'s prose: one begins at each character, ``num_train``, then ``num_val``.

    Attributes:
        X, Y: (N, num_steps) numbers of characters, and those one further.
        vocab: their :class:`pydl.text.vocabulary.Vocab`.
    """

    def __init__(self, batch_size, num_steps, num_train=10000, num_val=5000):
        super().__init__()
        self.save_hyperparameters()
        corpus, self.vocab = self.build(self._download())
        stretches = torch.tensor(corpus).unfold(0, num_steps + 1, 1)
        self.X, self.Y = stretches[:, :-1], stretches[:, 1:]

    def _download(self):
        """The prose as one text; nothing is downloaded."""
        return "\n".join(read_time_machine())

    def _preprocess(self, text):
        return re.sub("[^A-Za-z]+", " ", text).lower()

    def _tokenize(self, text):
        return list(text)

    def build(self, raw_text, vocab=None):
        """(numbers of all characters, vocabulary), which is a new one if None."""
        tokens = self._tokenize(self._preprocess(raw_text))
        vocab = Vocab(tokens) if vocab is None else vocab
        return vocab[tokens], vocab

    def get_dataloader(self, train):
        """A loader of one of both parts."""
        begin, count = (0, self.num_train) if train else (self.num_train, self.num_val)
        return self.get_tensorloader((self.X, self.Y), train, slice(begin, begin + count))


class RNNScratch(Module):
    """``H = tanh(X W_xh + H W_hh + b_h)``, weights from N(0, sigma²)."""

    def __init__(self, num_inputs, num_hiddens, sigma=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.W_xh = nn.Parameter(sigma * torch.randn(num_inputs, num_hiddens))
        self.W_hh = nn.Parameter(sigma * torch.randn(num_hiddens, num_hiddens))
        self.b_h = nn.Parameter(torch.zeros(num_hiddens))

    def forward(self, inputs, state=None):
        """(a list of T states (N, num_hiddens), the last of them) of inputs (T, N, num_inputs); from 0 if None."""
        if state is None:
            state = inputs.new_zeros(inputs.shape[1], self.num_hiddens)
        elif not torch.is_tensor(state):
            (state,) = state
        outputs = []
        for X in inputs:
            state = torch.tanh(X @ self.W_xh + state @ self.W_hh + self.b_h)
            outputs.append(state)
        return outputs, state


class RNNLMScratch(Classifier):
    """A recurrent net over one-hot characters, and an affine layer to the vocabulary; plots the perplexity.

    Args:
        rnn: a module, from (T, N, vocab_size) and a state or None to (T states, the last state); it says its
            ``num_hiddens`` and ``sigma``.
    """

    def __init__(self, rnn, vocab_size, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.init_params()

    def init_params(self):
        """Makes the affine layer's."""
        self.W_hq = nn.Parameter(self.rnn.sigma * torch.randn(self.rnn.num_hiddens, self.vocab_size))
        self.b_q = nn.Parameter(torch.zeros(self.vocab_size))

    def training_step(self, batch):
        """The loss of a batch, whose exponential is plotted."""
        found = self.loss(self(*batch[:-1]), batch[-1])
        self.plot("ppl", found.detach().exp(), train=True)
        return found

    def validation_step(self, batch):
        """Plots the perplexity of a batch."""
        self.plot("ppl", self.loss(self(*batch[:-1]), batch[-1]).exp(), train=False)

    def one_hot(self, X):
        """(T, N, vocab_size) of numbers (N, T)."""
        return F.one_hot(X.T, self.vocab_size).to(torch.get_default_dtype())

    def output_layer(self, rnn_outputs):
        """(N, T, vocab_size) of T states (N, num_hiddens)."""
        return torch.stack([H @ self.W_hq + self.b_q for H in rnn_outputs], dim=1)

    def forward(self, X, state=None):
        """Scores (N, T, vocab_size) of numbers (N, T)."""
        return self.output_layer(self.rnn(self.one_hot(X), state)[0])

    @torch.no_grad()
    def predict(self, prefix, num_preds, vocab, device=None):
        """``prefix`` and the ``num_preds`` characters after it that the net finds likeliest."""
        numbers, state = vocab[list(prefix)], None
        for place in range(len(prefix) + num_preds - 1):
            outputs, state = self.rnn(self.one_hot(torch.tensor([[numbers[place]]], device=device)), state)
            if place >= len(prefix) - 1:
                numbers.append(int(self.output_layer(outputs).argmax()))
        return "".join(vocab.to_tokens(numbers))


class RNN(Module):
    """torch's recurrent layer of one kind."""

    def __init__(self, num_inputs, num_hiddens):
        super().__init__()
        self.save_hyperparameters()
        self.rnn = nn.RNN(num_inputs, num_hiddens)

    def forward(self, inputs, H=None):
        """(states of the last layer (T, N, num_hiddens), last states of each layer)."""
        return self.rnn(inputs, H)


class GRU(RNN):
    """torch's GRU of several layers."""

    def __init__(self, num_inputs, num_hiddens, num_layers, dropout=0):
        Module.__init__(self)
        self.save_hyperparameters()
        self.rnn = nn.GRU(num_inputs, num_hiddens, num_layers, dropout=dropout)


class RNNLM(RNNLMScratch):
    """:class:`RNNLMScratch` with torch's affine layer, ``linear``."""

    def init_params(self):
        """Makes the affine layer."""
        self.linear = nn.LazyLinear(self.vocab_size)

    def output_layer(self, hiddens):
        """(N, T, vocab_size) of states (T, N, num_hiddens)."""
        return self.linear(hiddens).swapaxes(0, 1)
