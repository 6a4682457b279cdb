"""The command ``pydl``: options in, one sentence out when something is wrong, and an exit code that scripts can use.

Exit codes: 0 done; 1 something failed (files, disk, a loss that is not finite); 2 an option or a name; 130 Ctrl-C.
"""

import os
import sys

from pydl.errors import UserError


def main():
    """Runs the command line; errors that a user can mend are one sentence on stderr."""
    try:
        from pydl.commands import app  # inside, so that Ctrl-C while it is imported is as quiet as later

        app(prog_name="pydl")
    except UserError as error:
        if _speaks(error):
            print(f"pydl: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a folder that may not be written to
        where = f"{error.filename}: " if error.filename else ""
        print(f"pydl: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("pydl: interrupted", file=sys.stderr)
        sys.exit(130)
    except SystemExit as end:
        if end.code == 130:  # Typer's, which says nothing
            print("pydl: interrupted", file=sys.stderr)
        raise


def _speaks(error):
    """Whether this process prints ``error``: the first of those that torchrun started, unless it is another's own."""
    return os.environ.get("RANK", "0") == "0" or getattr(error, "local", False)
