"""Language models of characters: recurrent nets, their training and what they write."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from pydl.d2l import serving
from pydl.d2l.animator import Animator
from pydl.d2l.counting import Accumulator, Timer
from pydl.d2l.places import try_gpu
from pydl.d2l.regression import sgd
from pydl.d2l.training import grad_clipping


class RNNModelScratch:
    """A recurrent net of functions: what they mean is theirs, this calls them.

    Args:
        vocab_size, num_hiddens, device: what ``get_params`` is called with; its list is ``params``.
        get_params: makes the parameters.
        init_state: (batch_size, num_hiddens, device) to a tuple of states.
        forward_fn: (inputs (T, N, vocab_size), state, params) to (outputs (T·N, vocab_size), state).
    """

    def __init__(self, vocab_size, num_hiddens, device, get_params, init_state, forward_fn):
        self.vocab_size, self.num_hiddens = vocab_size, num_hiddens
        self.params = get_params(vocab_size, num_hiddens, device)
        self.init_state, self.forward_fn = init_state, forward_fn

    def __call__(self, X, state):
        """(outputs, state) of token numbers (N, T)."""
        return self.forward_fn(F.one_hot(X.T, self.vocab_size).type(torch.float32), state, self.params)

    def begin_state(self, batch_size, device):
        """The state before the first token."""
        return self.init_state(batch_size, self.num_hiddens, device)


class RNNModel(nn.Module):
    """One of torch's recurrent layers over one-hot tokens, and an affine layer to the vocabulary."""

    def __init__(self, rnn_layer, vocab_size, **kwargs):
        super().__init__(**kwargs)
        self.rnn, self.vocab_size, self.num_hiddens = rnn_layer, vocab_size, rnn_layer.hidden_size
        self.num_directions = 2 if rnn_layer.bidirectional else 1
        self.linear = nn.Linear(self.num_directions * self.num_hiddens, vocab_size)

    def forward(self, inputs, state):
        """(outputs (T·N, vocab_size), state) of token numbers (N, T)."""
        X = F.one_hot(inputs.T.long(), self.vocab_size).to(self.linear.weight.dtype)
        Y, state = self.rnn(X, state)
        return self.linear(Y.reshape(-1, Y.shape[-1])), state

    def begin_state(self, device, batch_size=1):
        """Zeros: (layers · directions, batch_size, num_hiddens), two of them for an LSTM."""
        shape = self.num_directions * self.rnn.num_layers, batch_size, self.num_hiddens
        zeros = torch.zeros(shape, device=device, dtype=self.linear.weight.dtype)
        return (zeros, torch.zeros_like(zeros)) if isinstance(self.rnn, nn.LSTM) else zeros


@torch.no_grad()
def predict_ch8(prefix, num_preds, net, vocab, device):
    """``prefix`` and the ``num_preds`` characters after it that the net finds likeliest."""
    state = net.begin_state(batch_size=1, device=device)
    numbers = vocab[list(prefix)]
    for place in range(len(numbers) + num_preds - 1):
        scores, state = net(torch.tensor([[numbers[place]]], device=device), state)
        if place >= len(prefix) - 1:
            numbers.append(int(scores.argmax(dim=1)))
    return prefix + "".join(vocab.to_tokens(numbers[len(prefix) :]))


def train_epoch_ch8(net, train_iter, loss, updater, device, use_random_iter):
    """One epoch: (perplexity, tokens per second). Gradients are clipped to a norm of 1.

    Batches that follow each other go on from the state of the one before, whose graph they do not keep.
    """
    state, timer, metric = None, Timer(), Accumulator(2)
    for X, Y in train_iter:
        if state is None or use_random_iter:
            state = net.begin_state(batch_size=X.shape[0], device=device)
        else:
            state = state.detach() if torch.is_tensor(state) else tuple(s.detach() for s in state)
        y = Y.T.reshape(-1).to(device)
        y_hat, state = net(X.to(device), state)
        found = loss(y_hat, y.long()).mean()
        if isinstance(updater, torch.optim.Optimizer):
            updater.zero_grad()
            found.backward()
            grad_clipping(net, 1)
            updater.step()
        else:
            found.backward()
            grad_clipping(net, 1)
            updater(batch_size=1)  # the loss is a mean
        metric.add(found.detach() * y.numel(), y.numel())
    return math.exp(metric[0] / metric[1]), metric[1] / timer.stop()


def train_ch8(net, train_iter, vocab, lr, num_epochs, device=None, use_random_iter=False, *, swap=True):
    """Trains a language model by SGD, with a curve of the perplexity, and what the model writes in between.

    Args:
        net: an :class:`RNNModel` or an :class:`RNNModelScratch`, or what is called as these are.
        device: :func:`try_gpu`'s if None.
        swap: keyword-only: whether :func:`pydl.swap` is called on a net that is a module.
    """
    device = try_gpu() if device is None else device
    loss = nn.CrossEntropyLoss()
    animator = Animator("epoch", "perplexity", legend=["train"], xlim=[min(10, num_epochs), num_epochs])
    swapped = serving.serve(net, swap)
    if isinstance(net, nn.Module):
        net.to(device)
        updater = torch.optim.SGD(net.parameters(), lr)
    else:

        def updater(batch_size):
            return sgd(net.params, lr, batch_size)

    timer = Timer()
    with serving.training(swapped, updater):
        for epoch in range(num_epochs):
            if isinstance(net, nn.Module):
                net.train()
            perplexity, speed = train_epoch_ch8(net, train_iter, loss, updater, device, use_random_iter)
            if (epoch + 1) % 10 == 0 or epoch == num_epochs - 1:
                animator.add(epoch + 1, [perplexity])
    seconds = timer.stop()
    print(f"perplexity {perplexity:.1f}, {speed:.1f} tokens/sec on {device}")
    if isinstance(net, nn.Module):
        net.eval()
    for prefix in ("time traveller", "traveller"):
        print(predict_ch8(prefix, 50, net, vocab, device))
    if swapped:
        X, Y = (tensor.to(device) for tensor in next(iter(train_iter)))
        state = net.begin_state(batch_size=X.shape[0], device=device)
        serving.tell(net, lambda net: loss(net(X, state)[0], Y.T.reshape(-1)), seconds)
