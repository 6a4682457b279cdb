"""More than one process: ``torchrun --nproc-per-node=N -m pydl train ...``.

torchrun tells each process its place by environment variables. All of them do the same in the same order; what is seen
outside (the console, the run's folder) is the first one's. The batch size is that of all processes together, so that a
run of N processes takes the very steps of one.
"""

import contextlib
import datetime
import inspect
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pydl.errors import OptionError, UserError

# A process that waits for one that has died gives up after this long.
TIMEOUT = datetime.timedelta(minutes=10)


class Elsewhere(UserError):
    """The first process failed and has said why: the others end with its exit code and no words of their own."""

    def __init__(self, sentence, exit_code):
        super().__init__(sentence)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Processes:
    """This process's rank, how many there are, and its number on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def first(self):
        return self.rank == 0

    def shard(self, batch):
        """This process's part of ``batch``, an index tensor: consecutive, of sizes that differ by one at most."""
        return batch.tensor_split(self.world)[self.rank] if self.world > 1 else batch

    def bounds(self, size):
        """(start, end) of this process's part of ``size`` things, as :meth:`shard` cuts them."""
        quotient, more = divmod(size, self.world)
        start = self.rank * quotient + min(self.rank, more)
        return start, start + quotient + (self.rank < more)

    def sum(self, tensor):
        """Adds ``tensor`` up over all processes, in place; returns it."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, thing):
        """A list of every process's ``thing`` (anything that pickles), in the order of the ranks."""
        if self.world == 1:
            return [thing]
        things = [None] * self.world
        dist.all_gather_object(things, thing)
        return things

    def by_first(self, function):
        """What ``function()`` gives in the first process, alone to call it; its UserError is raised in all."""
        if self.world == 1:
            return function()
        answer, error = None, None
        if self.first:
            try:
                answer = function()
            except UserError as raised:
                error = raised
        box = [(answer, error and (str(error), error.exit_code))]
        dist.broadcast_object_list(box)
        if error is not None:
            raise error
        answer, failure = box[0]
        if failure is not None:
            raise Elsewhere(*failure)
        return answer


def distributed(model, device):
    """torch's wrapper that averages gradients. Statistics of batch norm are not sent: they are equal everywhere."""
    words = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in words else "broadcast_buffers"  # until torch 2.12
    return DistributedDataParallel(model, device_ids=None if device.type == "cpu" else [device], **{buffers: False})


def environment():
    """The place that torchrun gave this process; the first of one outside torchrun.

    Raises:
        OptionError: for variables that do not fit together.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Processes()
    try:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        place = Processes(rank, world, int(os.environ.get("LOCAL_RANK", rank)))
    except ValueError:
        raise OptionError("RANK, WORLD_SIZE: expected numbers as torchrun sets them, got something else") from None
    if not 0 <= rank < world:
        raise OptionError(f"RANK: expected a number from 0 to WORLD_SIZE - 1 = {world - 1}, got {rank}")
    return place


@contextlib.contextmanager
def joined(kind):
    """Joins the processes of this run, over gloo for ``kind`` "cpu" and nccl for "cuda"; gives :class:`Processes`."""
    place = environment()
    if place.world == 1 or dist.is_initialized():
        yield place
        return
    if kind == "cuda":
        torch.cuda.set_device(place.local_rank)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield place
    finally:
        dist.destroy_process_group()
