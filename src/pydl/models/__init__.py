"""The models of the book, built from ``pydl.nn``: one file per family, each model a function and a registered name.

>>> net = pydl.models.get("lenet", num_classes=10, in_channels=1)

Parameters of the layers have torchvision's names where torchvision has the architecture, so that its ``state_dict``
loads as it is; the docstrings say with which options. FLOPs count a multiply-add as two, forward, one example, in
convolutions and affine layers.
"""

from pydl.models._registry import builder, get, kind, names
from pydl.models.alexnet import alexnet
from pydl.models.bert import bert, bert_classifier
from pydl.models.cifar import cifar_net
from pydl.models.dcgan import dcgan
from pydl.models.densenet import densenet
from pydl.models.elmo import elmo
from pydl.models.fcn import fcn
from pydl.models.feedback import ppo, reward
from pydl.models.googlenet import googlenet
from pydl.models.gpt import gpt
from pydl.models.lenet import lenet, lenet_bn
from pydl.models.linear import linear_regression, polynomial_regression, softmax_regression, weight_decay
from pydl.models.mlp import mlp
from pydl.models.ngram import ngram, nnlm
from pydl.models.nin import nin
from pydl.models.preact import preact_resnet18, wide_resnet
from pydl.models.recurrent import gru_lm, lstm_lm, rnn_lm
from pydl.models.resnet import resnet18, resnet50, resnext50
from pydl.models.seq2seq import seq2seq, seq2seq_attention
from pydl.models.ssd import ssd
from pydl.models.style import style
from pydl.models.transformer import transformer
from pydl.models.vgg import vgg11, vgg16
from pydl.models.word2vec import cbow, skipgram

__all__ = [
    "alexnet",
    "bert",
    "bert_classifier",
    "builder",
    "cbow",
    "cifar_net",
    "dcgan",
    "densenet",
    "elmo",
    "fcn",
    "get",
    "googlenet",
    "gpt",
    "gru_lm",
    "kind",
    "lenet",
    "lenet_bn",
    "linear_regression",
    "lstm_lm",
    "mlp",
    "names",
    "ngram",
    "nin",
    "nnlm",
    "polynomial_regression",
    "ppo",
    "preact_resnet18",
    "resnet18",
    "resnet50",
    "resnext50",
    "reward",
    "rnn_lm",
    "seq2seq",
    "seq2seq_attention",
    "skipgram",
    "softmax_regression",
    "ssd",
    "style",
    "transformer",
    "vgg11",
    "vgg16",
    "weight_decay",
    "wide_resnet",
]
