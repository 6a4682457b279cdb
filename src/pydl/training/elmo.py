"""ELMo in training: the words after and before each of a window; then pseudo-words told apart by their contexts."""

import torch

from pydl.data.sentences import FIRST_WORD, SEP
from pydl.errors import OptionError
from pydl.text import random_starts
from pydl.text.pseudo_words import TESTED, TRAINED, occurrences
from pydl.text.windows import BothWays
from pydl.training import senses
from pydl.training.build import build
from pydl.training.learner import Learner

ROWS = 64  # windows that are computed together where nothing is trained


class ElmoLearner(Learner):
    """A :class:`pydl.training.learner.Learner` of windows of a text, with ``<sep>`` between its sentences.

    The loss is the mean over both directions of the words of a step. Of each pseudo-word, 20 test occurrences of either
    meaning are told apart by what was learnt from all occurrences in the training text; the occurrence stands in the
    middle of its window.

    Args:
        dataset: a :class:`pydl.data.PseudoWordDataset`.
        at: the device of the text.
    """

    unit, samples, shows_images = "tokens", True, False

    def __init__(self, config, dataset, at, backend_name, device, processes=None):
        self.vocab, self.pairs, self.units_per_row = dataset.vocab, dataset.pairs, config.num_steps
        parts, self._found = [], []
        for documents, most in ((dataset.train, None), (dataset.test, TESTED)):
            words = [word for _, lines in documents for line in lines for word in (*line, "<sep>")]
            corpus = torch.tensor(dataset.numbers(["<sep>", *words]))
            parts.append(BothWays(corpus, config.num_steps, at))
            self._found.append(occurrences(["", *words], self.pairs, most))
        self._test_starts = torch.arange(0, max(0, len(parts[1]) - config.num_steps - 1), config.num_steps)
        if not len(self._test_starts) or len(self.vocab) <= FIRST_WORD:
            raise OptionError(
                f"--data, --root, --num-steps: expected a text longer than a row of {config.num_steps} words, got "
                f"{len(parts[1]):,} to test on"
            )
        super().__init__(config, *parts, len(self.vocab), backend_name, device, processes)

    def _build(self, num_classes):
        return build(self.config, num_classes, None)

    def _draw(self):
        config = self.config
        batches = random_starts(len(self.train) - 1, config.batch_size, config.num_steps, self.order)
        if not batches or config.batch_size < self.processes.world:
            raise OptionError(
                f"--batch-size, --num-steps: expected a text longer than {config.batch_size} rows of "
                f"{config.num_steps} words, and a row for each process, got {len(self.train):,} to train on"
            )
        return batches

    def _criterion(self, logits, targets):
        return super()._criterion(logits.flatten(0, 2), targets.flatten())

    @torch.no_grad()
    def evaluate(self):
        """(mean loss per word and direction of the test text, None)."""
        self.model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with self.use(), self.precision():
            for starts in self.processes.shard(self._test_starts).split(ROWS):
                inputs, targets = (part.to(self.device) for part in self.test[starts])
                if len(inputs):
                    total += self._criterion(self.model(inputs), targets).double() * len(inputs)
        return (self.processes.sum(total) / len(self._test_starts)).item(), None

    @torch.no_grad()
    def contexts(self, part, places):
        """(layers + 1, N, width) float64 on the CPU: vectors of the words at ``places`` of a part, train or test.

        The text around the word is as much as a window holds; beyond the ends of the text stands ``<sep>``.
        """
        self.model.eval()
        before, length = self.config.num_steps // 2, self.config.num_steps
        padding = torch.full((length,), SEP)
        corpus, found = torch.cat([padding, part.corpus.cpu(), padding]), []
        with self.use(), self.precision():
            for some in places.split(ROWS):
                rows = (some + length - before).unsqueeze(1) + torch.arange(length)
                found.append(self.model.vectors(corpus[rows].to(self.device))[:, :, before].double().cpu())
        return torch.cat(found, 1)

    def _told(self):
        """(classifier, vectors, right) of the mix of all layers, then of the static vectors: the lowest layer alone.

        The classifier is fitted on the training text, the vectors are the test's, right is which of these it finds.
        """
        (places, *known), (test_places, *asked) = self._found
        vectors, test = self.contexts(self.train, places), self.contexts(self.test, test_places)
        found = []
        for layers in (slice(None), slice(1)):
            classifier = senses.Senses(vectors[layers], *known, len(self.pairs))
            found.append((classifier, test[layers], classifier.right(test[layers], *asked)))
        return found

    def scores(self):
        """The share of the test's pseudo-words told apart, by the mix of layers and by the static vector alone."""
        if not self.pairs:
            return {}
        self._senses, static = self._told()
        names = zip(("senses_told", "static_told"), (self._senses, static), strict=True)
        return {name: right.double().mean().item() for name, (_, _, right) in names}

    def sample(self, number):
        """What was told apart of each pseudo-word, after :meth:`scores`, and the mix of layers that did it."""
        if not self.pairs:
            return f"no pseudo-words: expected a text with the listed words {TRAINED} times, as prose has them"
        classifier, _, right = self._senses
        numbers = self._found[1][1]
        lines = []
        for pair, name in enumerate(map("/".join, self.pairs)):
            own = right[numbers == pair]
            lines.append(f"{name}: {int(own.sum())} of {len(own)} told apart")
        mix = " ".join(f"{share:.2f}" for share in classifier.mix.weights.softmax(0).tolist())
        return "\n".join([*lines, f"mix of the layers, the word's own first: {mix}"])

    def draw(self, folder, title):
        """Draws ``senses.png``, the test's pseudo-words by their mixed vectors; returns its name."""
        if not self.pairs:
            return []
        (classifier, vectors, right), _ = self._told()
        path, (_, numbers, meanings) = folder / "senses.png", self._found[1]
        with torch.no_grad():
            senses.draw(path, classifier.mixed(vectors), numbers, meanings, right, self.pairs, title)
        return [path.name]
