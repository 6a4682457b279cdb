"""What a run of `reward` or `ppo` begins with: a run of `gpt`, its prompts, pairs of its samples, a reward model."""

import dataclasses
from dataclasses import dataclass

import torch

from pydl import backend, data, models
from pydl._brief import Brief
from pydl.errors import CheckpointError, DataError, OptionError
from pydl.rlhf import Preference, Prompts, make_rule, ranked, read_pairs, rollout
from pydl.text import Tokenizer
from pydl.training import trained
from pydl.training.build import build, own_options
from pydl.training.language import SAMPLE_PREFIX
from pydl.training.place import place

DOUBT = 0.5  # of the person who ranks what is trained on; held-out pairs are in the rule's own order
SAMPLES = 4  # responses to a prompt, of which the best and the worst make a pair
TRAINED_ON, HELD_OUT = 1024, 256  # prompts for pairs
ROWS = 256  # written at a time
FILES_HELD_OUT = 10  # each tenth prompt of a file of pairs
ENDS = "."  # the token that ends a response, where the vocabulary has it
KINDS = "reward", "policy"
NAMES = {"from_": "--from", "reward": "--reward"}


@dataclass(repr=False)
class FeedbackDataset(Brief):
    """What the learners of ``reward`` and ``ppo`` learn from.

    Attributes:
        text: the :class:`pydl.data.TextDataset` of stage one, with its tokenizer.
        train, test: of ``reward`` and of DPO, lists of :class:`pydl.rlhf.Preference`; of PPO, :class:`Prompts`.
        kept: what other runs gave: ``rule``, ``pairs`` (train and test), ``start`` (weights of stage one), and of
            ``ppo`` ``reward_options`` and ``reward_model`` (the reward model's options and weights).
    """

    name: str
    text: data.TextDataset
    train: list
    test: list
    kept: dict

    kind = "preferences"

    @property
    def tokenizer(self):
        return self.text.tokenizer

    @property
    def classes(self):
        """The tokens, by number."""
        return self.text.classes

    @property
    def saved(self):
        """What a checkpoint keeps, so that it is resumed without the other runs."""
        return {key: value for key, value in self.kept.items() if key != "start" or "reward_model" in self.kept}

    @property
    def pairs(self):
        """(train, test) lists of :class:`pydl.rlhf.Preference`."""
        return tuple([Preference(*texts) for texts in part] for part in self.kept["pairs"])

    def prompts(self, device="cpu"):
        """(train, test) of :class:`pydl.rlhf.Prompts`."""
        longest, vocab = SAMPLE_PREFIX[self.tokenizer.kind], self.tokenizer.vocab
        return tuple(Prompts(part, vocab, longest, device) for part in (self.text.train, self.text.test))

    def rule(self, name=None):
        """The function of the rule ``name``; of that which ranked the pairs, None where a file did."""
        name = name or self.kept["rule"]
        return name and make_rule(name, self.tokenizer.decode(self.text.train.tolist()))


def completed(config):
    """``config``, resolved, with what the run of ``--from`` decides: the text and the options of the model.

    Raises:
        OptionError: where ``--from`` or ``--reward`` is missing, or something is given that they decide.
        CheckpointError: for runs of other models, or of vocabularies that differ.
    """
    policy = models.kind(config.model) == "policy"
    for name in ("from_", "reward")[: 2 if policy else 1]:
        if getattr(config, name) is None:
            what = "gpt" if name == "from_" else "reward"
            raise OptionError(
                f"{config.model}: expected {NAMES[name]} RUN, the run of `pydl train {what}` that it needs, got none"
            )
    for name, usual in (("data", None), ("weights", None), ("init", "torch"), ("options", {})):
        if getattr(config, name) != usual:
            option = "--option" if name == "options" else f"--{name}"
            raise OptionError(f"{option}: expected none for {config.model}, whose --from decides that")
    for name, most in (("accumulate", 1), ("workers", 0)) if policy and config.method == "ppo" else ():
        if getattr(config, name) > most:
            raise OptionError(f"--{name}: expected none for {config.model}, which makes its own batches")
    if config.monitor and policy and config.method == "ppo":
        raise OptionError("--monitor: expected a model whose step is one forward and backward, got ppo")
    content, stage = _stage_one(config.from_)
    options = {**stage.options, **({"dropout": 0.0} if policy else {})}  # what writes must be what learns
    room = positions(options) - SAMPLE_PREFIX[stage.tokens]
    if config.num_steps > room:
        raise OptionError(
            f"--num-steps: expected at most {room}, the {positions(options)} positions of {config.from_} less those of "
            f"a prompt, got {config.num_steps}"
        )
    if policy:
        theirs, _ = trained.read(config.reward, "reward")
        if theirs["classes"] != content["classes"]:
            raise CheckpointError(
                f"--reward: expected a reward model of the vocabulary of {config.from_}, "
                f"{len(content['classes']):,} tokens, got another of {len(theirs['classes']):,} in {config.reward}"
            )
        if (config.rounds or 1) > 1 and theirs["feedback"]["rule"] is None:
            raise OptionError(
                "--rounds: expected a reward model of a built-in rule, which can rank new samples, got "
                f"{config.reward}, whose pairs are of a file"
            )
    root, rule = stage.root if config.root == "data" else config.root, None if config.pairs else config.rule
    return dataclasses.replace(config, data=stage.data, root=root, tokens=stage.tokens, options=options, rule=rule)


def positions(options):
    """The most tokens that a model of gpt's ``options`` sees."""
    return {**own_options("gpt"), **options}["positions"]


def _stage_one(path):
    content, config = trained.read(path, "language")
    if config.model != "gpt":
        raise CheckpointError(f"--from: expected a run of gpt, got one of {config.model} in {path}")
    return content, config


def dataset(config, resumed=None):
    """The :class:`FeedbackDataset` of a completed ``config``.

    Args:
        resumed: the content of the checkpoint that is resumed, which keeps what else comes from other runs.

    Raises:
        CheckpointError, DataError: for runs, pairs and texts that do not fit.
    """
    text = data.get(config.data, root=config.root, tokens=config.tokens)
    if resumed is not None:
        text.tokenizer = Tokenizer(config.tokens, resumed["classes"], resumed["tokenizer"])
        found = FeedbackDataset(config.data, text, [], [], resumed["feedback"])
    else:
        content, stage = _stage_one(config.from_)
        if content["classes"] != list(text.classes):
            raise CheckpointError(
                f"--from: expected the vocabulary of data set {config.data!r}, {len(text.classes):,} tokens, got "
                f"another of {len(content['classes']):,} in {config.from_}"
            )
        found = FeedbackDataset(config.data, text, [], [], {"start": content["model"], "rule": config.rule})
        if models.kind(config.model) == "reward":
            found.kept["pairs"] = _from_file(config) if config.pairs else _sampled(found, config, content, stage)
        else:
            theirs, options = trained.read(config.reward, "reward")
            found.kept |= {key: theirs["feedback"][key] for key in ("rule", "pairs")}
            found.kept |= {"reward_options": options.options, "reward_model": theirs["model"]}
    by_prompts = config.model == "ppo" and config.method == "ppo"
    found.train, found.test = found.prompts() if by_prompts else found.pairs
    if not len(found.train) or not len(found.test):
        raise DataError(
            f"{config.model}: expected pairs or prompts to train on and to test on, got {len(found.train):,} and "
            f"{len(found.test):,}"
        )
    return found


def _plain(pairs):
    """As a checkpoint keeps them."""
    return [[pair.prompt, pair.better, pair.worse] for pair in pairs]


def _from_file(config):
    """[train, test]: each tenth prompt with all its pairs is held out."""
    parts, seen = [[], []], {}
    for pair in read_pairs(config.pairs):
        number = seen.setdefault(pair.prompt, len(seen))
        parts[number % FILES_HELD_OUT == FILES_HELD_OUT - 1].append(pair)
    if not parts[1]:
        raise DataError(
            f"{config.pairs}: expected pairs of at least {FILES_HELD_OUT} prompts, a tenth of which is held out, got "
            f"{len(seen)}"
        )
    return list(map(_plain, parts))


def _sampled(found, config, content, stage):
    """[train, test]: ranked samples of stage one."""
    stage.device, stage.backend = config.device, config.backend
    name, device = place(stage)
    with torch.random.fork_rng(devices=[]), backend.use(name):
        model = build(stage, len(found.classes), None)
        model.load_state_dict(content["model"])
        model.to(device).eval()
        rule, parts = found.rule(), []
        generator = torch.Generator().manual_seed(config.seed)
        for prompts, count, doubt in zip(found.prompts(device), (TRAINED_ON, HELD_OUT), (DOUBT, 0.0), strict=True):
            length = config.num_steps
            parts.append(sampled_pairs(model, prompts, count, rule, found.tokenizer, length, generator, doubt))
    return list(map(_plain, parts))


def sampled_pairs(model, prompts, count, rule, tokenizer, length, generator, doubt=0.0):
    """:class:`pydl.rlhf.Preference` of the best and the worst of four responses to each of ``count`` prompts."""
    chosen = torch.randperm(len(prompts), generator=generator)[:count].repeat_interleave(SAMPLES)
    texts = [], []
    for rows in chosen.split(ROWS):
        written = rollout(model, *prompts[rows], length, end_of(tokenizer), generator)
        for kept, found in zip(texts, written.texts(tokenizer), strict=True):
            kept.extend(found)
    return ranked(*texts, rule, SAMPLES, doubt, generator)


def end_of(tokenizer):
    """The number of the token that ends a response, or None."""
    return tokenizer.vocab[ENDS] or None  # 0 is <unk>
