"""A translator in training: batches of sentences of about a length, the loss per word, and how well it translates."""

import importlib.util

import torch

import pydl.nn
from pydl.errors import MissingExtra, OptionError
from pydl.text import buckets, greedy
from pydl.text.pairs import PAD
from pydl.training.build import build
from pydl.training.learner import EVALUATION_BATCH, Learner

SAMPLES = 3  # test sentences whose translations are shown


class TranslationLearner(Learner):
    """A :class:`pydl.training.learner.Learner` of (source, lengths, target) to logits.

    Each step the right words before the next one are given (teacher forcing); tests write on their own words.

    Args:
        train, test: :class:`pydl.text.SentencePairs`.
        dataset: a :class:`pydl.data.TranslationDataset`, for its vocabularies.
    """

    unit, samples, shows_images = "tokens", True, False

    def __init__(self, config, train, test, dataset, backend_name, device, processes=None):
        if importlib.util.find_spec("sacrebleu") is None:  # said before the first epoch
            raise MissingExtra("the score BLEU of a translation", "sacrebleu")
        self.source_vocab, self.vocab = dataset.source_vocab, dataset.target_vocab
        super().__init__(config, train, test, len(self.vocab), backend_name, device, processes)

    def _build(self, num_classes):
        return build(self.config, num_classes, None, len(self.source_vocab))

    def _criteria(self):
        smoothing = self.config.label_smoothing
        return [pydl.nn.CrossEntropyLoss(ignore_index=PAD, label_smoothing=s) for s in (smoothing, 0.0)]

    def _draw(self):
        size, world = min(self.config.batch_size, len(self.train)), self.processes.world
        if size < world:
            raise OptionError(f"--batch-size: expected a sentence for each of {world} processes, got {size}")
        return buckets(self.train.sizes, self.config.batch_size, self.order, world)

    def _units(self, batch):
        return int(self.train.sizes[1, batch.cpu()].sum())

    def _count(self, targets):
        return int((targets != PAD).sum())

    def _criterion(self, logits, targets):
        return super()._criterion(logits.flatten(0, 1), targets.flatten())

    def _test_batches(self, indices):
        order = indices[self.test.sizes[:, indices].sum(0).argsort(stable=True)]  # little padding
        return super()._test_batches(order)

    @torch.no_grad()
    def evaluate(self):
        """(mean loss per word of the test sentences, given the right words before it; None)."""
        self.model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with self.use(), self.precision():
            for inputs, targets in self._test_batches(self.processes.shard(torch.arange(len(self.test)))):
                total += self._criterion(self.model(*inputs), targets).double() * self._count(targets)
        return (self.processes.sum(total) / self.test.sizes[1].sum()).item(), None

    def translated(self, indices):
        """The likeliest words for test sentences, as texts; as long as the longest answer among the tests at most."""
        self.model.eval()
        longest, found = int(self.test.sizes[1].max()), []
        with self.use(), self.precision():
            for batch in indices.split(EVALUATION_BATCH) if len(indices) else ():
                (source, lengths, _), _ = self.test[batch.to(self.test.device)]
                found += greedy(self.model, source.to(self.device), lengths.to(self.device), longest)
        return [" ".join(self.vocab.to_tokens(row)) for row in found]

    def scores(self):
        """The share of test sentences translated word for word, and BLEU (sacrebleu) of all of them."""
        import sacrebleu

        mine = self.processes.shard(torch.arange(len(self.test)))
        found = [text for part in self.processes.gather(self.translated(mine)) for text in part]
        right = [target for _, target in self.test.texts]
        exact = sum(a == b for a, b in zip(found, right, strict=True)) / len(right)
        # words stand apart already, also from marks
        bleu = sacrebleu.corpus_bleu(found, [right], tokenize="none", force=True).score
        return {"exact_match": exact, "bleu": bleu}

    def sample(self, number):
        """The first test sentences with their translations; the right ones where those differ."""
        lines = []
        for text, (source, target) in zip(self.translated(torch.arange(SAMPLES)), self.test.texts, strict=False):
            lines.append(f"{source} → {text}" + ("" if text == target else f" (right: {target})"))
        return "\n".join(lines)

    @torch.no_grad()
    def attention(self):
        """(source words, written words, weights (heads, written, source)) of the first test sentences.

        None for a model without attention.
        """
        found = []
        for index, text in enumerate(self.translated(torch.arange(SAMPLES))):
            source = self.test.texts[index][0].split()
            with self.use():
                weights = weights_of(self.model, self.source_vocab, self.vocab, source, text.split())
            if weights is None:
                return None
            found.append(([*source, "<eos>"], [*text.split(), "<eos>"], weights))
        return found


@torch.no_grad()
def weights_of(model, source_vocab, vocab, source, written):
    """(heads, words written and ``<eos>``, words of the source and ``<eos>``): where a translator looked; or None."""
    device = next(model.parameters()).device
    source = torch.tensor([source_vocab[[*source, "<eos>"]]], device=device)
    target = torch.tensor([vocab[["<bos>", *written]]], device=device)
    state = model.begin(source, torch.tensor([source.shape[1]], device=device))
    weights = model.decode(target, state, need_weights=True)[2]
    return None if weights is None else weights[0].float().cpu()
