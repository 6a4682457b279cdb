"""torch.nn.functional's names and signatures, served by our kernels; what is keyword-only is our addition."""

from pydl.ops import _batching, _flops  # noqa: F401  (rules of torch.func.vmap, formulas of FLOP counters)
from pydl.ops.adaptive_pool2d import adaptive_avg_pool2d, adaptive_max_pool2d
from pydl.ops.attention import scaled_dot_product_attention
from pydl.ops.avg_pool2d import avg_pool2d
from pydl.ops.batch_norm import batch_norm
from pydl.ops.conv1d import conv1d, conv_transpose1d
from pydl.ops.conv2d import conv2d
from pydl.ops.conv3d import conv3d
from pydl.ops.conv_transpose2d import conv_transpose2d
from pydl.ops.dropout import dropout, dropout1d, dropout2d, dropout3d
from pydl.ops.elementwise import gelu, leaky_relu, relu, sigmoid, silu, softplus, tanh
from pydl.ops.embedding import embedding
from pydl.ops.embedding_bag import embedding_bag
from pydl.ops.group_norm import group_norm
from pydl.ops.instance_norm import instance_norm
from pydl.ops.layer_norm import layer_norm, rms_norm
from pydl.ops.linear import linear
from pydl.ops.linear_cross_entropy import linear_cross_entropy
from pydl.ops.losses import binary_cross_entropy_with_logits, huber_loss, l1_loss, mse_loss, smooth_l1_loss
from pydl.ops.matmul import addmm, baddbmm, bmm, matmul, mm
from pydl.ops.max_pool2d import max_pool2d
from pydl.ops.multi_head_attention import multi_head_attention_forward
from pydl.ops.pool1d import adaptive_avg_pool1d, adaptive_max_pool1d, avg_pool1d, max_pool1d
from pydl.ops.pool3d import adaptive_avg_pool3d, adaptive_max_pool3d, avg_pool3d, max_pool3d
from pydl.ops.recurrent import gru, lstm, rnn_relu, rnn_tanh
from pydl.ops.recurrent_cells import gru_cell, lstm_cell, rnn_relu_cell, rnn_tanh_cell
from pydl.ops.softmax import log_softmax, softmax
from pydl.ops.softmax_cross_entropy import cross_entropy

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "addmm",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "baddbmm",
    "batch_norm",
    "binary_cross_entropy_with_logits",
    "bmm",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "cross_entropy",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "embedding",
    "embedding_bag",
    "gelu",
    "group_norm",
    "gru",
    "gru_cell",
    "huber_loss",
    "instance_norm",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "linear_cross_entropy",
    "log_softmax",
    "lstm",
    "lstm_cell",
    "matmul",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "mm",
    "mse_loss",
    "multi_head_attention_forward",
    "relu",
    "rms_norm",
    "rnn_relu",
    "rnn_relu_cell",
    "rnn_tanh",
    "rnn_tanh_cell",
    "scaled_dot_product_attention",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softplus",
    "tanh",
]
