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
sys.path.insert(0, str(ROOT / "build_backend"))  # for `python setup.py`; pip has it there already

import torch_range


def fail(sentence):
    sys.exit(f"pydl: {sentence}")


def torch_folder():
    """The torch to build against: the one in the target environment, else the build environment's own."""
    folder = torch_range.installed_folder()
    if folder is not None:
        return folder
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        fail(f"torch was not found; install it first (pip install '{torch_range.requirement()}').")
    return Path(spec.origin).parent


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        nvcc = Path(home, "bin", "nvcc")
        return str(nvcc) if nvcc.is_file() else None
    default = Path("/usr/local/cuda/bin/nvcc")
    return shutil.which("nvcc") or (str(default) if default.is_file() else None)


# Machine code of a family runs on its later members: 8.0 on 8.6 and 8.9. The newest goes along as PTX too.
DEFAULT_ARCHITECTURES = ("75", "80", "90", "100", "120")


def cuda_architectures(nvcc):
    """CMAKE_CUDA_ARCHITECTURES, from torch's TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX") or what nvcc knows of the default."""
    text = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"sm_(\d+)", text))
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if not asked:
        present = [name for name in DEFAULT_ARCHITECTURES if name in known]
        return ";".join([*(f"{name}-real" for name in present[:-1]), present[-1]])
    names = []
    for word in re.split(r"[;,\s]+", asked):
        match = re.fullmatch(r"(\d+)\.(\d)(a?)(\+PTX)?", word)
        if match is None:
            fail(f"TORCH_CUDA_ARCH_LIST: expected numbers such as '8.0;9.0+PTX', got {word!r}.")
        number = match[1] + match[2]
        if int(number) < 75:
            fail(f"TORCH_CUDA_ARCH_LIST: expected compute capability 7.5 or newer, got {word!r}.")
        if number not in known:
            fail(f"TORCH_CUDA_ARCH_LIST: expected what {nvcc} compiles for, got {word!r}; it knows {sorted(known)}.")
        names.append(number + match[3] + ("" if match[4] else "-real"))
    return ";".join(names)


def cuda_arguments(torch_cuda):
    """CMake arguments for the CUDA library: built when torch is a CUDA build and a fitting nvcc is found.

    PYDL_CUDA=1 asks for it (beside a CPU torch too, where it is built but not loaded), PYDL_CUDA=0 leaves it out.
    """
    wanted = os.environ.get("PYDL_CUDA")
    if wanted not in (None, "0", "1"):
        fail(f"PYDL_CUDA must be 0 or 1, got {wanted!r}.")
    if wanted == "0" or (wanted is None and torch_cuda is None):
        return ["-DPYDL_CUDA=OFF"]
    nvcc = find_nvcc()
    if nvcc is None:
        if wanted == "1":
            fail("PYDL_CUDA=1, but nvcc was not found; install the CUDA toolkit or set CUDA_HOME.")
        print("pydl: torch has CUDA but nvcc was not found; GPU tensors will be served by Triton.", file=sys.stderr)
        return ["-DPYDL_CUDA=OFF"]
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", text).groups()
    if int(release[0]) < 12:
        fail(f"nvcc is CUDA {'.'.join(release)}; install CUDA 12 or newer, or set PYDL_CUDA=0.")
    if torch_cuda is not None and release[0] != torch_cuda.split(".")[0]:
        fail(
            f"nvcc is CUDA {'.'.join(release)} but torch was built with CUDA {torch_cuda}; "
            f"install the CUDA {torch_cuda.split('.')[0]} toolkit, or set PYDL_CUDA=0 to build for the CPU alone."
        )
    return [
        "-DPYDL_CUDA=ON",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
        f"-DPYDL_CUDA_ARCHITECTURES={cuda_architectures(nvcc)}",
    ]


def emulate_avx512():
    """Whether PYDL_EMULATE_AVX512=1 asks for the avx512 kernels in AVX2, which is for tests in this folder alone."""
    return os.environ.get("PYDL_EMULATE_AVX512") == "1"


class CMakeBuild(build_ext):
    def run(self):
        if emulate_avx512() and not self.inplace:
            fail("PYDL_EMULATE_AVX512=1 is for tests; build in place (python setup.py build_ext --inplace).")
        super().run()

    def build_extension(self, ext):
        """Both modules, with the first."""
        if ext is not self.extensions[0]:
            return
        if sys.platform == "win32":
            fail("Windows is not supported; use WSL 2, Linux or macOS.")
        torch = torch_folder()
        version, torch_cuda = torch_range.versions(torch)
        if why_not := torch_range.why_not(version):
            sys.exit(why_not)
        cuda = cuda_arguments(torch_cuda)
        cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
        if cmake is None or ninja is None:
            fail("cmake and ninja are needed to compile; install them (pip install cmake ninja).")
        if not (os.environ.get("CXX") or any(map(shutil.which, ("c++", "g++", "clang++")))):
            fail("no C++ compiler was found; install g++ 11 or newer (apt install g++, or xcode-select --install).")

        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"),
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPYDL_TORCH_DIR={torch}",
            f"-DPYDL_TORCH_VERSION={version}",
            f"-DPYDL_PYTHON_INCLUDE={sysconfig.get_paths()['include']}",
            f"-DPYDL_OUTPUT_DIR={output.parent}",
            f"-DPYDL_EXT_SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}",
            f"-DPYDL_SANITIZE={'ON' if os.environ.get('PYDL_SANITIZE') == '1' else 'OFF'}",
            f"-DPYDL_EMULATE_AVX512={'ON' if emulate_avx512() else 'OFF'}",
            *cuda,
        ]
        # one that an earlier build left here would be loaded beside the new extension
        (output.parent / "libpydl_cuda.so").unlink(missing_ok=True)
        jobs = os.environ.get("MAX_JOBS")
        try:
            subprocess.run(configure, check=True)
            subprocess.run([cmake, "--build", str(build), *(["-j", jobs] if jobs else [])], check=True)
        except subprocess.CalledProcessError as error:
            # CMake has already printed which compiler is missing or too old, or the line that does not compile
            fail(f"the build stopped with exit code {error.returncode}; the reason stands above.")


# kernels/ is installed as pydl.kernels, since a Triton kernel is Python, and benchmarks/ as pydl.benchmarks, the folder
# that `pydl bench` hands to pytest
KERNELS = ["", *(f".{name}" for name in find_packages("kernels"))]

setup(
    install_requires=[torch_range.requirement_here(), "numpy", "rich>=13", "typer>=0.15"],
    ext_modules=[Extension("pydl._C", sources=[]), Extension("pydl._torch", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    packages=[*find_packages("src"), *(f"pydl.kernels{name}" for name in KERNELS), "pydl.benchmarks"],
    package_dir={
        "": "src",
        "pydl.benchmarks": "benchmarks",
        **{f"pydl.kernels{name}": f"kernels{name.replace('.', '/')}" for name in KERNELS},
    },
    package_data={"pydl": ["py.typed"]},
    include_package_data=False,  # C++ sources and notes are in the source distribution, not beside the Python files
)
