"""``pydl train``: trains a model on a data set, shows how it goes, and keeps metrics, curves and a checkpoint.

The parts are in :mod:`pydl.training`: a learner is one model in training, the loop advances it by chunks of steps.
"""

import dataclasses
import os

import torch
from rich.console import Console

import pydl
from pydl import data, live, memory, models
from pydl.errors import CheckpointError, OptionError, did_you_mean
from pydl.rlhf import write_pairs
from pydl.text import SentencePairs, Windows
from pydl.training import board, checkpoint, display, feedback, tuning, weights
from pydl.training.bert import BertLearner, TopicLearner
from pydl.training.build import LEARNS_FROM, build, check, check_kind
from pydl.training.config import Config
from pydl.training.dpo import DPOLearner
from pydl.training.elmo import ElmoLearner
from pydl.training.folder import Folder
from pydl.training.gan import GanLearner
from pydl.training.language import LanguageLearner
from pydl.training.learner import Learner
from pydl.training.loop import Interrupted, loop
from pydl.training.objects import DetectionLearner, SegmentationLearner
from pydl.training.place import place
from pydl.training.ppo import PPOLearner
from pydl.training.processes import environment, joined
from pydl.training.result import Result
from pydl.training.reward import RewardLearner
from pydl.training.style import StyleLearner
from pydl.training.trained import config_of
from pydl.training.translation import TranslationLearner
from pydl.training.vectors import VectorLearner

__all__ = ["Config", "Interrupted", "Result", "cross_validate", "learners", "resumed", "train"]


# how often a word must occur to be known
LEAST = {"vectors": 5, "masked": 3, "topics": 3}
LEAST |= {"contextual": 2}
WIDTH = 100  # characters of a line in a notebook
FIT_PICTURES = 100  # that mean and standard deviation of pictures of objects are taken from


def train(config, out=None, resume=None, console=None, dataset=None, report=False):
    """Runs ``config`` (a :class:`Config`) and returns a :class:`Result`.

    Under torchrun every process makes this call; the first one shows and writes, and the batch size is that of all.

    Args:
        config: options; for ``resume`` those of the checkpoint, with what may change replaced (see :func:`resumed`).
        out: folder for metrics, curves and checkpoint; by default a new one under ``runs/``.
        resume: a checkpoint's content from :func:`resumed`; training continues as if it had never stopped.
        console: a rich Console; by default one on stdout, in a notebook with curves that grow. ``Console(quiet=True)``
            shows nothing.
        dataset: a :class:`pydl.data.Dataset` in place of the one that ``config.data`` names.
        report: list at the end which kernels served which layer.

    Raises:
        UserError: for all that a user can mend; see :mod:`pydl.errors`.
    """
    config = _resolved(config)
    if resume is None:
        config = _completed(config)
    name, device = place(config)
    if config.compare and name == "torch":
        raise OptionError("--compare: expected a backend of ours to compare with torch, got --backend torch")
    if config.tensorboard:
        board.check()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    config = dataclasses.replace(config, backend=name, device=str(device), threads=torch.get_num_threads())
    with joined(device.type) as processes, open(os.devnull, "w") as nowhere:
        if not processes.first:
            console = Console(file=nowhere)
        # a comparison with torch is with torch as it comes
        with memory.serving_torch(device.type == "cpu" and name != "torch" and not config.compare):
            return _run(config, device, processes, out, resume, console or _console(), dataset, report)


def _console():
    """One on stdout; in a notebook too, where rich would show each line as a document of its own."""
    return Console() if live.notebook() is None else Console(force_jupyter=False, force_terminal=False, width=WIDTH)


def _resolved(config):
    names = models.names()
    if config.model not in names:
        raise OptionError(
            f"model: expected the name to be one of {', '.join(names)}, got {config.model!r}"
            + did_you_mean(config.model, names)
        )
    return config.resolved()


def _completed(config):
    """A new run's ``config``, checked, with what the runs that it begins with decide."""
    check_kind(config)
    return feedback.completed(config) if models.kind(config.model) in feedback.KINDS else config


def _dataset(config, dataset=None, resume=None):
    """``dataset``, or the one that ``config.data`` names, once it is sure that it fits the model."""
    kind = models.kind(config.model)
    if dataset is None and LEARNS_FROM[kind] == "preferences":
        return feedback.dataset(config, resume)
    if dataset is None and config.data in data.TEXTS and LEARNS_FROM[kind] == "sentences":
        dataset = data.sentences(config.data, config.root, LEAST[kind])
        if kind == "contextual":
            dataset = data.with_pseudo_words(dataset, LEAST[kind])
    if dataset is None and config.data in data.TEXTS and LEARNS_FROM[kind] == "topics":
        dataset = data.topics(config.data, LEAST[kind], config.seed)
    if dataset is None:
        options = {"size": (config.size, config.size)} if config.data == "folder" else {}
        if config.data in data.TEXTS and config.tokens:
            options["tokens"] = config.tokens
        if config.data in data.PAIRS:
            options |= {"language": config.language, "longest": config.num_steps}
        if config.data == "voc":
            options["masks"] = kind == "segmenter"
        dataset = data.get(config.data, root=config.root, **options)
    check(config, dataset)
    return dataset


def _run(config, device, processes, out, resume, console, dataset, report):
    dataset = _dataset(config, dataset, resume)
    preprocessing = _preprocessing(config, dataset) if resume is None else _same_data(dataset, resume)
    if config.add_layer and resume is None:
        last = tuning.head(build(config, len(dataset.classes), preprocessing))
        config = dataclasses.replace(config, kept_outputs=weights.outputs(config.weights, last))
    backends = [config.backend, "torch"] if config.compare else [config.backend]
    learners = _learners(config, dataset, preprocessing, backends, device, processes)
    if config.compare and config.amp:
        exact = dataclasses.replace(config, amp=False)
        learners += _learners(exact, dataset, preprocessing, [config.backend], device, processes)
    if config.weights is not None and resume is None:
        for learner in learners:
            weights.load(learner.model, config.weights, _vocabulary(dataset), config)
    history = [] if resume is None else _restore(learners, resume)
    if resume is None or out is not None:
        folder = Folder(processes.by_first(lambda: Folder.new(out, config.model).path))
    else:
        folder = Folder(resume["folder"])
    about = {
        "config": config.to_dict(),
        "classes": list(dataset.classes),
        "tokenizer": dataset.tokenizer.state if dataset.kind in ("text", "preferences") else None,
        "examples": len(dataset.train),
        **({"source": list(dataset.source)} if dataset.kind in ("pairs", "objects") else {}),
        **({"feedback": dataset.saved} if dataset.kind == "preferences" else {}),
        **({"vocabulary": dataset.vocab.idx_to_token} if dataset.kind == "topics" else {}),
        "preprocessing": preprocessing
        and {key: list(value) for key, value in dataclasses.asdict(preprocessing).items()},
        "pydl": pydl.__version__,
    }
    result = Result(config, folder, learners[0].model, config.backend, history)
    if history:
        processes.by_first(lambda: folder.write_metrics(history))
    loop(result, learners, about, console)
    if models.kind(config.model) == "reward":
        processes.by_first(lambda: write_pairs(folder.pairs, [*dataset.pairs[0], *dataset.pairs[1]]))
    processes.by_first(lambda: result.finish(learners[0], dataset.classes, console, report))
    return result


def _vocabulary(dataset):
    """The words or tokens of a text, by number; None for other data."""
    if dataset.kind == "topics":
        return dataset.vocab.idx_to_token
    return list(dataset.classes) if dataset.kind in ("text", "sentences", "pairs", "preferences") else None


def _preprocessing(config, dataset):
    """The preprocessing of images; None for other data."""
    if dataset.kind == "objects":
        some = torch.arange(min(FIT_PICTURES, len(dataset.train)))
        return data.Preprocessing.fit(dataset.train.take(some, (config.size,) * 2).images, (config.size,) * 2)
    if dataset.kind != "classification":
        return None
    if models.kind(config.model) == "gan":  # to [-1, 1], the range of what it makes
        halves = (0.5,) * dataset.train.images.shape[1]
        return data.Preprocessing((config.size, config.size), halves, halves)
    return data.Preprocessing.fit(dataset.train.images, (config.size, config.size))


def _learners(config, dataset, preprocessing, backends, device, processes=None):
    at = "cpu" if config.workers else device  # worker processes have no business on a GPU
    if dataset.kind == "text":
        splits = [Windows(part, config.num_steps, at) for part in (dataset.train, dataset.test)]
        return [LanguageLearner(config, *splits, dataset.tokenizer, name, device, processes) for name in backends]
    if dataset.kind == "sentences":
        kinds = {"vectors": VectorLearner, "masked": BertLearner, "contextual": ElmoLearner}
        kind = kinds[models.kind(config.model)]
        return [kind(config, dataset, at, name, device, processes) for name in backends]
    if dataset.kind == "preferences":
        if models.kind(config.model) == "reward":
            return [RewardLearner(config, dataset, at, name, device, processes) for name in backends]
        kind = DPOLearner if config.method == "dpo" else PPOLearner
        return [kind(config, dataset, name, device, processes) for name in backends]
    if dataset.kind == "topics":
        return [TopicLearner(config, dataset, at, name, device, processes) for name in backends]
    if dataset.kind == "pairs":
        vocabs = dataset.source_vocab, dataset.target_vocab
        splits = [SentencePairs(part, *vocabs, at) for part in (dataset.train, dataset.test)]
        return [TranslationLearner(config, *splits, dataset, name, device, processes) for name in backends]
    if dataset.kind == "objects":
        kind = DetectionLearner if models.kind(config.model) == "detector" else SegmentationLearner
        return [kind(config, dataset, preprocessing, at, name, device, processes) for name in backends]
    if dataset.kind == "pictures":
        return [StyleLearner(config, dataset, name, device, processes) for name in backends]
    splits = [data.Batches(split, preprocessing, at) for split in (dataset.train, dataset.test)]
    if models.kind(config.model) == "gan":
        return [GanLearner(config, *splits, len(dataset.classes), name, device, processes) for name in backends]
    return [Learner(config, *splits, len(dataset.classes), name, device, processes) for name in backends]


def learners(config, backends):
    """The learners of a resolved ``config`` on each of ``backends``, on the CPU, before their first step."""
    config = _completed(config)
    dataset = _dataset(config)
    return _learners(config, dataset, _preprocessing(config, dataset), backends, torch.device("cpu"))


def cross_validate(config, folds, out=None, console=None):
    """Trains ``config`` ``folds`` times, each time testing on another part of the training set; returns the results.

    The parts are drawn once with the config's seed. Run ``i`` lies in ``out/fold-i``; the data's own test split is
    not touched.

    Source: d2l section "Predicting House Prices on Kaggle", K-fold cross-validation.

    Raises:
        OptionError: for fewer than two folds, or more than there are examples.
    """
    console = console or _console()
    if not torch.distributed.is_initialized() and environment().world > 1:
        raise OptionError("--folds: expected one process, got a run under torchrun")
    resolved = _completed(_resolved(config))
    dataset = _dataset(resolved)
    of_images = dataset.kind in ("classification", "regression")
    if not of_images or not torch.is_tensor(dataset.train.images):
        raise OptionError(f"--folds: expected a data set of examples in memory, got {resolved.data!r}")
    if not 2 <= folds <= len(dataset.train):
        raise OptionError(f"--folds: expected a number from 2 to the {len(dataset.train)} examples, got {folds}")
    parent, results = Folder.new(out, f"{config.model}-folds").path, []
    for number, part in enumerate(data.folds(dataset, folds, resolved.seed), 1):
        console.print(f"fold {number} of {folds}: {len(part.train)} examples to train on, {len(part.test)} to test on")
        results.append(train(config, parent / f"fold-{number}", console=console, dataset=part))
    console.print(display.folds(results))
    return results


def resumed(path, **changes):
    """(config, content) of the checkpoint at ``path``, with ``changes`` to what a resumed run may change.

    Raises:
        CheckpointError: for a file that is no checkpoint of ``pydl train``.
    """
    content = checkpoint.load(path)
    config = dataclasses.replace(config_of(path, content), **changes)
    content["folder"] = checkpoint.find(path).parent
    return config, content


def _same_data(dataset, content):
    """The checkpoint's preprocessing, once it is sure that it was trained on this very data set."""
    expected = content["examples"], tuple(content["classes"])
    if dataset.kind == "pairs" and tuple(content.get("source", ())) != dataset.source:
        raise CheckpointError(
            f"{content['folder']}: expected the source's vocabulary of the checkpoint in data set {dataset.name!r}, "
            f"got another of {len(dataset.source):,} tokens"
        )
    if dataset.kind == "objects" and tuple(content.get("source", ())) != dataset.source:
        raise CheckpointError(
            f"{content['folder']}: expected data set {dataset.name!r} of {' '.join(content['source'])}'s digits as in "
            f"the checkpoint, got {' '.join(dataset.source)}'s"
        )
    if dataset.kind in ("text", "pairs", "sentences", "preferences") and expected[1] != dataset.classes:
        raise CheckpointError(
            f"{content['folder']}: expected the vocabulary of the checkpoint, {len(expected[1]):,} tokens, in data set "
            f"{dataset.name!r}, got another of {len(dataset.classes):,}"
        )
    if expected != (len(dataset.train), dataset.classes):
        raise CheckpointError(
            f"{content['folder']}: expected the {expected[0]:,} training examples and {len(expected[1])} classes of "
            f"the checkpoint in data set {dataset.name!r}, got {len(dataset.train):,} and {len(dataset.classes)}"
        )
    saved = content["preprocessing"]
    return saved and data.Preprocessing(**{key: tuple(value) for key, value in saved.items()})


def _restore(learners, content):
    """Puts the learners where the checkpoint was written; returns the history of finished epochs."""
    states = [content, content.get("reference"), content.get("float32")]
    try:
        for learner, state in zip(learners, states, strict=False):
            if why := checkpoint.mismatch(learner.model, state["model"]):
                raise CheckpointError(f"{content['folder']}: the checkpoint does not fit the model: {why}")
            learner.load_state_dict(state)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{content['folder']}: the checkpoint does not fit the model: its optimizer, order or random state is "
            "another's, or damaged"
        ) from None
    history = list(content["history"])
    if content["step_in_epoch"]:  # it ended by --max-steps inside an epoch, whose line comes again when it is whole
        history.pop()
    return history
