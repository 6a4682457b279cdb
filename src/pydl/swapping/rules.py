"""The one table of swapping: a rule for each of torch's layers that is served by ours, or fused into one that is.

Who serves a layer (layer.py), what is fused with it (chains.py), which functions ``pydl.swapped()`` replaces (mode.py)
and what the report says of it are all read from here: a new layer adds one rule.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.utils.parametrize import is_parametrized

from pydl import nn


@dataclass(frozen=True, eq=False)
class Rule:
    """What pydl does with one of torch's layers."""

    torchs: type
    ours: type  # the class whose forward serves it
    calls: tuple  # torch's functions that mean the same
    role: str = ""  # in a chain: "convolution", "linear", "norm" or "activation"
    fuses: tuple = ()  # what our forward takes beside torch's arguments

    @property
    def own(self):
        """What torch's forward is made of."""
        return self.ours.own

    @property
    def name(self):
        """The name of the function, in ``torch.nn.functional`` and in ours; of an activation, our argument."""
        return self.own.name


_NORM = {"calls": (F.batch_norm, torch.batch_norm), "role": "norm", "fuses": ("residual", "activation")}
_MAXIMUM = (F.max_pool2d, torch.max_pool2d, F.max_pool2d_with_indices)

RULES = (
    Rule(torch.nn.Conv2d, nn.Conv2d, (F.conv2d, torch.conv2d), role="convolution", fuses=("activation",)),
    Rule(
        torch.nn.ConvTranspose2d,
        nn.ConvTranspose2d,
        (F.conv_transpose2d, torch.conv_transpose2d),
        role="convolution",
        fuses=("activation",),
    ),
    Rule(torch.nn.Conv1d, nn.Conv1d, (F.conv1d,)),
    Rule(torch.nn.ConvTranspose1d, nn.ConvTranspose1d, (F.conv_transpose1d,)),
    Rule(torch.nn.Linear, nn.Linear, (F.linear,), role="linear", fuses=("activation",)),
    Rule(torch.nn.BatchNorm1d, nn.BatchNorm1d, **_NORM),
    Rule(torch.nn.BatchNorm2d, nn.BatchNorm2d, **_NORM),
    Rule(torch.nn.BatchNorm3d, nn.BatchNorm3d, **_NORM),
    Rule(torch.nn.SyncBatchNorm, nn.SyncBatchNorm, ()),
    Rule(torch.nn.GroupNorm, nn.GroupNorm, (F.group_norm, torch.group_norm)),
    Rule(torch.nn.InstanceNorm1d, nn.InstanceNorm1d, (F.instance_norm, torch.instance_norm)),
    Rule(torch.nn.InstanceNorm2d, nn.InstanceNorm2d, (F.instance_norm, torch.instance_norm)),
    Rule(torch.nn.InstanceNorm3d, nn.InstanceNorm3d, (F.instance_norm, torch.instance_norm)),
    Rule(torch.nn.LayerNorm, nn.LayerNorm, (F.layer_norm, torch.layer_norm)),
    Rule(torch.nn.RMSNorm, nn.RMSNorm, (F.rms_norm, torch.rms_norm)),
    Rule(torch.nn.Softmax, nn.Softmax, (F.softmax,)),
    Rule(torch.nn.Softmax2d, nn.Softmax2d, (F.softmax,)),
    Rule(torch.nn.LogSoftmax, nn.LogSoftmax, (F.log_softmax,)),
    Rule(torch.nn.MultiheadAttention, nn.MultiheadAttention, (F.multi_head_attention_forward,)),
    Rule(torch.nn.RNN, nn.RNN, (torch.rnn_tanh,)),
    Rule(torch.nn.GRU, nn.GRU, (torch.gru,)),
    Rule(torch.nn.LSTM, nn.LSTM, (torch.lstm,)),
    Rule(torch.nn.RNNCell, nn.RNNCell, (torch.rnn_tanh_cell,)),
    Rule(torch.nn.GRUCell, nn.GRUCell, (torch.gru_cell,)),
    Rule(torch.nn.LSTMCell, nn.LSTMCell, (torch.lstm_cell,)),
    Rule(torch.nn.Dropout, nn.Dropout, (F.dropout, torch.dropout)),
    Rule(torch.nn.Dropout1d, nn.Dropout1d, (F.dropout1d,)),
    Rule(torch.nn.Dropout2d, nn.Dropout2d, (F.dropout2d,)),
    Rule(torch.nn.Dropout3d, nn.Dropout3d, (F.dropout3d,)),
    Rule(torch.nn.MaxPool2d, nn.MaxPool2d, _MAXIMUM),
    Rule(torch.nn.AvgPool2d, nn.AvgPool2d, (F.avg_pool2d,)),
    Rule(torch.nn.MaxPool1d, nn.MaxPool1d, (F.max_pool1d, torch.max_pool1d, F.max_pool1d_with_indices)),
    Rule(torch.nn.AvgPool1d, nn.AvgPool1d, (F.avg_pool1d,)),
    Rule(torch.nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool1d, (F.adaptive_avg_pool1d,)),
    Rule(torch.nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool2d, (F.adaptive_avg_pool2d,)),
    Rule(torch.nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool1d, (F.adaptive_max_pool1d, F.adaptive_max_pool1d_with_indices)),
    Rule(torch.nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool2d, (F.adaptive_max_pool2d, F.adaptive_max_pool2d_with_indices)),
    Rule(torch.nn.CrossEntropyLoss, nn.CrossEntropyLoss, (F.cross_entropy,)),
    Rule(torch.nn.MSELoss, nn.MSELoss, (F.mse_loss,)),
    Rule(torch.nn.L1Loss, nn.L1Loss, (F.l1_loss,)),
    Rule(torch.nn.SmoothL1Loss, nn.SmoothL1Loss, (F.smooth_l1_loss,)),
    Rule(torch.nn.HuberLoss, nn.HuberLoss, (F.huber_loss,)),
    Rule(torch.nn.BCEWithLogitsLoss, nn.BCEWithLogitsLoss, (F.binary_cross_entropy_with_logits,)),
    Rule(torch.nn.ReLU, nn.ReLU, (F.relu, torch.relu, torch.Tensor.relu), role="activation"),
    Rule(torch.nn.Sigmoid, nn.Sigmoid, (F.sigmoid, torch.sigmoid, torch.Tensor.sigmoid), role="activation"),
    Rule(torch.nn.Embedding, nn.Embedding, (F.embedding,)),
    Rule(torch.nn.EmbeddingBag, nn.EmbeddingBag, (F.embedding_bag,)),
    Rule(torch.nn.Tanh, nn.Tanh, (F.tanh, torch.tanh, torch.Tensor.tanh)),
    Rule(torch.nn.LeakyReLU, nn.LeakyReLU, (F.leaky_relu,)),
    Rule(torch.nn.GELU, nn.GELU, (F.gelu,)),
    Rule(torch.nn.SiLU, nn.SiLU, (F.silu,)),
    Rule(torch.nn.Softplus, nn.Softplus, (F.softplus,)),
    Rule(torch.nn.Conv3d, nn.Conv3d, (F.conv3d,)),
    Rule(torch.nn.MaxPool3d, nn.MaxPool3d, (F.max_pool3d, F.max_pool3d_with_indices)),
    Rule(torch.nn.AvgPool3d, nn.AvgPool3d, (F.avg_pool3d,)),
    Rule(torch.nn.AdaptiveAvgPool3d, nn.AdaptiveAvgPool3d, (F.adaptive_avg_pool3d,)),
    Rule(torch.nn.AdaptiveMaxPool3d, nn.AdaptiveMaxPool3d, (F.adaptive_max_pool3d, F.adaptive_max_pool3d_with_indices)),
)
if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # from torch 2.13 on
    RULES += (Rule(torch.nn.LinearCrossEntropyLoss, nn.LinearCrossEntropyLoss, (F.linear_cross_entropy,)),)

_OF = {cls: rule for rule in RULES for cls in (rule.torchs, rule.ours)}
SERVED = tuple(rule.torchs for rule in RULES)
_SERVED = frozenset(SERVED)
OURS = tuple(rule.ours for rule in RULES)


def rule_of(cls):
    """The rule of a class, torch's or ours, or of a lazy one that will become it; None for any other.

    By exact type: a subclass may mean something else by the same attributes.
    """
    return _OF.get(cls.__dict__.get("cls_to_become", cls))


def is_served(cls):
    """Whether instances of a class of torch's are served by a class of ours."""
    return cls.__dict__.get("cls_to_become", cls) in _SERVED


def class_of(layer):
    """The class of a layer; of a parametrised one, for which torch makes a subclass, the class that it had before."""
    return type(layer).__bases__[0] if is_parametrized(layer) else type(layer)
