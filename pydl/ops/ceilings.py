"""What this machine allows: copy and read bandwidth and float32 arithmetic, measured by our own shortest loops.

The rates that `pydl bench` compares with, measured in the same run as what they are compared with.
"""

import statistics
import time

import torch

torch.library.define("pydl::ceiling_copy", "(Tensor input, Tensor(a!) output) -> ()")
torch.library.define("pydl::ceiling_read", "(Tensor input) -> Tensor")
torch.library.define("pydl::ceiling_fma", "(Tensor(a!) result, int rounds) -> float")


def measure(megabytes=256, rounds=9):
    """A dict of rates: ``copy`` (bytes read plus written) and ``read`` in GB/s, ``fma`` in GFLOP/s.

    Medians of ``rounds`` runs over buffers of ``megabytes``, which must not fit the caches.
    """
    buffers = [torch.zeros(megabytes << 18) for _ in range(2)]
    size = buffers[0].numel() * 4
    result = torch.zeros(1)

    def rate(work, function):
        function()
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
        return work / statistics.median(seconds) / 1e9

    operations = torch.ops.pydl.ceiling_fma(result, 1)
    many = 10**7
    return {
        "copy": rate(2 * size, lambda: torch.ops.pydl.ceiling_copy(*buffers)),
        "read": rate(size, lambda: torch.ops.pydl.ceiling_read(buffers[0])),
        "fma": rate(operations * many, lambda: torch.ops.pydl.ceiling_fma(result, many)),
    }
