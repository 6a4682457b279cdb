"""Word vectors in training: real neighbours told from noise, pairs of words that should end up near, and a map."""

import math

import torch
import torch.nn.functional as F

from pydl.data.sentences import FIRST_WORD, PAD
from pydl.errors import OptionError
from pydl.text import ContextWords
from pydl.text.word_pairs import PAIRS, found, neighbours
from pydl.training import word_map
from pydl.training.build import build
from pydl.training.learner import Learner, called

SHOWN = 8  # words whose neighbours are shown, and how many of these
NEAR = 4
MAPPED = 60  # words of the map where the text has none of the listed pairs


class VectorLearner(Learner):
    """A :class:`pydl.training.learner.Learner` of (words seen, candidates) to logits, on a text's sentences.

    Each epoch draws anew which frequent words are left out, how far the windows reach, and the noise; the words left
    are shared among as many steps as the first epoch has, since the schedule and the run's end count in steps. The
    losses are means over candidates, which are what is counted as examples.

    Args:
        dataset: a :class:`pydl.data.SentenceDataset`.
        at: the device of the examples.
    """

    samples, shows_images = True, False

    def __init__(self, config, dataset, at, backend_name, device, processes=None):
        self.vocab, self._documents, self._at = dataset.vocab, (dataset.train, dataset.test), at
        self.pairs, self._steps = PAIRS if dataset.name == "prose" else (), None
        super().__init__(config, None, None, len(self.vocab), backend_name, device, processes)

    def _build(self, num_classes):
        model, parts = build(self.config, num_classes, None), []
        for documents in self._documents:
            lines = [line for _, lines in documents for line in lines]
            known = [[self.vocab[word] for word in line if word in self.vocab] for line in lines]
            parts.append([line for line in known if len(line) > 1])
        train, test = parts
        if not train or not test:
            raise OptionError(
                f"--data, --root: expected a text with sentences of two known words , got "
                f"{len(train):,} to train on and {len(test):,} to test on"
            )
        self.sparse = model.inputs.sparse
        if self.sparse:
            self._check_sparse()
        counts = torch.bincount(torch.tensor([word for line in train for word in line]), minlength=num_classes)
        options = model.window, model.negatives, model.rate, PAD, model.around, self._at
        self.train, self.test = (ContextWords(part, counts, *options) for part in parts)
        self.test.draw(torch.Generator().manual_seed(self.config.seed))
        return model

    def _check_sparse(self):
        config = self.config
        if config.optimizer not in ("sgd", "adam"):
            raise OptionError(f"--option sparse=1: expected --optimizer to be sgd or adam, got {config.optimizer}")
        if config.amp or config.clip or config.l1 or config.weight_decay or self.processes.world > 1:
            raise OptionError(
                "--option sparse=1: expected none of --amp, --clip, --l1, --weight-decay and torchrun, which take "
                "dense gradients"
            )

    def _draw(self):
        count = self.train.draw(self.order)
        if not count:
            raise OptionError("--option rate: expected one that leaves words in the text, got one that leaves none")
        if self._steps is None:
            self._steps = math.ceil(count / self.config.batch_size)
        return list(torch.randperm(count, generator=self.order).to(self._at).tensor_split(self._steps))

    def _units(self, batch):
        return int(self.train.sizes[batch.cpu()].sum())

    def _count(self, targets):
        return int((targets >= 0).sum())

    def _criterion(self, logits, targets):
        counted = targets >= 0
        total = F.binary_cross_entropy_with_logits(
            logits.float(), targets.clamp_min(0), weight=counted.float(), reduction="sum"
        )
        return total / counted.sum()

    @torch.no_grad()
    def evaluate(self):
        """(mean loss over the candidates of the test text, whose windows and noise are always the same; None)."""
        self.model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with self.use(), self.precision():
            for inputs, targets in self._test_batches(self.processes.shard(torch.arange(len(self.test.sizes)))):
                total += self._criterion(called(self.model, inputs), targets).double() * self._count(targets)
        return (self.processes.sum(total) / int(self.test.sizes.sum())).item(), None

    def scores(self):
        """The share of the listed pairs of words of which one is among the other's ten neighbours; of ``prose`` alone.

        The second word of a pair is looked for among the neighbours of the first.
        """
        share, known = found(self.vectors(), self.vocab, self.pairs, FIRST_WORD)
        return {"pairs_found": share} if known else {}

    def vectors(self):
        """(V, width), on the CPU."""
        return self.model.inputs.weight.detach().float().cpu()

    def sample(self, number):
        """The nearest neighbours of some words: of the pairs' first ones, or frequent ones of four letters or more."""
        words = [word for word, _ in self.pairs[::5]] or [word for word in self._frequent() if len(word) > 3]
        words, vectors = [word for word in words if word in self.vocab][:SHOWN], self.vectors()
        near = [neighbours(vectors, self.vocab[word], NEAR, FIRST_WORD)[0] for word in words]
        lines = (f"{a}: {' '.join(self.vocab.to_tokens(b))}" for a, b in zip(words, near, strict=True))
        return "\n".join(lines)

    def _frequent(self):
        return self.vocab.idx_to_token[FIRST_WORD:]

    def draw(self, folder, title):
        """Draws ``map.png``, the two main directions of the vectors; returns its name."""
        pairs = [pair for pair in self.pairs if all(word in self.vocab for word in pair)]
        words = list(dict.fromkeys(word for pair in pairs for word in pair)) or self._frequent()[:MAPPED]
        path = folder / "map.png"
        word_map.draw(path, self.vectors()[self.vocab[words]], words, pairs, title)
        return [path.name]
