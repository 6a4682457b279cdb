"""Names, what is said of those that there are not, and what importing them takes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pydl import d2l
from pydl.d2l.unserved import INSTEAD


def test_each_name_is_described():
    for name in d2l.__all__:
        assert callable(getattr(d2l, name))
        assert getattr(d2l, name).__doc__, name


def test_a_name_is_served_or_has_something_in_its_stead():
    assert not set(d2l.__all__) & set(INSTEAD)
    for name, instead in INSTEAD.items():
        with pytest.raises(AttributeError, match=f"pydl.d2l: {name} is not served; use ") as caught:
            getattr(d2l, name)
        assert str(caught.value).endswith(instead)


def test_what_stands_in_stead_is_there():
    """Names of our own among the words of the hints are served."""
    for instead in INSTEAD.values():
        for word in instead.replace(",", " ").replace(";", " ").split():
            if word.startswith(("train_", "load_", "try_")) or word in ("Animator", "plot", "sgd", "Timer"):
                assert word in d2l.__all__, word


def test_the_table_has_them_all():
    path = Path(__file__).resolve().parents[2] / "src" / "pydl" / "d2l" / "NAMES.md"
    if not path.is_file():
        pytest.skip("no source tree around the tests")
    rows = re.findall(r"^\| (`.*?) \| ([\d, ]+) \|", path.read_text(), re.MULTILINE)
    names = [name for row, _ in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(names) == len(set(names))
    assert set(names) == {*d2l.__all__, "plt"}


def test_a_slip_of_the_keyboard():
    with pytest.raises(
        AttributeError, match=r"module 'pydl\.d2l' has no attribute 'train_ch66'; did you mean train_ch6\?"
    ):
        d2l.train_ch66  # noqa: B018  (asking for it is the test)


def test_nothing_heavy_is_imported_before_it_is_used():
    code = (
        "import sys, pydl; assert 'pydl.d2l' not in sys.modules; from pydl import d2l; d2l.Timer(); d2l.Vocab(['a']); "
        "print([m for m in ('matplotlib', 'sklearn', 'PIL', 'IPython', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
