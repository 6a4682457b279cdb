"""torch.nn's names for the layers that pydl serves: the same arguments, ``state_dict`` and ``repr``, our kernels.

Each class is a subclass of torch's that replaces ``forward`` alone, and reads nothing but torch's own attributes: so
``pydl.swap`` can put the same ``forward`` under an instance of torch's class. Every other layer (Flatten, Identity,
Sequential) is torch's: import it from ``torch.nn``. Under the backend ``torch`` the functions called here are torch's,
and where torch would honour what is not its own (:mod:`pydl.aside`), torch's own forward computes.
"""

from pydl.nn import loss
from pydl.nn.activation import GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Softplus, Tanh
from pydl.nn.attention import MultiheadAttention
from pydl.nn.convolution import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    LazyConv1d,
    LazyConv2d,
    LazyConv3d,
    LazyConvTranspose1d,
    LazyConvTranspose2d,
)
from pydl.nn.dropout import Dropout, Dropout1d, Dropout2d, Dropout3d
from pydl.nn.embedding import Embedding, EmbeddingBag
from pydl.nn.group_norm import GroupNorm
from pydl.nn.instance_norm import (
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
)
from pydl.nn.layer_norm import LayerNorm, RMSNorm
from pydl.nn.linear import LazyLinear, Linear
from pydl.nn.loss import BCEWithLogitsLoss, CrossEntropyLoss, HuberLoss, L1Loss, MSELoss, SmoothL1Loss
from pydl.nn.norm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
    SyncBatchNorm,
)
from pydl.nn.pooling import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
)
from pydl.nn.recurrent import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from pydl.nn.softmax import LogSoftmax, Softmax, Softmax2d

__all__ = [
    "GELU",
    "GRU",
    "LSTM",
    "RNN",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "CrossEntropyLoss",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "Embedding",
    "EmbeddingBag",
    "GRUCell",
    "GroupNorm",
    "HuberLoss",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "L1Loss",
    "LSTMCell",
    "LayerNorm",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConv3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "LazyLinear",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MultiheadAttention",
    "RMSNorm",
    "RNNCell",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "SmoothL1Loss",
    "Softmax",
    "Softmax2d",
    "Softplus",
    "SyncBatchNorm",
    "Tanh",
]

if hasattr(loss, "LinearCrossEntropyLoss"):  # torch has it from 2.13 on
    LinearCrossEntropyLoss = loss.LinearCrossEntropyLoss
    __all__ += ["LinearCrossEntropyLoss"]
