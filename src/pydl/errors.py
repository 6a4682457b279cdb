"""Errors that a user can mend: the command line prints their sentence without a traceback and exits with their code."""


class UserError(Exception):
    """A sentence for the user; ``exit_code`` is what the command line ends with."""

    exit_code = 1


def did_you_mean(name, known):
    """``"; did you mean lenet?"`` where one of ``known`` is close to ``name``, else nothing: the end of an error."""
    import difflib  # here, since nobody waits for an error

    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


class OptionError(UserError, ValueError):
    """An option, name or value that cannot be taken."""

    exit_code = 2


class MissingExtra(UserError, ImportError):
    """A package of an optional extra is not installed."""

    def __init__(self, what, package, extra="train"):
        super().__init__(f'{what} needs {package}, which is not installed; run pip install "pydl-kernels[{extra}]"')


class InstallationError(UserError, ImportError):
    """What is installed does not go together, or is not all there."""


class DataError(UserError, RuntimeError):
    """A data set's files are missing, truncated or something else."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be read, or belongs to something else."""


class TrainingError(UserError, RuntimeError):
    """Training cannot go on."""
