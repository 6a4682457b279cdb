"""What this machine allows: copy and read bandwidth, float32 arithmetic and the way from one core to another, measured
by our own shortest loops.

The rates that `pydl bench` compares with, measured in the same run as what they are compared with.
"""

import statistics
import time

import torch

torch.library.define("pydl::probe_copy", "(Tensor input, Tensor(a!) output) -> ()")
torch.library.define("pydl::probe_read", "(Tensor input) -> Tensor")
torch.library.define("pydl::probe_fma", "(Tensor(a!) result, int rounds) -> float")
torch.library.define("pydl::probe_round_trip", "(Tensor device, int rounds) -> int")


class Probes:
    """Two buffers in memory, beyond any cache, and the loops over them.

    What memory delivers changes from minute to minute where a machine is shared (40 to 115 GB/s were seen in a day), so
    a share of it means something only beside a measurement of the same minute: :meth:`copy` and :meth:`read` take
    milliseconds, to be called between the rounds of whatever is compared with them.
    """

    def __init__(self, megabytes=256):
        # written, so that they have pages of their own: reading memory that nobody wrote reads one page of zeros
        self.buffers = [torch.ones(megabytes << 18) for _ in range(2)]
        self.result = torch.zeros(1)

    def _rate(self, work, function, *args):
        start = time.perf_counter()
        function(*args)
        return work / (time.perf_counter() - start) / 1e9

    def copy(self):
        """GB/s, bytes read plus written; the copy is written past the caches."""
        return self._rate(8 * self.buffers[0].numel(), torch.ops.pydl.probe_copy, *self.buffers)

    def read(self):
        """GB/s."""
        return self._rate(4 * self.buffers[0].numel(), torch.ops.pydl.probe_read, self.buffers[0])

    def fma(self, rounds=10**7):
        """GFLOP/s of float32 multiply-adds in registers."""
        operations = torch.ops.pydl.probe_fma(self.result, 1)
        return self._rate(operations * rounds, torch.ops.pydl.probe_fma, self.result, rounds)

    def round_trip(self, rounds=4000):
        """Nanoseconds for a cache line to go to another thread's core and back, or None where there is one thread.

        The cores of a virtual machine may move apart and together again (80 and 380 ns on two of a Zen 5, within
        seconds), and whatever one of them reads that the other wrote takes as much longer.
        """
        start = time.perf_counter()
        made = torch.ops.pydl.probe_round_trip(self.result, rounds)
        return (time.perf_counter() - start) / made * 1e9 if made == rounds else None


def measure(probes=None, rounds=9):
    """A dict: ``copy`` and ``read`` in GB/s, ``fma`` in GFLOP/s, ``round_trip`` in ns; medians of ``rounds`` after a
    warm-up.
    """
    probes = probes or Probes()
    rates = {}
    for name in ("copy", "read", "fma"):
        probe = getattr(probes, name)
        probe()
        rates[name] = statistics.median(probe() for _ in range(rounds))
    trips = [trip for trip in (probes.round_trip() for _ in range(rounds)) if trip is not None]
    rates["round_trip"] = statistics.median(trips) if trips else None
    return rates
