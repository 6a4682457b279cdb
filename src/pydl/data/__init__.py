"""Data sets by name, in memory: ``pydl.data.get("digits")`` gives a :class:`Dataset`, a text a :class:`TextDataset`,
pairs of sentences a :class:`TranslationDataset`.
"""

from pydl.data.augment import Augment
from pydl.data.cifar import cifar10
from pydl.data.dataset import Batches, Dataset, Preprocessing, Split, folds
from pydl.data.digits import digits, high_digits, low_digits
from pydl.data.download import download
from pydl.data.folder import folder, read_image
from pydl.data.idx import fashion_mnist, mnist
from pydl.data.loader import in_order
from pydl.data.objects import ObjectBatches, ObjectDataset, Pictures
from pydl.data.photographs import StylePictures, photographs, pictures
from pydl.data.pseudo_words import PseudoWordDataset, with_pseudo_words
from pydl.data.regression import linear, polynomial, weight_decay
from pydl.data.scenes import scenes
from pydl.data.sentences import SentenceDataset, sentences
from pydl.data.synthetic import synthetic
from pydl.data.text import TextDataset, documentation, prose, text, wiki
from pydl.data.topics import TopicDataset, topics
from pydl.data.translation import TranslationDataset, numbers, pairs
from pydl.data.voc import voc
from pydl.data.yolo import yolo
from pydl.errors import OptionError, did_you_mean

__all__ = [
    "Augment",
    "Batches",
    "Dataset",
    "ObjectBatches",
    "ObjectDataset",
    "Pictures",
    "Preprocessing",
    "PseudoWordDataset",
    "SentenceDataset",
    "Split",
    "StylePictures",
    "TextDataset",
    "TopicDataset",
    "TranslationDataset",
    "cifar10",
    "digits",
    "documentation",
    "download",
    "fashion_mnist",
    "folder",
    "folds",
    "get",
    "high_digits",
    "in_order",
    "linear",
    "low_digits",
    "mnist",
    "names",
    "numbers",
    "pairs",
    "photographs",
    "pictures",
    "polynomial",
    "prose",
    "read_image",
    "scenes",
    "sentences",
    "synthetic",
    "text",
    "topics",
    "voc",
    "weight_decay",
    "wiki",
    "with_pseudo_words",
    "yolo",
]

_LOADERS = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "mnist": mnist,
    "cifar10": cifar10,
    "folder": folder,
    "synthetic": synthetic,
    "linear": linear,
    "polynomial": polynomial,
    "weight-decay": weight_decay,
    "prose": prose,
    "wiki": wiki,
    "text": text,
    "numbers": numbers,
    "pairs": pairs,
    "scenes": scenes,
    "voc": voc,
    "yolo": yolo,
    "photographs": photographs,
    "pictures": pictures,
    "digits-0-4": low_digits,
    "digits-5-9": high_digits,
    "documentation": documentation,
}
TEXTS = "prose", "documentation", "wiki", "text"  # the sets of language models
PAIRS = "numbers", "pairs"  # those of translators
OBJECTS = "scenes", "voc", "yolo"  # of detectors and segmenters


def names():
    """The names that :func:`get` takes.

    >>> pydl.data.names()[:3]
    ['digits', 'fashion-mnist', 'mnist']
    """
    return list(_LOADERS)


def get(name, root="data", seed=0, **options):
    """The data set called ``name``.

    Args:
        name: one of :func:`names`.
        root: folder under which sets that come as files are looked for; bundled and synthetic sets do not read it.
        options: further arguments of the set's own function, such as ``size`` and ``workers`` of ``folder``,
            ``tokens`` of texts, and ``language`` of ``numbers``.
        seed: of the split, where the set has none of its own, and of the values of a synthetic set.

    Raises:
        OptionError: (a ValueError) for an unknown name; the message lists the names there are.
        DataError: for files that are missing, truncated or of another kind; the message names them.
        MissingExtra: (an ImportError) when the package that holds or reads the set is not installed.

    >>> digits = pydl.data.get("digits")
    >>> len(digits.train), len(digits.test)
    (1438, 359)
    """
    if name not in _LOADERS:
        raise OptionError(
            f"data: expected the name to be one of {', '.join(_LOADERS)}, got {name!r}" + did_you_mean(name, _LOADERS)
        )
    return _LOADERS[name](root=root, seed=seed, **options)
