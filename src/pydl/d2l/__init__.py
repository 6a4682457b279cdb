"""The names of "Dive into Deep Learning" (PyTorch), so that its programs run: ``from pydl import d2l``.

All of it is our own code under the book's names and meanings, on data that needs no download. The repository's
``src/pydl/d2l/NAMES.md`` says for each name where the book has it, and what differs.
"""

from pydl.d2l import unserved
from pydl.d2l.animator import Animator
from pydl.d2l.attention import (
    AdditiveAttention,
    DotProductAttention,
    MaskedSoftmaxCELoss,
    MultiHeadAttention,
    PositionalEncoding,
    masked_softmax,
    sequence_mask,
    transpose_output,
    transpose_qkv,
)
from pydl.d2l.bert import (
    BERTEncoder,
    BERTModel,
    MaskLM,
    NextSentencePred,
    get_tokens_and_segments,
)
from pydl.d2l.boxes import (
    assign_anchor_to_bbox,
    bbox_to_rect,
    box_center_to_corner,
    box_corner_to_center,
    box_iou,
    multibox_detection,
    multibox_prior,
    multibox_target,
    nms,
    offset_boxes,
    offset_inverse,
    show_bboxes,
)
from pydl.d2l.counting import Accumulator, Timer, accuracy, evaluate_accuracy, evaluate_accuracy_gpu, evaluate_loss
from pydl.d2l.drawing import plot, set_axes, set_figsize, show_heatmaps, show_images, use_svg_display
from pydl.d2l.images import get_dataloader_workers, get_fashion_mnist_labels, load_data_fashion_mnist
from pydl.d2l.layers import Residual, corr2d, resnet18
from pydl.d2l.objects import (
    DataModule,
    HyperParameters,
    Module,
    ProgressBoard,
    Trainer,
    add_to_class,
)
from pydl.d2l.places import cpu, gpu, num_gpus, try_all_gpus, try_gpu
from pydl.d2l.problems import (
    SGD,
    Classifier,
    FashionMNIST,
    LinearRegression,
    LinearRegressionScratch,
    SoftmaxRegression,
    SyntheticRegressionData,
)
from pydl.d2l.recurrent import (
    RNNModel,
    RNNModelScratch,
    predict_ch8,
    train_ch8,
    train_epoch_ch8,
)
from pydl.d2l.regression import data_iter, linreg, load_array, sgd, squared_loss, synthetic_data
from pydl.d2l.seq2seq import (
    AttentionDecoder,
    Decoder,
    Encoder,
    EncoderDecoder,
    Seq2SeqEncoder,
    predict_seq2seq,
    train_seq2seq,
)
from pydl.d2l.text import (
    SeqDataLoader,
    Vocab,
    load_corpus_time_machine,
    load_data_time_machine,
    read_time_machine,
    seq_data_iter_random,
    seq_data_iter_sequential,
    tokenize,
)
from pydl.d2l.training import (
    grad_clipping,
    init_cnn,
    predict_ch3,
    train_batch_ch13,
    train_ch3,
    train_ch6,
    train_ch13,
    train_epoch_ch3,
)
from pydl.d2l.transformer import (
    AddNorm,
    EncoderBlock,
    PositionWiseFFN,
    TransformerEncoder,
    TransformerEncoderBlock,
)
from pydl.d2l.translation import (
    bleu,
    build_array_nmt,
    load_data_nmt,
    preprocess_nmt,
    read_data_nmt,
    tokenize_nmt,
    truncate_pad,
)
from pydl.text import count_corpus

__all__ = [
    "SGD",
    "Accumulator",
    "AddNorm",
    "AdditiveAttention",
    "Animator",
    "AttentionDecoder",
    "BERTEncoder",
    "BERTModel",
    "Classifier",
    "DataModule",
    "Decoder",
    "DotProductAttention",
    "Encoder",
    "EncoderBlock",
    "EncoderDecoder",
    "FashionMNIST",
    "HyperParameters",
    "LinearRegression",
    "LinearRegressionScratch",
    "MaskLM",
    "MaskedSoftmaxCELoss",
    "Module",
    "MultiHeadAttention",
    "NextSentencePred",
    "PositionWiseFFN",
    "PositionalEncoding",
    "ProgressBoard",
    "RNNModel",
    "RNNModelScratch",
    "Residual",
    "Seq2SeqEncoder",
    "SeqDataLoader",
    "SoftmaxRegression",
    "SyntheticRegressionData",
    "Timer",
    "Trainer",
    "TransformerEncoder",
    "TransformerEncoderBlock",
    "Vocab",
    "accuracy",
    "add_to_class",
    "assign_anchor_to_bbox",
    "bbox_to_rect",
    "bleu",
    "box_center_to_corner",
    "box_corner_to_center",
    "box_iou",
    "build_array_nmt",
    "corr2d",
    "count_corpus",
    "cpu",
    "data_iter",
    "evaluate_accuracy",
    "evaluate_accuracy_gpu",
    "evaluate_loss",
    "get_dataloader_workers",
    "get_fashion_mnist_labels",
    "get_tokens_and_segments",
    "gpu",
    "grad_clipping",
    "init_cnn",
    "linreg",
    "load_array",
    "load_corpus_time_machine",
    "load_data_fashion_mnist",
    "load_data_nmt",
    "load_data_time_machine",
    "masked_softmax",
    "multibox_detection",
    "multibox_prior",
    "multibox_target",
    "nms",
    "num_gpus",
    "offset_boxes",
    "offset_inverse",
    "plot",
    "predict_ch3",
    "predict_ch8",
    "predict_seq2seq",
    "preprocess_nmt",
    "read_data_nmt",
    "read_time_machine",
    "resnet18",
    "seq_data_iter_random",
    "seq_data_iter_sequential",
    "sequence_mask",
    "set_axes",
    "set_figsize",
    "sgd",
    "show_bboxes",
    "show_heatmaps",
    "show_images",
    "squared_loss",
    "synthetic_data",
    "tokenize",
    "tokenize_nmt",
    "train_batch_ch13",
    "train_ch3",
    "train_ch6",
    "train_ch8",
    "train_ch13",
    "train_epoch_ch3",
    "train_epoch_ch8",
    "train_seq2seq",
    "transpose_output",
    "transpose_qkv",
    "truncate_pad",
    "try_all_gpus",
    "try_gpu",
    "use_svg_display",
]


def __getattr__(name):
    if name == "plt":  # matplotlib, when something is drawn
        from pydl.d2l.drawing import pyplot

        return pyplot()
    raise AttributeError(unserved.sentence(name, __all__))
