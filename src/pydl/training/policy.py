"""A policy in training, and what both of its methods share: the frozen models, and how samples are judged."""

import torch

import pydl
from pydl import models
from pydl.errors import OptionError
from pydl.rlhf import exact_kl, rollout
from pydl.rlhf.log_probs import distribution
from pydl.training.build import build
from pydl.training.feedback import ROWS, end_of
from pydl.training.learner import Learner

JUDGED = 256  # held-out prompts whose responses are judged each epoch
SHOWN = 4  # of them in a sample
SEED = 0x5EED  # of what is written to be judged: the same for all epochs, so that they differ by the policy alone


class PolicyLearner(Learner):
    """A :class:`pydl.training.learner.Learner` of a policy, judged by what it writes after held-out prompts.

    Rewards are the reward model's scores in standard deviations of those of stage one's responses to the same prompts,
    whose mean is 0.

    Attributes:
        reference: the frozen model of stage one.
        rewards: the frozen reward model.
        scale: (mean, standard deviation) of the scores of stage one; None before they are taken.
    """

    samples, shows_images = True, False

    def __init__(self, config, dataset, train, test, backend_name, device, processes=None):
        if processes is not None and processes.world > 1:
            raise OptionError(f"{config.model}: expected one process, got a run under torchrun")
        self.dataset = dataset
        super().__init__(config, train, test, len(dataset.classes), backend_name, device, processes)
        kept, sizes = dataset.kept, {"vocab_size": len(dataset.classes)}
        with torch.random.fork_rng(devices=[]):
            self.reference = models.get("gpt", **sizes, **config.options)
            self.rewards = models.get("reward", **sizes, **kept["reward_options"])
        self.reference.load_state_dict(kept["start"])
        self.rewards.load_state_dict(kept["reward_model"])
        for model in (self.reference, self.rewards):
            model.to(self.device).eval().requires_grad_(False)
            if backend_name != "torch":
                pydl.swap(model)
        self.scale, self._before, self._scores = None, None, {}
        self.end, self.rule, self.known = end_of(dataset.tokenizer), dataset.rule(), dataset.rule("known")
        self.judged_prompts = dataset.prompts(self.device)[1]

    def _build(self, num_classes):
        model = build(self.config, num_classes, None)
        model.body.load_state_dict(self.dataset.kept["start"])
        return model

    def _write(self, model, prompts, generator):
        """A :class:`Rollout` of ``model`` after prompts (tokens, lengths)."""
        was = model.training
        with self.precision():
            found = rollout(model.eval(), *prompts, self.config.num_steps, self.end, generator)
        model.train(was)
        return found

    @torch.no_grad()
    def _score(self, written):
        """(N,) scores of responses by the reward model, as they are."""
        with self.precision():
            return torch.cat([self.rewards(w.tokens, w.prompt_lengths, w.lengths).float() for w in _parts(written)])

    def _reward(self, written):
        """(N,) rewards of responses."""
        mean, deviation = self._scaled()
        return (self._score(written) - mean) / deviation

    def _scaled(self):
        if self.scale is None:
            scores = self._score(self._judged(self.reference)).double()
            self.scale = scores.mean().item(), max(scores.std().item(), 1e-6)
        return self.scale

    def _judged(self, model):
        """What ``model`` writes after the held-out prompts."""
        generator = torch.Generator().manual_seed(SEED)
        rows = torch.randperm(len(self.judged_prompts), generator=generator)[:JUDGED]
        return self._write(model, self.judged_prompts[rows], generator)

    @torch.no_grad()
    def judge(self):
        """{name: number} of what the policy writes after held-out prompts; the KL divergence is exact at each token."""
        self.model.eval()
        with self.use():
            written = self._judged(self.model.body)
            rewards = self._reward(written)
            divergence = entropy = 0.0
            for part in _parts(written):
                with self.precision():
                    ours, theirs = (distribution(m, part.tokens).float() for m in (self.model.body, self.reference))
                mask = part.mask[:, 1:]
                divergence += float(torch.where(mask, exact_kl(ours, theirs)[:, :-1], 0.0).sum())
                entropy += float(torch.where(mask, -(ours.exp() * ours).sum(-1)[:, :-1], 0.0).sum())
        texts, tokens = written.texts(self.dataset.tokenizer)[1], int(written.mask.sum())
        found = {"reward": rewards.mean().item(), "kl": divergence / len(written), "entropy": entropy / tokens}
        found |= {"length": tokens / len(written), "known": _mean(map(self.known, texts))}
        words = [text.split() for text in texts]
        found["letters_per_word"] = _mean(len(word) for row in words for word in row)
        found["distinct_words"] = _mean(len(set(row)) / max(1, len(row)) for row in words)
        if self.rule is not None:
            found["rule"] = _mean(map(self.rule, texts))
        return found

    def scores(self):
        return self._scores

    def before(self):
        """What stage one writes after the held-out prompts that are shown: a :class:`Rollout`."""
        if self._before is None:
            self._before = self._judged(self.reference)[torch.arange(SHOWN)]
        return self._before

    def sample(self, number):
        """What stage one and the policy write after held-out prompts, side by side, with the rewards."""
        with self.use():
            pair = [self.before(), self._judged(self.model.body)[torch.arange(SHOWN)]]
            rewards = [self._reward(written).tolist() for written in pair]
        texts = [written.texts(self.dataset.tokenizer) for written in pair]
        width = max(map(len, texts[0][1]))
        lines = [f"{'stage one':{width}} │ now"]
        for row in range(len(pair[0])):
            left, right = (each[1][row].replace("\n", " ") for each in texts)
            lines.append(f"after {texts[0][0][row]!r}: rewards {rewards[0][row]:+.2f} and {rewards[1][row]:+.2f}")
            lines.append(f"{left:{width}} │ {right}")
        return "\n".join(lines)

    def state_dict(self):
        return {**super().state_dict(), "scale": self.scale}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.scale = state["scale"] and tuple(state["scale"])


def _parts(written):
    """A :class:`Rollout` in parts of as many rows as are computed together."""
    return [written[rows] for rows in torch.arange(len(written)).split(ROWS)]


def _mean(values):
    values = list(values)
    return sum(values) / max(1, len(values))
