"""Proximal policy optimisation: the policy writes, its samples are judged, and it learns from them a few times over.

Source: Schulman et al., "Proximal Policy Optimization Algorithms", 2017; Ziegler et al., "Fine-Tuning Language Models
from Human Preferences", 2019; Ouyang et al., "Training language models to follow instructions with human feedback",
NeurIPS 2022.
"""

import math
from dataclasses import dataclass

import torch

from pydl import optim
from pydl._brief import Brief
from pydl.rlhf import (
    AdaptiveCoefficient,
    Rollout,
    clipped_loss,
    gae,
    log_probs,
    log_probs_and_entropy,
    masked_mean,
    pairwise_loss,
    value_loss,
    whitened,
)
from pydl.rlhf.log_probs import laid_out, written
from pydl.rlhf.preferences import PairRows
from pydl.training.feedback import DOUBT, sampled_pairs
from pydl.training.not_finite import NotFinite
from pydl.training.policy import PolicyLearner
from pydl.training.schedule import factor

STEPS = 5  # of an epoch, each with new samples
PASSES, MINIBATCHES = 2, 4  # over the samples of a step
EPSILON, GAMMA, LAMBDA = 0.2, 1.0, 0.99
VALUE, ENTROPY = 0.1, 0.01  # the shares of the value loss and of the entropy in what is minimised
FIRST_COEFFICIENT = 0.3  # of the KL penalty
ROUND_PROMPTS, ROUND_HELD_OUT, ROUND_PASSES, ROUND_LR = 512, 128, 3, 1e-4  # of a reward model trained again


@dataclass(repr=False)
class Experience(Brief):
    """Samples and what is learnt from them; all but the samples (N, T), 0 outside the responses."""

    samples: Rollout
    mask: torch.Tensor
    log_probs: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor

    def __getitem__(self, rows):
        each = self.mask, self.log_probs, self.advantages, self.returns
        return Experience(self.samples[rows], *(tensor[rows] for tensor in each))


class PPOLearner(PolicyLearner):
    """A :class:`PolicyLearner` whose step writes after ``batch_size`` prompts, judges, and learns.

    Attributes:
        coefficient: of the KL penalty, an :class:`AdaptiveCoefficient`; None without one.
        rounds: rounds that have begun; with each after the first the reward model is trained again.
    """

    def __init__(self, config, dataset, backend_name, device, processes=None):
        self.rounds, self._stats, self._accuracies = 1, [], {}
        train, test = dataset.prompts(device)
        super().__init__(config, dataset, train, test, backend_name, device, processes)
        self.coefficient = AdaptiveCoefficient(FIRST_COEFFICIENT, config.kl) if config.kl else None

    @property
    def beta(self):
        """The coefficient of the KL penalty now."""
        return self.coefficient.value if self.coefficient else 0.0

    def _begin_epoch(self):
        super()._begin_epoch()
        self._stats = []

    def _draw(self):
        size = self.config.batch_size
        return list(torch.randint(len(self.train), (STEPS * size,), generator=self.order).split(size))

    def _generator(self, purpose):
        """Of a step's random numbers: they depend on the step alone, so that a resumed run draws the same."""
        seed = (self.config.seed * 1_000_003 + 2 * self.step + purpose) % 2**63
        return torch.Generator().manual_seed(seed)

    def _one(self, batch):
        if self.rounds < self.config.rounds and self.step >= self.rounds * self.total_steps // self.config.rounds:
            self._train_rewards()
            self.rounds += 1
        generator = self._generator(0)
        experience, stats = self._experience(self.train[batch], generator)
        if self._scheduled:
            self.lr = self.config.lr * factor(self.config.schedule, self.step, self.total_steps, self.config.warmup)
            self.stepper.set_lr(self.lr)
        updates = []
        for _ in range(PASSES):
            for rows in torch.randperm(len(batch), generator=generator).tensor_split(min(MINIBATCHES, len(batch))):
                updates.append(self._update(experience[rows.to(self.device)]))
        stats |= {key: sum(each[key] for each in updates) / len(updates) for key in updates[0]}
        if self.coefficient:
            self.coefficient.update(stats["train_kl"])
        self._stats.append(stats)
        self._losses[self.step_in_epoch] = stats["train_kl"] * stats["kl_coefficient"] - stats["train_reward"]
        self.step_in_epoch += 1
        self.step += 1

    def _heads(self, samples, mask):
        """(features, values (N, T)) of the policy."""
        features = self.model.body.features(samples.tokens)[0]
        return features, laid_out(self.model.value(written(features.detach(), mask)).squeeze(1).float(), mask)

    @torch.no_grad()
    def _experience(self, prompts, generator):
        """(:class:`Experience`, {name: number}) of what the policy writes after prompts (tokens, lengths)."""
        samples = self._write(self.model.body, prompts, generator)
        mask = samples.mask
        with self.precision():
            features, values = self._heads(samples, mask)
            ours = log_probs(self.model.body, samples.tokens, mask, features).float()
            theirs = log_probs(self.reference, samples.tokens, mask).float()
        rewards, divergence = self._reward(samples), ours - theirs
        each = -self.beta * divergence
        each[torch.arange(len(each), device=each.device), samples.lengths - 1] += rewards
        advantages, returns = gae(each, values, mask, GAMMA, LAMBDA)
        stats = {
            "train_reward": rewards.mean().item(),
            "train_kl": divergence.sum(1).mean().item(),
            "kl_coefficient": self.beta,
            "train_length": mask.sum(1).double().mean().item(),
        }
        return Experience(samples, mask, ours, whitened(advantages, mask), returns), stats

    def _update(self, some):
        """One step of the optimizer by the samples ``some``; returns {name: number}."""
        self.stepper.clear()
        with self.precision():
            features, values = self._heads(some.samples, some.mask)
            new, entropies = log_probs_and_entropy(self.model.body, some.samples.tokens, some.mask, features)
        policy, cut = clipped_loss(new.float(), some.log_probs, some.advantages, some.mask, EPSILON)
        value, entropy = value_loss(values, some.returns, some.mask), masked_mean(entropies.float(), some.mask)
        loss = policy + VALUE * value - ENTROPY * entropy
        number = loss.item()
        if not math.isfinite(number):
            raise NotFinite(self.step + 1, number, self._first_layer(some.samples.tokens))
        self.stepper.backward(loss)
        self.stepper.step()
        return {"clip_share": cut.item(), "value_loss": value.item(), "train_entropy": entropy.item()}

    @torch.no_grad()
    def evaluate(self):
        """(minus what is maximised: the held-out reward less the penalty, None)."""
        found = self.judge()
        means = {key: sum(row[key] for row in self._last) / len(self._last) for key in self._last[0]}
        self._scores = {**found, **means, **self._accuracies}
        return self.beta * found["kl"] - found["reward"], None

    def end_epoch(self):
        self._last = self._stats
        return super().end_epoch()

    def _train_rewards(self):
        """Trains the reward model again, on the policy's own samples beside its first pairs."""
        generator, tokenizer = self._generator(1), self.dataset.tokenizer
        positions, parts = self.rewards.body.positions, []
        policy = self.model.body.eval()
        length = self.config.num_steps
        for prompts, count, doubt in ((self.train, ROUND_PROMPTS, DOUBT), (self.test, ROUND_HELD_OUT, 0.0)):
            parts.append(sampled_pairs(policy, prompts, count, self.rule, tokenizer, length, generator, doubt))
        self.model.train()
        held_out = PairRows(parts[1], tokenizer, positions, self.device)
        rows = PairRows(parts[0] + self.dataset.pairs[0][: len(parts[0])], tokenizer, positions, self.device)
        before = self._pair_accuracy(held_out)
        self.rewards.requires_grad_(True)
        optimizer = optim.Adam(self.rewards.parameters(), lr=ROUND_LR)
        with torch.enable_grad():
            for _ in range(ROUND_PASSES):
                for batch in torch.randperm(len(rows), generator=generator).split(32):
                    optimizer.zero_grad()
                    pairwise_loss(*self.rewards(*rows[batch][0]).unbind(1)).backward()
                    optim.clip_grad_norm_(self.rewards.parameters(), 1.0)
                    optimizer.step()
        self.rewards.requires_grad_(False)
        self._accuracies = {"pairs_before": before, "pairs_after": self._pair_accuracy(held_out)}
        self.scale = None  # that of the new scores

    @torch.no_grad()
    def _pair_accuracy(self, rows):
        right = [self.rewards(*rows[batch][0]).argmax(1) == 0 for batch in torch.arange(len(rows)).split(256)]
        return torch.cat(right).double().mean().item()

    def state_dict(self):
        own = {"rounds": self.rounds, "beta": self.beta, "stats": self._stats, "accuracies": self._accuracies}
        return {**super().state_dict(), **own, "reward_model": self.rewards.state_dict()}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.rounds, self._stats, self._accuracies = state["rounds"], list(state["stats"]), state["accuracies"]
        self.rewards.load_state_dict(state["reward_model"])
        if self.coefficient:
            self.coefficient.value = state["beta"]
