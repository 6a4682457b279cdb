"""Recurrent layers RNN, GRU and LSTM, and their cells."""

import torch
from torch.nn.utils.rnn import PackedSequence

from pydl import functional
from pydl._private import with_functions
from pydl.aside import Own, steps_aside
from pydl.nn._common import _Eager

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

# torch's own forwards, which check, sort and unpack, with our functions where they call torch's
_forward_of = {
    cls: with_functions(cls.forward, functional)
    for cls in (torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM, torch.nn.RNNCell, torch.nn.GRUCell, torch.nn.LSTMCell)
}


def _data(input):
    return input.data if isinstance(input, PackedSequence) else input


class RNN(_Eager, torch.nn.RNN):
    """``torch.nn.RNN`` over :func:`pydl.functional.rnn_tanh` and ``rnn_relu``; on the CPU.

    >>> output, state = nn.RNN(8, 16, batch_first=True)(torch.randn(4, 10, 8))
    >>> output.shape, state.shape
    (torch.Size([4, 10, 16]), torch.Size([1, 4, 16]))
    """

    own = Own(torch.nn.RNN, "rnn_tanh", namespace=torch)

    def forward(self, input, hx=None):
        if steps_aside(self, RNN.own, torch.rnn_tanh, _data(input)):
            return torch.nn.RNN.forward(self, input, hx)
        return _forward_of[torch.nn.RNN](self, input, hx)


class GRU(_Eager, torch.nn.GRU):
    """``torch.nn.GRU`` over :func:`pydl.functional.gru`; on the CPU.

    >>> output, state = nn.GRU(8, 16, batch_first=True)(torch.randn(4, 10, 8))
    >>> output.shape, state.shape
    (torch.Size([4, 10, 16]), torch.Size([1, 4, 16]))
    """

    own = Own(torch.nn.GRU, "gru", namespace=torch)

    def forward(self, input, hx=None):
        if steps_aside(self, GRU.own, torch.gru, _data(input)):
            return torch.nn.GRU.forward(self, input, hx)
        return _forward_of[torch.nn.GRU](self, input, hx)


class LSTM(_Eager, torch.nn.LSTM):
    """``torch.nn.LSTM`` over :func:`pydl.functional.lstm`; on the CPU.

    >>> output, (hidden, cell) = nn.LSTM(8, 16, batch_first=True)(torch.randn(4, 10, 8))
    >>> output.shape, hidden.shape, cell.shape
    (torch.Size([4, 10, 16]), torch.Size([1, 4, 16]), torch.Size([1, 4, 16]))
    """

    own = Own(torch.nn.LSTM, "lstm", namespace=torch)

    def forward(self, input, hx=None):
        if steps_aside(self, LSTM.own, torch.lstm, _data(input)):
            return torch.nn.LSTM.forward(self, input, hx)
        return _forward_of[torch.nn.LSTM](self, input, hx)


class RNNCell(_Eager, torch.nn.RNNCell):
    """``torch.nn.RNNCell`` over :func:`pydl.functional.rnn_tanh_cell` and ``rnn_relu_cell``; on the CPU.

    >>> nn.RNNCell(8, 16)(torch.randn(4, 8)).shape
    torch.Size([4, 16])
    """

    own = Own(torch.nn.RNNCell, "rnn_tanh_cell", namespace=torch)

    def forward(self, input, hx=None):
        if steps_aside(self, RNNCell.own, torch.rnn_tanh_cell, input):
            return torch.nn.RNNCell.forward(self, input, hx)
        return _forward_of[torch.nn.RNNCell](self, input, hx)


class GRUCell(_Eager, torch.nn.GRUCell):
    """``torch.nn.GRUCell`` over :func:`pydl.functional.gru_cell`; on the CPU.

    >>> nn.GRUCell(8, 16)(torch.randn(4, 8)).shape
    torch.Size([4, 16])
    """

    own = Own(torch.nn.GRUCell, "gru_cell", namespace=torch)

    def forward(self, input, hx=None):
        if steps_aside(self, GRUCell.own, torch.gru_cell, input):
            return torch.nn.GRUCell.forward(self, input, hx)
        return _forward_of[torch.nn.GRUCell](self, input, hx)


class LSTMCell(_Eager, torch.nn.LSTMCell):
    """``torch.nn.LSTMCell`` over :func:`pydl.functional.lstm_cell`; on the CPU.

    >>> hidden, cell = nn.LSTMCell(8, 16)(torch.randn(4, 8))
    >>> hidden.shape, cell.shape
    (torch.Size([4, 16]), torch.Size([4, 16]))
    """

    own = Own(torch.nn.LSTMCell, "lstm_cell", namespace=torch)

    def forward(self, input, hx=None):
        if steps_aside(self, LSTMCell.own, torch.lstm_cell, input):
            return torch.nn.LSTMCell.forward(self, input, hx)
        return _forward_of[torch.nn.LSTMCell](self, input, hx)
