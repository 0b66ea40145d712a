"""The lower bounds of setup.py are those that .ci/lowest tries, or the versions that .ci/run tries."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parents[1]
# Older releases are not tried: for the rules of the tools; openvino only shows that models run there.
NEWEST_ONLY = {"ruff", "mypy", "types-protobuf", "types-tqdm", "openvino"}
# The exception: older ones bring CUDA, too large for CI. 2.11 is what GPU machines at hand have.
TORCH = Version("2.11")


def pinned(path: str) -> dict[str, Version]:
    text = (ROOT / path).read_text(encoding="utf-8")
    return {name: Version(version) for name, version in re.findall(r"(?m)^([\w-]+)==(\S+)$", text)}


def lower_bounds() -> dict[str, Version]:
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    found = set(re.findall(r'"([\w-]+)>=([\d.]+)[;"]', text))
    bounds = {name: Version(version) for name, version in found}
    assert len(bounds) == len(found), "a package has two lower bounds"
    return bounds


def test_the_package_is_built_with_the_lowest_setuptools_that_is_tried() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'requires = ["setuptools>={pinned(".ci/lowest.txt")["setuptools"]}"]' in text


def test_every_requirement_has_a_lower_bound() -> None:
    required = {re.split(r"[^\w-]", line)[0] for line in metadata.requires("imae") or ()}
    assert required == lower_bounds().keys()


def test_the_lower_bounds_are_the_versions_that_are_tried() -> None:
    lowest, constraints = pinned(".ci/lowest.txt"), pinned("constraints.txt")
    assert lowest.keys() & constraints.keys() == lowest.keys()
    assert lowest.keys().isdisjoint(NEWEST_ONLY)
    newest = {name: constraints[name] for name in NEWEST_ONLY}
    assert constraints["torch"] >= TORCH
    assert lower_bounds() == lowest | newest | {"torch": TORCH}


def test_the_hooks_of_a_commit_have_the_version_that_ci_has() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^    rev: v(\S+)$", text) == [str(pinned("constraints.txt")["ruff"])]


def test_the_workflow_tries_the_pythons_that_setup_allows() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    tried = re.findall(r'"(3\.\d+)"', text)
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f'python_requires=">={tried[0]}"' in setup and len(tried) == 3
    assert "- run: .ci/run" in text
