"""Sentences of ``prose`` with the group of the topic that they are from: few labelled ones, and others to test on."""

from dataclasses import dataclass

import torch

from pydl._brief import Brief
from pydl.data.sentences import sentences
from pydl.errors import DataError, OptionError
from pydl.text import Vocab

LABELLED, TESTED = 200, 60  # sentences that are trained on, and at most tested on of each group
SHORTEST = 4  # words of a sentence
GROUPS = {
    "classes": "class customization specialattrs typesmethods objects attribute-access attribute-references id-classes",
    "names": "import execmodel global nonlocal naming del identifiers assignment atom-identifiers",
    "control": "async raise assert return pass yield if for while try with exceptions context-managers await break "
    "else continue",
    "containers": "typesseq typesmapping sequence-types dict exprlists typesseq-mutable subscriptions slicings lists",
    "numbers": "numeric-types floating integers numbers binary power operator-summary conversions unary bitwise "
    "shifting imaginary",
    "truth": "comparisons booleans in truth",
}


@dataclass(repr=False)
class TopicDataset(Brief):
    """Sentences with the group of their topic, to train and to test on.

    Attributes:
        train, test: lists of (words, class).
        classes: the groups.
        vocab: of all of the text that is trained on, labelled or not.
    """

    name: str
    train: list
    test: list
    classes: tuple
    vocab: Vocab

    kind = "topics"


def topics(name, least=1, seed=0):
    """200 sentences of ``prose`` with the group of their topic, one of six; tests are sentences of other topics.

    The topics of the test are those of :func:`pydl.data.sentences`, so that a model that was trained on its sentences
    has not seen them. Of each group there are as many labelled sentences, drawn with ``seed``, and at most 60 to test
    on, always the same. ``documentation`` gives the same sentences, with the vocabulary of a model pretrained on it.

    Args:
        least: a word that occurs less often in the text is unknown.

    Raises:
        OptionError: for another name.
        DataError: for a Python whose topics are too few.
    """
    if name not in ("prose", "documentation"):
        raise OptionError(f"--data: expected prose or documentation, whose topics have groups, got {name!r}")
    whole, classes = sentences(name, least=least), tuple(GROUPS)
    group = {topic: number for number, names in enumerate(GROUPS.values()) for topic in names.split()}
    labelled = [(LABELLED + i) // len(classes) for i in range(len(classes))]
    sides = (whole.train, seed, labelled), (whole.test, 0, [TESTED] * len(classes))
    parts = []
    for documents, seed, most in sides:
        generator = torch.Generator().manual_seed(seed)
        found = [[] for _ in classes]
        for topic, lines in documents:
            if topic in group:
                found[group[topic]] += [line for line in lines if len(line) >= SHORTEST]
        if not all(found):
            raise DataError("data set 'prose': this Python's topics do not suffice for six groups")
        drawn = [
            (lines[i], number)
            for number, (lines, count) in enumerate(zip(found, most, strict=True))
            for i in torch.randperm(len(lines), generator=generator)[:count].tolist()
        ]
        parts.append(drawn)
    return TopicDataset(name, *parts, classes, whole.vocab)
