"""setuptools' build backend, plus torch as a build requirement only where the environment has none.

pip builds in an isolated environment. Asking for torch there unconditionally would download a second one beside
the torch that is already installed, and might compile against another version than the one that will load us.
"""

from setuptools import build_meta as _setuptools
from setuptools.build_meta import *  # noqa: F403  (PEP 517: every hook that is not overridden below)
from torch_range import installed_folder, requirement


def _torch_requirement():
    """[] when the target environment has torch, what pip is to install otherwise."""
    return [] if installed_folder() else [requirement()]


def get_requires_for_build_wheel(config_settings=None):
    return _setuptools.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings=None):
    return _setuptools.get_requires_for_build_editable(config_settings) + _torch_requirement()
