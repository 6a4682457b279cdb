"""The options of a run that decide its numbers; a checkpoint keeps them."""

import dataclasses
import math
from dataclasses import dataclass

from pydl import text
from pydl.data.augment import KINDS
from pydl.errors import OptionError, did_you_mean
from pydl.rlhf.rules import RULES
from pydl.training.recipes import INITS, METHODS, recipe
from pydl.training.schedule import SCHEDULES

# torch's own defaults of weight decay
WEIGHT_DECAY = {"sgd": 0.0, "momentum": 0.0, "adam": 0.0, "adamw": 0.01}
OPTIMIZERS = tuple(WEIGHT_DECAY)
PARTITIONS = ("sequential", "random")


@dataclass
class Config:
    """Options of ``pydl train``; None takes the model's recipe. See :meth:`resolved`.

    Attributes:
        options: further arguments of the model's own function, such as ``{"ratio": 4}``.
        weights: a file of weights to begin with, see :func:`pydl.training.weights.load`.
        accumulate: parts that the batch of a step is computed in, one after the other, for want of memory; their
            gradients add up to the batch's, but for batch norm, which sees each part by itself.
        warmup: steps over which the learning rate rises linearly.
        clip: the largest norm of all gradients together; above it they are scaled down.
        l1: factor of the sum of all absolute weights in what is minimised; the loss that is shown is without it.
        amp: mixed precision: bfloat16 on a CPU, float16 with a scaled loss on a GPU.
        patience: stop after this many epochs without a lower test loss.
        num_steps: of a language model: tokens of a row in a step; of a translator: the most words of a sentence; of
            a reward model and a policy: tokens of a response.
        tokens: of a language model: one of :data:`pydl.text.KINDS`; see :class:`pydl.text.Tokenizer`.
        partition: of a language model: ``sequential``, where a row's state goes on from step to step, or ``random``.
        language: of the data set ``numbers``: what they are translated to, ``fr``, ``de`` or ``es``.
        label_smoothing: share of each target that goes to all classes alike, in what is minimised; tests are without.
        from_, reward: of a reward model and a policy: the runs of ``gpt`` and of ``reward`` that they begin with.
        pairs, rule: of a reward model: a file of pairs, or the rule that ranks samples, of :data:`pydl.rlhf.RULES`.
        method: of a policy: ``ppo`` or ``dpo``.
        rounds: of PPO; the reward model is trained again before each but the first.
        kl: of PPO: the KL divergence that the penalty aims at, in nats a response; 0 for no penalty.
        augment: of ``crop`` and ``flip``, what the training images are varied by.
        init: first weights of linear and convolution layers: ``torch``, ``xavier`` or ``kaiming``.
        workers: processes that make batches ready while the model computes.
        monitor: measure activations and gradients in the first step of each epoch.
        replace_head: begin with ``weights`` but for the last layer, which is new and has so many outputs.
        add_layer: put ReLU and a new layer after the last one of ``weights``, which has ``kept_outputs``.
        freeze: patterns of parameters' names that stay as they are, see :func:`pydl.training.tuning.freeze`.
        head_lr_factor: what the last layer's learning rate is multiplied by.
    """

    model: str
    data: str | None = None
    root: str = "data"
    epochs: int | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    accumulate: int = 1
    weights: str | None = None
    lr: float | None = None
    optimizer: str | None = None
    weight_decay: float | None = None
    schedule: str | None = None
    warmup: int | None = None
    clip: float | None = None
    l1: float = 0.0
    amp: bool = False
    patience: int | None = None
    num_steps: int | None = None
    tokens: str | None = None
    partition: str | None = None
    language: str | None = None
    label_smoothing: float | None = None
    from_: str | None = None
    reward: str | None = None
    pairs: str | None = None
    rule: str | None = None
    method: str | None = None
    rounds: int | None = None
    kl: float | None = None
    augment: list | None = None
    init: str | None = None
    workers: int = 0
    seed: int = 0
    size: int | None = None
    options: dict | None = None
    device: str | None = None
    backend: str | None = None
    threads: int | None = None
    tensorboard: bool = False
    monitor: bool = False
    compare: bool = False
    replace_head: int | None = None
    add_layer: bool = False
    kept_outputs: int | None = None
    freeze: list | None = None
    head_lr_factor: float = 1.0

    def resolved(self):
        """A copy with the recipe's values where None stood, checked.

        Raises:
            OptionError: (a ValueError) for a value that cannot be taken.
        """
        defaults = recipe(self.model, self.method)
        if self.rule is not None and self.pairs is not None:
            raise OptionError(f"--rule: expected --pairs or --rule, got both: {self.pairs} and {self.rule}")
        for name in ("rounds", "kl") if self.method == "dpo" else ():
            if getattr(self, name) is not None:
                raise OptionError(f"--{name}: expected --method ppo to take it, got dpo")
        names = ("data", "epochs", "batch_size", "lr", "optimizer", "schedule", "warmup")
        names += ("size", "weight_decay", "init", "clip", "patience", "num_steps", "tokens", "partition")
        names += ("label_smoothing", "rule", "method", "rounds", "kl")
        filled = {name: getattr(defaults, name) for name in names if getattr(self, name) is None}
        config = dataclasses.replace(self, **filled)
        config.options = {**defaults.options, **(self.options or {})}
        if config.weight_decay is None:
            config.weight_decay = WEIGHT_DECAY[config.optimizer] if config.optimizer in OPTIMIZERS else 0.0
        config.augment = list(self.augment or [])
        for name in (
            "epochs",
            "max_steps",
            "batch_size",
            "accumulate",
            "size",
            "threads",
            "patience",
            "num_steps",
            "rounds",
        ):
            value = getattr(config, name)
            if value is not None and value < 1:
                raise OptionError(f"--{name.replace('_', '-')}: expected a number of at least 1, got {value}")
        if config.accumulate > config.batch_size:
            raise OptionError(
                f"--accumulate: expected at most the batch size, {config.batch_size}, got {config.accumulate}"
            )
        if not (config.lr > 0 and math.isfinite(config.lr)):
            raise OptionError(f"--lr: expected a finite number above 0, got {config.lr}")
        if config.optimizer not in OPTIMIZERS:
            raise OptionError(
                f"--optimizer: expected one of {', '.join(OPTIMIZERS)}, got {config.optimizer!r}"
                + did_you_mean(config.optimizer, OPTIMIZERS)
            )
        for name, least in (("weight_decay", 0.0), ("warmup", 0), ("l1", 0.0), ("workers", 0)):
            value = getattr(config, name)
            if not (value >= least and math.isfinite(value)):
                raise OptionError(f"--{name.replace('_', '-')}: expected a finite number of at least 0, got {value}")
        if config.clip is not None and not config.clip > 0:
            raise OptionError(f"--clip: expected a number above 0, got {config.clip}")
        for name, known in (("tokens", text.KINDS), ("partition", PARTITIONS)):
            value = getattr(config, name)
            if value is not None and value not in known:
                raise OptionError(f"--{name}: expected one of {', '.join(known)}, got {value!r}")
        for name, known in (("rule", tuple(RULES)), ("method", METHODS)):
            value = getattr(config, name)
            if value is not None and value not in known:
                raise OptionError(
                    f"--{name}: expected one of {', '.join(known)}, got {value!r}" + did_you_mean(value, known)
                )
        if config.kl is not None and not (config.kl >= 0 and math.isfinite(config.kl)):
            raise OptionError(f"--kl: expected a finite number of nats of at least 0, got {config.kl}")
        if not 0 <= config.label_smoothing < 1:
            raise OptionError(f"--label-smoothing: expected a number from 0 to below 1, got {config.label_smoothing}")
        for kind in config.augment:
            if kind not in KINDS:
                raise OptionError(f"--augment: expected one of {', '.join(KINDS)}, got {kind!r}")
        if config.init not in INITS:
            raise OptionError(f"--init: expected one of {', '.join(INITS)}, got {config.init!r}")
        if config.schedule not in SCHEDULES:
            raise OptionError(
                f"--schedule: expected one of {', '.join(SCHEDULES)}, got {config.schedule!r}"
                + did_you_mean(config.schedule, SCHEDULES)
            )
        for name in ("replace_head", "add_layer"):
            if getattr(config, name) and config.weights is None:
                raise OptionError(f"--{name.replace('_', '-')}: expected --weights to begin with, got none")
        if config.replace_head and config.add_layer:
            raise OptionError("--add-layer: expected no --replace-head beside it, got both")
        if not (config.head_lr_factor > 0 and math.isfinite(config.head_lr_factor)):
            raise OptionError(f"--head-lr-factor: expected a finite number above 0, got {config.head_lr_factor}")
        if not 0 <= config.seed < 2**63:
            raise OptionError(f"--seed: expected a number from 0 to 2**63 - 1, got {config.seed}")
        return config

    @property
    def title(self):
        """What is trained on what, in words."""
        return f"{self.model} on {self.data}"

    def to_dict(self):
        return dataclasses.asdict(self)


# What --resume may change: how far and where it runs, never the numbers on the way there.
RESUME_MAY_CHANGE = ("epochs", "max_steps", "patience", "root", "device", "backend", "threads", "workers")
RESUME_MAY_CHANGE += ("tensorboard", "monitor")
