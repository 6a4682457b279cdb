"""Names, what is said of those that there are not, and what importing them takes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pydl import d2l
from pydl.d2l.unserved import INSTEAD

FROM_THE_BOOK = [
    "Accumulator",
    "AdditiveAttention",
    "Animator",
    "AttentionDecoder",
    "Decoder",
    "DotProductAttention",
    "Encoder",
    "EncoderDecoder",
    "MaskedSoftmaxCELoss",
    "MultiHeadAttention",
    "PositionalEncoding",
    "RNNModel",
    "RNNModelScratch",
    "Residual",
    "Seq2SeqEncoder",
    "Timer",
    "Vocab",
    "accuracy",
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
    "gpu",
    "grad_clipping",
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
    "train_ch13",
    "train_ch3",
    "train_ch6",
    "train_ch8",
    "train_epoch_ch3",
    "train_seq2seq",
    "transpose_output",
    "transpose_qkv",
    "truncate_pad",
    "try_all_gpus",
    "try_gpu",
    "use_svg_display",
]


def test_the_names():
    assert set(FROM_THE_BOOK) <= set(d2l.__all__)
    for name in d2l.__all__:
        assert callable(getattr(d2l, name))
        assert getattr(d2l, name).__doc__, name


def test_a_name_is_served_or_has_something_in_its_stead():
    assert not set(d2l.__all__) & set(INSTEAD)
    for name, instead in INSTEAD.items():
        with pytest.raises(AttributeError, match=f"pydl.d2l: {name} is not served; use ") as caught:
            getattr(d2l, name)
        assert str(caught.value).endswith(instead)


def test_what_stands_in_stead_is_there():
    """Names of our own among the words of the hints are served."""
    for instead in INSTEAD.values():
        for word in instead.replace(",", " ").replace(";", " ").split():
            if word.startswith(("train_", "load_", "try_")) or word in ("Animator", "plot", "sgd", "Timer"):
                assert word in d2l.__all__, word


def test_the_table_has_them_all():
    path = Path(__file__).resolve().parents[2] / "src" / "pydl" / "d2l" / "NAMES.md"
    if not path.is_file():
        pytest.skip("no source tree around the tests")
    rows = re.findall(r"^\| (`.*?) \| ([\d, ]+) \|", path.read_text(), re.MULTILINE)
    names = [name for row, _ in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(names) == len(set(names))
    assert set(names) == {*d2l.__all__, "plt"}


def test_a_slip_of_the_keyboard():
    with pytest.raises(
        AttributeError, match=r"module 'pydl\.d2l' has no attribute 'train_ch66'; did you mean train_ch6\?"
    ):
        d2l.train_ch66  # noqa: B018


def test_nothing_heavy_is_imported_before_it_is_used():
    code = (
        "import sys, pydl; assert 'pydl.d2l' not in sys.modules; from pydl import d2l; d2l.Timer(); d2l.Vocab(['a']); "
        "print([m for m in ('matplotlib', 'sklearn', 'PIL', 'IPython', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
