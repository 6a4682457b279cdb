"""The pool as torch's allocator (pydl.memory.serve_torch): who gets its memory, who frees it, what must not change."""

import os
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

import pydl
import pydl.functional as PF
from pydl.ops import _nodes

MB = 1 << 20
pytestmark = [
    pytest.mark.skipif(not pydl.memory.stats()["enabled"], reason="PYDL_MEMORY_POOL=0"),
    pytest.mark.skipif(_nodes.why_not is not None, reason=f"pydl._torch is not used: {_nodes.why_not}"),
]


@pytest.fixture(autouse=True)
def _served():
    limit = pydl.memory.stats()["limit"]
    pydl.memory.empty_cache()
    assert pydl.memory.serve_torch()
    yield
    assert not pydl.memory.serve_torch(False)
    pydl.memory.set_limit(limit)
    pydl.memory.empty_cache()


def used():
    return pydl.memory.stats()["used"]


def large(megabytes=8):
    return torch.full((megabytes * MB // 4,), 1.0)


def test_large_tensors_of_torch_come_from_the_pool_and_go_back():
    before = used()
    x = large()
    assert used() - before == 8 * MB
    address = x.data_ptr()
    assert address % 64 == 0
    del x
    assert (used(), pydl.memory.stats()["idle"]) == (before, 8 * MB)
    again = large()
    assert again.data_ptr() == address
    y = again + 1
    assert (y == 2).all()
    small = torch.ones(1000)
    assert used() - before == 16 * MB
    assert (small == 1).all()


def test_off_is_a_flag_and_memory_goes_back_where_it_came_from():
    before = used()
    pooled = large()
    assert not pydl.memory.serve_torch(False)
    torchs = large()
    assert used() - before == 8 * MB
    del pooled
    assert used() == before
    assert pydl.memory.serve_torch()
    del torchs  # of torch's own allocator, freed while ours is on
    assert used() == before
    assert pydl.memory.serve_torch()  # once more changes nothing
    assert large().sum() == 2 * MB


def test_a_context_leaves_things_as_they_were():
    before = used()
    with pydl.memory.serving_torch():
        assert pydl.memory.stats()["serves_torch"]
    assert pydl.memory.stats()["serves_torch"]  # as it did before
    pydl.memory.serve_torch(False)
    with pydl.memory.serving_torch(False):
        assert not pydl.memory.stats()["serves_torch"]
    with pydl.memory.serving_torch():
        pooled = large()
        assert used() - before == 8 * MB
        large()
    assert not pydl.memory.stats()["serves_torch"]
    assert pydl.memory.stats()["idle"] == 0
    assert pooled.sum() == 2 * MB
    pydl.memory.serve_torch()


def test_outputs_of_ours_can_be_resized():
    x = large()
    for y in (x + 0, PF.dropout(x, 0.5)):
        first = y[:10].clone()
        y.resize_(10 * MB)
        assert torch.equal(y[:10], first)
        y.untyped_storage().resize_(0)
        y.untyped_storage().resize_(40 * MB)
        y.fill_(3)
    before = used()
    del y
    assert used() < before


def test_onednn_frees_raw_pointers():
    """Its blocked copies and scratch memory: raw_allocate and raw_deallocate of whichever allocator is current."""
    before = used()
    x, w = torch.randn(2, 16, 128, 128).to(memory_format=torch.channels_last), torch.randn(16, 16, 3, 3)
    pydl.memory.serve_torch(False)
    expected = F.conv2d(x, w, padding=1)
    pydl.memory.serve_torch()
    for _ in range(3):
        torch.testing.assert_close(F.conv2d(x, w, padding=1), expected)
    if torch.backends.mkldnn.is_available():
        opaque = x.contiguous().to_mkldnn()
        pydl.memory.serve_torch(False)
        torchs = opaque + opaque
        assert torch.equal(torchs.to_dense(), x + x)
        del opaque  # of the pool, freed while off
        pydl.memory.serve_torch()
        del torchs  # and the reverse
    del x
    assert used() == before


def test_numpy_keeps_memory_alive():
    before = used()
    array = large().numpy()
    other = large()
    other.fill_(7)
    assert (array == 1).all()
    back = torch.from_numpy(array)
    del array, other
    assert used() - before == 8 * MB
    assert back.sum() == 2 * MB
    del back
    assert used() == before


def test_shared_and_mapped_files_are_torchs(tmp_path):
    before = used()
    x = large()
    x.share_memory_()
    assert x.is_shared()
    assert (x == 1).all()
    assert used() == before
    torch.save(x.clone(), tmp_path / "x.pt")
    mapped = torch.load(tmp_path / "x.pt", mmap=True, weights_only=True)
    file = torch.from_file(str(tmp_path / "y"), shared=True, size=2 * MB)
    file.fill_(2)
    assert used() == before
    assert (mapped + 0 == 1).all()
    assert (file == 2).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU; there is none")
def test_pinned_memory_is_not_of_the_pool():
    before = used()
    pinned = torch.ones(2 * MB, pin_memory=True)
    assert used() == before
    assert pinned.is_pinned()
    assert (pinned == 1).all()
    copy = large().pin_memory()
    assert used() == before
    assert (copy == 1).all()


class _Sums(torch.utils.data.Dataset):
    def __init__(self):
        self.ones = large()

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return self.ones[:MB] + i


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_workers_of_a_data_loader():
    """They read a pooled tensor of the parent's, have pools of their own, and send batches through shared memory."""
    sums = _Sums()
    loader = torch.utils.data.DataLoader(sums, 2, num_workers=2, multiprocessing_context="fork")
    assert [batch[:, 5].tolist() for batch in loader] == [[1.0, 2.0], [3.0, 4.0]]
    assert (sums.ones == 1).all()


def test_threads_allocate_and_free_each_others_tensors():
    before, wrong, shelf = used(), [], []

    def work(number):
        for n in range(15):
            y = torch.full(((2 + (number + n) % 3) * MB // 4,), float(number))
            shelf.append((number, y))
            other, z = shelf.pop(0)
            if not (z == other).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shelf.clear()
    assert not wrong
    assert used() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork_in_the_middle_of_use():
    code = """
import os, threading, torch, pydl
assert pydl.memory.serve_torch()
x, stop = torch.ones(2 << 20), False
def churn():  # holds the locks as often as can be while we fork
    while not stop:
        torch.empty(2 << 20)
thread = threading.Thread(target=churn); thread.start()
torch.ones(8 << 20).sum()  # threads of OpenMP, which a child has not
for _ in range(20):
    child = os.fork()
    if child == 0:
        y = torch.empty(2 << 20)
        y.numpy()[:] = 3
        good = x.numpy().max() == 1 and y.numpy().min() == 3
        del x
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stop = True
thread.join()
assert (x == 1).all()
print("survived")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "survived", done.stderr


def _reported():
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        x = torch.empty(2 * MB)
        del x
    events = {event.key: event for event in found.key_averages()}
    return events["aten::empty"].cpu_memory_usage, events["[memory]"].cpu_memory_usage


def test_the_profiler_is_told():
    served = _reported()
    assert served == (8 * MB, -8 * MB)
    pydl.memory.serve_torch(False)
    assert _reported() == served


STRESS = """
import random, sys, threading, torch, pydl
assert pydl.memory.serve_torch()
torch.set_num_threads(1)
pydl.memory.set_limit(48 << 20)
shelf, lock, wrong = [], threading.Lock(), []
def work(seed):
    rng = random.Random(seed)
    for n in range(150):
        size, value = rng.randrange(100_000, 1_500_000), rng.random()
        x = torch.full((size,), value)
        if n % 3 == 0:
            x.resize_(rng.randrange(size // 2, 2 * size))[size // 2:] = value
        if seed == 0 and n % 10 == 0:
            pydl.memory.serve_torch(n % 20 == 0)
        if n % 40 == seed:
            pydl.memory.empty_cache()
        with lock:
            shelf.append((x.shape[0], value, x))
            size, value, x = shelf.pop(rng.randrange(len(shelf))) if len(shelf) > 12 else shelf[0]
        if x.shape[0] != size or x.min() != x.max() or abs(x[0].item() - value) > 1e-6:
            wrong.append(seed)
threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
[t.start() for t in threads]; [t.join() for t in threads]
x = None
shelf.clear()
stats = pydl.memory.stats()
assert not wrong and stats["reused"] > 0 and stats["given_back"] > 0 and stats["idle"] <= 48 << 20, (wrong, stats)
assert stats["used"] == 0, stats
kept = [torch.ones(4 << 20), torch.ones(4 << 20).numpy(), (torch.ones(2, 8, 256, 256).to_mkldnn())]
class Late:
    def __del__(self): self.x.add_(1)
late = Late(); late.x = torch.ones(4 << 20)
cycle = [torch.ones(4 << 20)]; cycle.append(cycle)
print("survived", flush=True)
"""


def test_random_sizes_in_threads_and_an_exit_with_live_tensors():
    """In Python's development mode, whose allocator checks for overruns."""
    run = [sys.executable, "-X", "dev", "-W", "ignore", "-c", STRESS]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "survived"), done.stderr


def test_limit_and_eviction_are_as_ever():
    pydl.memory.set_limit(20 * MB)
    tensors = [large() for _ in range(4)]
    del tensors
    assert pydl.memory.stats()["idle"] == 16 * MB
    kept = large()
    pydl.memory.set_limit(0)
    assert pydl.memory.stats()["idle"] == 0
    del kept
    assert pydl.memory.stats()["idle"] == 0


def test_what_the_limit_would_not_keep_is_torchs():
    """The pool touches all pages of a buffer; a huge one that is used in part must cost what it uses, as with torch."""
    pydl.memory.set_limit(20 * MB)
    before = used()
    x = torch.empty(21 * MB // 4)
    assert used() == before
    y = torch.empty(20 * MB // 4)
    assert used() - before == 20 * MB
    assert (x.fill_(1) == 1).all()
    del x, y
    assert used() == before


def test_lazy_clones_of_pooled_memory():
    before = used()
    x = large()
    y = torch._lazy_clone(x)
    assert used() - before == 8 * MB
    y += 1
    assert (x == 1).all()
    assert (y == 2).all()
    assert used() - before == 16 * MB
    del x, y
    assert used() == before


def test_what_is_too_large_is_refused_in_torchs_words():
    with pytest.raises(RuntimeError, match=r"(?i)memory|alloc"):
        torch.empty(1 << 60)
    assert large().sum() == 2 * MB


def test_without_the_module_it_does_not_serve(monkeypatch):
    pydl.memory.serve_torch(False)
    monkeypatch.setattr(_nodes, "_module", None)
    before = used()
    assert not pydl.memory.serve_torch()
    x = large()
    assert used() == before
    assert (x == 1).all()


def test_training_serves_torch_meanwhile_and_gives_back(monkeypatch, tmp_path):
    from pydl import train

    pydl.memory.serve_torch(False)
    seen = []

    def run(*args):
        large()
        seen.append((pydl.memory.stats()["serves_torch"], pydl.memory.stats()["idle"] > 0))

    monkeypatch.setattr(train, "_run", run)
    for options in ({}, {"compare": True}, {"backend": "torch"}):
        train.train(train.Config(model="mlp", **options), out=tmp_path)
        assert not pydl.memory.stats()["serves_torch"]
        assert pydl.memory.stats()["idle"] == 0
    assert seen == [(True, True), (False, False), (False, False)]
