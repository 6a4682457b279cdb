"""``python -m pydl`` is the command ``pydl``."""

from pydl.cli import main

if __name__ == "__main__":
    main()
