"""The package is `imae`; its parts lie at the top of the repository and are mapped onto it here."""

import re
import runpy
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

PARTS = ["files", "prototxt", "losses", "layers", "net", "converters", "train", "paper", "cli", "pycaffe"]
FOLDERS = [name for part in PARTS for name in (part, *(f"{part}.{sub}" for sub in find_packages(part)))]

# The package itself, whose folder has the version.
ROOT = "imae"
VERSION = re.findall(r'(?m)^__version__ = "(.+?)"', Path(ROOT, "__init__.py").read_text(encoding="utf-8"))[0]

# .ci/lowest tries the lower bounds, as .ci/lowest.txt has them. Those of torch and of the tools that check
# the code are what constraints.txt has: nothing older is tried.

# Where ONNX Runtime's GPU build is published; it runs on the CPU as well.
HAS_GPU_BUILD = "(sys_platform == 'linux' and platform_machine == 'x86_64') or sys_platform == 'win32'"
HAS_NONE = "(sys_platform != 'linux' or platform_machine != 'x86_64') and sys_platform != 'win32'"
# Where plyvel is published with LevelDB inside; elsewhere LevelDB's own library must be installed.
HAS_LEVELDB_WHEEL = "sys_platform == 'linux' and platform_machine == 'x86_64' and python_version < '3.13'"

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

setup(
    name="imae",
    version=VERSION,
    description="Caffe prototxts, solvers and caffemodels made to live again on PyTorch",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-2-Clause",
    python_requires=">=3.11",
    packages=[ROOT, *(f"{ROOT}.{name}" for name in FOLDERS)],
    package_dir={ROOT: ROOT, **{f"{ROOT}.{part}": part for part in PARTS}},
    package_data={
        "imae": ["py.typed"],
        "imae.net.kernels": ["*.c", "*.h"],  # for their hash
        "imae.prototxt": ["*.proto", "*.pyi", "models/*.md", "models/**/*.prototxt"],
        "imae.converters": ["data/*", "web/*", "plugin_template/*"],
        "imae.paper": ["*.csv", "records/*.json"],
    },
    ext_modules=[KERNELS] if sys.platform == "linux" else [],
    install_requires=[
        "torch>=2.11",  # CI tries 2.13 alone: older CPU builds cannot be had there
        "numpy>=1.26",
        "protobuf>=5.26.1",
        "lmdb>=1.4.1",
        "onnx>=1.16",
        f"onnxruntime-gpu>=1.21; {HAS_GPU_BUILD}",
        f"onnxruntime>=1.21; {HAS_NONE}",
        "opencv-python-headless>=4.8.0.76",
        "h5py>=3.10",
        "tqdm>=4.66",
        "matplotlib>=3.8",
        "grpcio-tools>=1.64",
    ],
    extras_require={
        "draw": ["pydot>=3.0.1"],
        "leveldb": ["plyvel>=1.5.1"],
        "safetensors": ["safetensors>=0.5.0"],
        "runtimes": ["openvino>=2026.4.1"],
        "test": [
            "pydot>=3.0.1",
            f"plyvel>=1.5.1; {HAS_LEVELDB_WHEEL}",
            "safetensors>=0.5.0",
            "pytest>=8",
            "pytest-xdist>=3.5",
            "ruff>=0.17.5",
            "mypy>=2.4.1",
            "types-protobuf>=7.35.1.20260906",
            "types-tqdm>=4.70.0.20261106",
            "setuptools>=77.0.3",
        ],
    },
    entry_points={
        "console_scripts": ["imae = imae.cli.main:main"],
        "imae.python_layers": ["caffe = imae.pycaffe:install_as_caffe"],
    },
)
