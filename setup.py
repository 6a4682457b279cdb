"""Drives CMake and ninja; metadata is in pyproject.toml, sources and flags are in CMakeLists.txt."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def fail(sentence):
    sys.exit(f"pydl: {sentence}")


def torch_folder():
    """The torch to build against: the one in the target environment, else the build environment's own."""
    for name in ("purelib", "platlib"):
        folder = Path(sysconfig.get_paths()[name], "torch")
        if (folder / "version.py").is_file():
            return folder
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        fail("torch was not found; install it first (pip install 'torch>=2.11,<2.14').")
    return Path(spec.origin).parent


def check_torch(folder):
    """Refuses a torch that is not supported, by torch/version.py: importing torch takes seconds."""
    version = re.search(r"__version__ = '([^']+)'", (folder / "version.py").read_text()).group(1)
    release = tuple(int(part) for part in version.split(".")[:2])
    if not (2, 11) <= release < (2, 14):
        fail(f"torch {version} is not supported; install torch>=2.11,<2.14.")


def check_cuda():
    """PYDL_CUDA=1 asks for the CUDA library, whose kernels are still to be written; it must not pass for done."""
    wanted = os.environ.get("PYDL_CUDA")
    if wanted not in (None, "0", "1"):
        fail(f"PYDL_CUDA must be 0 or 1, got {wanted!r}.")
    if wanted == "1":
        fail("PYDL_CUDA=1, but this version has no CUDA C++ kernels yet; unset it: Triton serves GPU tensors.")


class CMakeBuild(build_ext):
    def build_extension(self, ext):
        if sys.platform == "win32":
            fail("Windows is not supported; use WSL 2, Linux or macOS.")
        check_cuda()
        torch = torch_folder()
        check_torch(torch)
        cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
        if cmake is None or ninja is None:
            fail("cmake and ninja are needed to compile; install them (pip install cmake ninja).")
        if not (os.environ.get("CXX") or any(map(shutil.which, ("c++", "g++", "clang++")))):
            fail("no C++ compiler was found; install g++ 11 or newer (apt install g++, or xcode-select --install).")
        import pybind11

        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"),
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPYDL_TORCH_DIR={torch}",
            f"-DPYDL_PYBIND11_INCLUDE={pybind11.get_include()}",
            f"-DPYDL_PYTHON_INCLUDE={sysconfig.get_paths()['include']}",
            f"-DPYDL_OUTPUT_DIR={output.parent}",
            f"-DPYDL_EXT_SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}",
            f"-DPYDL_SANITIZE={'ON' if os.environ.get('PYDL_SANITIZE') == '1' else 'OFF'}",
        ]
        jobs = os.environ.get("MAX_JOBS")
        try:
            subprocess.run(configure, check=True)
            subprocess.run([cmake, "--build", str(build), *(["-j", jobs] if jobs else [])], check=True)
        except subprocess.CalledProcessError as error:
            # CMake has already printed which compiler is missing or too old, or the line that does not compile
            fail(f"the build stopped with exit code {error.returncode}; the reason stands above.")


setup(
    ext_modules=[Extension("pydl._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    # kernels/ is installed as pydl.kernels: a Triton kernel is Python
    packages=[*find_packages(include=["pydl", "pydl.*"]), "pydl.kernels", "pydl.kernels.triton"],
    package_dir={"pydl.kernels": "kernels"},
    package_data={"pydl": ["py.typed"]},
)
