"""A language model in training: batches of neighbouring tokens, a state that goes on, perplexity, samples."""

import torch

from pydl.errors import OptionError
from pydl.text import Windows, continued, random_starts, sequential_starts
from pydl.training.build import build
from pydl.training.learner import Learner

TEST_ROWS = 16  # the test text is read as so many rows at a time; fewer tokens than these, at its end, are left out
SAMPLE_LENGTHS = {"letters": 120, "char": 120, "word": 30, "bpe": 40, "byte-bpe": 40}
SAMPLE_PREFIX = {"letters": 24, "char": 24, "word": 4, "bpe": 6, "byte-bpe": 6}
SAMPLE_TEMPERATURE = 0.5


class LanguageLearner(Learner):
    """A :class:`pydl.training.learner.Learner` of (tokens, state) to (logits, state).

    With the sequential partition the state of a step's rows is that at the end of the step before, without its graph;
    each epoch begins anew.

    Args:
        train, test: :class:`pydl.text.Windows`.
        tokenizer: of the text.
    """

    unit, samples, shows_images = "tokens", True, False

    def __init__(self, config, train, test, tokenizer, backend_name, device, processes=None):
        self.tokenizer, self.units_per_row = tokenizer, config.num_steps
        super().__init__(config, train, test, len(tokenizer.vocab), backend_name, device, processes)

    def _build(self, num_classes):
        config, model = self.config, build(self.config, num_classes, None)
        if hasattr(model, "positions"):
            if config.partition == "sequential":
                raise OptionError(
                    f"--partition: expected random for {config.model}, got sequential, whose state it lacks"
                )
            if config.num_steps > model.positions:
                raise OptionError(
                    f"--num-steps: expected at most {config.model}'s {model.positions} positions, got "
                    f"{config.num_steps}; --option positions={config.num_steps} gives it more"
                )
        if hasattr(model, "count"):  # counts are no weights: they are taken at once, and the rest is trained on
            rest = model.count(self.train.corpus.cpu())
            self.train = Windows(rest, self.train.num_steps, self.train.device)
        return model

    def _begin_epoch(self):
        super()._begin_epoch()
        self._state, self._coming_states = None, []  # of the parts of a step so far

    def _draw(self):
        config = self.config
        starts = sequential_starts if config.partition == "sequential" else random_starts
        batches = starts(len(self.train), config.batch_size, config.num_steps, self.order)
        if config.batch_size < self.processes.world:
            raise OptionError(f"--batch-size: expected a row for each process, got {config.batch_size}")
        if not batches or len(self.test) < 2 * TEST_ROWS:
            raise OptionError(
                f"--batch-size, --num-steps: expected a text longer than {config.batch_size} rows of "
                f"{config.num_steps} tokens, got {len(self.train):,} to train on and {len(self.test):,} to test on"
            )
        return batches

    def _forward(self, inputs, part, parts):
        state = _map(lambda whole: whole.tensor_split(parts, -2)[part].contiguous(), self._state)
        logits, state = self._stepped(inputs, state)
        if self.config.partition == "sequential":
            self._coming_states.append(_map(torch.Tensor.detach, state))
            if part == parts - 1:
                self._state, self._coming_states = _joined(self._coming_states), []
        return logits

    def _criterion(self, logits, targets):
        return self.criterion(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def evaluate(self):
        """(mean loss per token of the test text, None); each row's state goes on from its beginning to its end."""
        self.model.eval()
        corpus, steps = self.test.corpus, self.config.num_steps
        if hasattr(self.model, "positions"):  # half of the window stands before each part that is predicted
            steps = min(steps, max(1, self.model.positions // 2))
        length = (len(corpus) - 1) // TEST_ROWS
        X, Y = (self.processes.shard(corpus[i : i + TEST_ROWS * length].view(TEST_ROWS, length)) for i in (0, 1))
        total, state = torch.zeros((), dtype=torch.float64, device=self.device), None
        with self.use(), self.precision():
            for start in range(0, length, steps) if len(X) else ():
                x, y = (part[:, start : start + steps].to(self.device) for part in (X, Y))
                logits, state = self.model(x, state)
                total += self._criterion(logits, y).double() * y.numel()
        return (self.processes.sum(total) / (TEST_ROWS * length)).item(), None

    def sample(self, number):
        """What the model writes after the first tokens of the test text; ``number`` decides what it draws."""
        kind = self.tokenizer.kind
        prefix = self.test.corpus[: min(SAMPLE_PREFIX[kind], getattr(self.model, "positions", 1000))].tolist()
        generator = torch.Generator().manual_seed((self.config.seed + number) % 2**63)
        self.model.eval()
        with self.use():
            more = continued(self.model, prefix, SAMPLE_LENGTHS[kind], SAMPLE_TEMPERATURE, generator=generator)
        return self.tokenizer.decode(prefix + more)

    def state_dict(self):
        state = self._state if self.processes.world == 1 else _map(torch.Tensor.cpu, self._state)
        parts = [part for part in self.processes.gather(state) if part is not None]
        return {**super().state_dict(), "state": _joined(parts)}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self._state = _map(lambda whole: self._own_rows(whole).to(self.device), state["state"])

    def _own_rows(self, state):
        """This process's rows of a state, which are along the last dimension but one."""
        if self.processes.world == 1:
            return state
        return state.tensor_split(self.processes.world, -2)[self.processes.rank].contiguous()


def _map(function, state):
    """``function`` of each tensor of a state: a tensor, a tuple of them, or None."""
    if state is None:
        return None
    return function(state) if torch.is_tensor(state) else tuple(map(function, state))


def _joined(parts):
    """The states of the parts of a batch, such as those of all processes, as one."""
    if len(parts) < 2:
        return parts[0] if parts else None
    if torch.is_tensor(parts[0]):
        return torch.cat(parts, -2)
    return tuple(torch.cat(each, -2) for each in zip(*parts, strict=True))
