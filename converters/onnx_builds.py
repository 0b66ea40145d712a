"""A warning where two builds of ONNX Runtime are installed.

The builds are packages of different names, whose files have the same places: each overwrites the other's.
What is left may find no GPU, or cannot be imported. Removing one of them removes files of the other, too.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.metadata import Distribution, distributions

logger = logging.getLogger(__name__)

BUILDS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-training",
)


def installed_builds() -> list[str]:
    """The builds of ONNX Runtime that have put their files here, with their versions."""
    builds = []
    for name in BUILDS:
        found = next(iter(distributions(name=name)), None)
        if found is not None and _has_files(found):
            builds.append(f"{name} {found.version}")
    return builds


def _has_files(distribution: Distribution) -> bool:
    """Whether it is a build, and not requirements/onnxruntime-cpu, which only has the name of one."""
    return any(file.parts[0] == "onnxruntime" for file in distribution.files or ())


@cache
def warn_of_two_builds() -> None:
    """Log a warning, once in a process, where two builds are installed."""
    builds = installed_builds()
    if len(builds) > 1:
        names = " ".join(build.split()[0] for build in builds)
        logger.warning(
            "%s are both installed, and overwrite each other's files: results and GPUs may be missing; "
            "pip uninstall %s, then install one of them",
            " and ".join(builds),
            names,
        )
