"""What pyproject.toml cannot say: the folders of the packages, and the kernels in C.

The package is `imae`; its parts lie at the top of the repository and are mapped onto it here.
"""

import runpy
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

PARTS = ["files", "prototxt", "losses", "layers", "net", "converters", "train", "paper", "cli", "pycaffe"]
FOLDERS = [name for part in PARTS for name in (part, *(f"{part}.{sub}" for sub in find_packages(part)))]
ROOT = "imae"  # the folder of the package itself

# The library carries the hash of its sources, which is compared when it is loaded. The package cannot be
# imported yet, so the file that computes the hash is run by itself.
SOURCES_HASH = runpy.run_path("net/kernels/sources.py")["sources_hash"]()

# Optional: where it cannot be built, torch's operations take its place.
KERNELS = Extension(
    "imae.net.kernels._kernels",
    ["net/kernels/kernels.c"],
    depends=[str(path) for path in sorted(Path("net/kernels").glob("*.h"))],
    define_macros=[("SOURCES_HASH", SOURCES_HASH)],
    extra_compile_args=[
        "-O3",
        "-std=gnu11",
        "-fopenmp",
        "-fno-trapping-math",
        "-fno-math-errno",
    ],
    extra_link_args=["-fopenmp"],
    optional=True,
)


class BuildKernels(build_ext):
    """The kernels know nothing of Python: ctypes calls them. So no Python is in the name of their file."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".so"))


class Wheel(bdist_wheel):
    """One wheel serves every Python 3; without the kernels, as where there is no C compiler, every system."""

    def run(self) -> None:
        self.run_command("build_ext")
        if not any(Path(path).exists() for path in self.get_finalized_command("build_ext").get_outputs()):
            self.distribution.ext_modules = []
            self.root_is_pure = True
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    packages=[ROOT, *(f"{ROOT}.{name}" for name in FOLDERS)],
    package_dir={ROOT: ROOT, **{f"{ROOT}.{part}": part for part in PARTS}},
    ext_modules=[KERNELS] if sys.platform == "linux" else [],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
)
