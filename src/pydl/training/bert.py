"""BERT in training: masked tokens and which sentence follows which; then sentences that are classified."""

import torch

import pydl.nn
from pydl.data.sentences import CLS, FIRST_WORD, MASK, PAD, SEP
from pydl.errors import OptionError
from pydl.text.masked import IGNORED, Labelled, MaskedPairs
from pydl.training.build import build
from pydl.training.learner import Learner, called

RESERVED = PAD, MASK, CLS, SEP
SAMPLES, GUESSES = 4, 3  # test rows whose masked words are shown, with so many guesses for each


def check_positions(config, model):
    """Refuses rows that are longer than the model's positions."""
    positions = model.bert.positions
    if config.num_steps > positions:
        raise OptionError(
            f"--num-steps: expected at most {config.model}'s {positions} positions, got {config.num_steps}; "
            f"--option positions={config.num_steps} gives it more"
        )
    if config.num_steps < 5:
        raise OptionError(f"--num-steps: expected at least 5 tokens, for two sentences, got {config.num_steps}")


class BertLearner(Learner):
    """A :class:`pydl.training.learner.Learner` of masked pairs of stretches of text, which are its examples.

    The loss is the mean over the masked tokens of a step plus the mean over its pairs of stretches. Each epoch draws
    anew what follows and what is masked.

    Args:
        dataset: a :class:`pydl.data.SentenceDataset`.
        at: the device of the examples.
    """

    samples, shows_images = True, False

    def __init__(self, config, dataset, at, backend_name, device, processes=None):
        self.vocab, parts = dataset.vocab, []
        for documents, collections in ((dataset.train, dataset.collections), (dataset.test, ())):
            numbers = [[self.vocab[line] for line in lines] for _, lines in documents]
            parts.append(MaskedPairs(numbers, config.num_steps, RESERVED, len(self.vocab), at, collections))
        if not all(map(len, parts)) or len(self.vocab) <= FIRST_WORD:
            raise OptionError(
                f"--data, --root: expected a text of several sentences, got {len(parts[0]):,} pairs to train on and "
                f"{len(parts[1]):,} to test on"
            )
        parts[1].draw(torch.Generator().manual_seed(config.seed))
        super().__init__(config, *parts, len(self.vocab), backend_name, device, processes)

    def _build(self, num_classes):
        model = build(self.config, num_classes, None)
        check_positions(self.config, model)
        return model

    def _criteria(self):
        """Sums, of which :meth:`_sums` makes means."""
        smoothing = self.config.label_smoothing
        return [
            pydl.nn.CrossEntropyLoss(ignore_index=IGNORED, reduction="sum", label_smoothing=s) for s in (smoothing, 0.0)
        ]

    def _draw(self):
        self.train.draw(self.order)
        return super()._draw()

    def _count(self, targets):
        return len(targets[1])

    def _sums(self, outputs, targets):
        """(of masked tokens, of pairs): the sums of the losses."""
        criterion = self.criterion if self.model.training else self.measure
        logits, follows = outputs
        return criterion(logits.flatten(0, 1), targets[0].flatten()), criterion(follows, targets[1])

    def _loss(self, outputs, targets, size):
        masked, pairs = self._sums(outputs, targets)
        whole = int(self.train.counts[self._batches[self.step_in_epoch].cpu()].sum())
        return (masked / max(1, whole) + pairs / size) * self.processes.world

    @torch.no_grad()
    def evaluate(self):
        """(mean loss per masked token plus mean loss per pair of the test text, None)."""
        self.model.eval()
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)  # losses, right words, right pairs
        with self.use(), self.precision():
            for inputs, targets in self._test_batches(self.processes.shard(torch.arange(len(self.test)))):
                outputs = called(self.model, inputs)
                sums[:2] += torch.stack(self._sums(outputs, targets)).double()
                for i in range(2):
                    sums[2 + i] += (outputs[i].argmax(-1) == targets[i]).sum()
        words, pairs = int(self.test.counts.sum()), len(self.test)
        self._scores = (self.processes.sum(sums) / sums.new_tensor([words, pairs] * 2)).tolist()
        return self._scores[0] + self._scores[1], None

    def scores(self):
        """Of the test text: the mean losses of masked tokens and of pairs, and the shares that are right."""
        return dict(zip(("masked_loss", "pair_loss", "masked_right", "pairs_right"), self._scores, strict=True))

    @torch.no_grad()
    def sample(self, number):
        """Test rows with their masked tokens and what the model thinks stood there."""
        self.model.eval()
        inputs, (answers, _) = self.test[torch.arange(min(SAMPLES, len(self.test)), device=self.test.device)]
        with self.use():
            logits = called(self.model, tuple(part.to(self.device) for part in inputs))[0].float().cpu()
        guesses, lines = logits[..., FIRST_WORD:].topk(GUESSES).indices + FIRST_WORD, []
        for tokens, length, places, right, guess in zip(inputs[0], *inputs[2:], answers, guesses, strict=True):
            words = self.vocab.to_tokens(tokens[:length].tolist())
            for place, answer, row in zip(places.tolist(), right.tolist(), guess.tolist(), strict=True):
                if answer != IGNORED:
                    words[place] = f"[{self.vocab.to_tokens(answer)}? {'/'.join(self.vocab.to_tokens(row))}]"
            lines.append(" ".join(words[1:-1]).replace("<sep>", "|"))
        return "\n".join(lines)


class TopicLearner(Learner):
    """A :class:`pydl.training.learner.Learner` of sentences and their classes.

    Args:
        dataset: a :class:`pydl.data.TopicDataset`.
        at: the device of the examples.
    """

    shows_images = False

    def __init__(self, config, dataset, at, backend_name, device, processes=None):
        self.vocab = dataset.vocab
        parts = [
            Labelled([self.vocab[words] for words, _ in part], [k for _, k in part], config.num_steps, RESERVED, at)
            for part in (dataset.train, dataset.test)
        ]
        super().__init__(config, *parts, len(dataset.classes), backend_name, device, processes)
        self.classifies = True

    def _build(self, num_classes):
        model = build(self.config, num_classes, None, len(self.vocab))
        check_positions(self.config, model)
        return model
