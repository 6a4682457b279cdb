"""Finding and reading the files of a data set, with errors that name them."""

import gzip
import zlib
from pathlib import Path

from pydl.errors import DataError


def find(name, folders, files):
    """The folder among ``folders`` that holds every one of ``files``; each entry is a tuple of names that will do.

    Returns:
        (folder, the path found for each entry).

    Raises:
        DataError: names the files that are missing and the folder where they belong.
    """
    best = None
    for folder in map(Path, folders):
        paths = [next((folder / file for file in names if (folder / file).is_file()), None) for names in files]
        if all(paths):
            return folder, paths
        missing = [names[0] for names, path in zip(files, paths, strict=True) if path is None]
        if best is None or len(missing) < len(best[1]):
            best = folder, missing
    folder, missing = best
    raise DataError(
        f"data set {name!r}: {folder} lacks {', '.join(missing)}; --download fetches them (by torchvision), or put the "
        "files there, or give their --root"
    )


def read(path):
    """The bytes of a file, unpacked when its name ends in .gz.

    Raises:
        DataError: for a file that cannot be read or unpacked.
    """
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            return file.read()
    except EOFError:
        raise DataError(f"{path}: truncated; fetch it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: expected a gzip file, got something else or a damaged one ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
