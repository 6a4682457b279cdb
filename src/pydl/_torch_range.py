"""The torch that pydl takes: the one place where it stands, for the build, for pip's metadata and for the import.

Imports nothing, so that setup.py can run it where nothing is installed. pydl was built beside torch from ``OLDEST`` to
before ``BEYOND``; how far the tests were run with each is in build_backend/NOTES.md.
"""

OLDEST, BEYOND = (2, 11), (2, 16)
FETCHED = (2, 13)  # what pip is to install where there is none: the newest whose build for CPUs alone was tested


def release(version):
    """``(2, 13)`` of ``"2.13.0+cpu"``."""
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int(minor)


def requirement(installed=None):
    """The range as pip reads it, for metadata made beside the torch of version ``installed``, or beside none.

    Beside none it ends with ``FETCHED``, so that pip does not fetch several GB of a newer one for GPUs; beside a newer
    one it ends with that, so that pip leaves it in place.
    """
    newest = FETCHED if installed is None else max(FETCHED, release(installed))
    return f"torch>={OLDEST[0]}.{OLDEST[1]},<{newest[0]}.{newest[1] + 1}"


def supported():
    """The range in words: ``"2.11 to 2.15"``."""
    return f"{OLDEST[0]}.{OLDEST[1]} to {BEYOND[0]}.{BEYOND[1] - 1}"


def why_not(version):
    """What to do about a torch of ``version`` that pydl does not take; None for one that it takes."""
    if OLDEST <= release(version) < BEYOND:
        return None
    pip = f"pip install 'torch>={OLDEST[0]}.{OLDEST[1]},<{BEYOND[0]}.{BEYOND[1]}'"
    return f"pydl: expected torch to be of version {supported()}, got {version}; {pip}, or another version of pydl"
