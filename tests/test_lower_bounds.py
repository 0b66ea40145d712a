"""The lower bounds of pyproject.toml are those that .ci/lowest tries, or the versions that .ci/run tries."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Older releases are not tried: for the rules of the tools; openvino only shows that models run there.
NEWEST_ONLY = {"ruff", "mypy", "types-protobuf", "types-tqdm", "openvino"}
NEWEST_ONLY |= {"ipykernel", "nbclient", "nbconvert"}  # any Jupyter runs the notebooks
NEWEST_ONLY |= {"mkdocs-material", "mkdocstrings-python"}  # they make the site
# The exception: older ones bring CUDA, too large for CI. 2.11 is what GPU machines at hand have.
TORCH = Version("2.11")


def pinned(path: str) -> dict[str, Version]:
    text = (ROOT / path).read_text(encoding="utf-8")
    return {name: Version(version) for name, version in re.findall(r"(?m)^([\w-]+)==(\S+)$", text)}


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for group in (PROJECT["dependencies"], *extras) for text in group]


def lower_bounds() -> dict[str, Version]:
    """Each requirement has one bound, the lower one, and the same wherever it stands."""
    names_and_bounds = set()
    for requirement in requirements():
        (bound,) = requirement.specifier
        assert bound.operator == ">=", requirement
        names_and_bounds.add((requirement.name, bound.version))
    bounds = {name: Version(version) for name, version in names_and_bounds}
    assert len(bounds) == len(names_and_bounds), "a package has two lower bounds"
    return bounds


def test_the_package_is_built_with_the_lowest_setuptools_that_is_tried() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'requires = ["setuptools>={pinned(".ci/lowest.txt")["setuptools"]}"]' in text


def test_the_installation_is_of_these_requirements() -> None:
    """Else `pip install` must be run again. Markers may be written anew, so they are compared by value."""
    installed = [Requirement(line) for line in metadata.requires("imae") or ()]
    assert sorted((one.name, str(one.specifier)) for one in installed) == sorted(
        (one.name, str(one.specifier)) for one in requirements()
    )


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


def test_the_workflow_tries_the_pythons_that_the_package_names() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    tried = re.findall(r'"(3\.\d+)"', text)
    assert PROJECT["requires-python"] == f">={tried[0]}" and len(tried) == 3
    classifier = "Programming Language :: Python :: 3."
    assert [name[-4:] for name in PROJECT["classifiers"] if name.startswith(classifier)] == tried
    assert "- run: .ci/run" in text


def test_a_release_is_published_after_all_checks_and_only_from_a_tag() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    triggers = text[text.index("\non:\n") : text.index("\npermissions:\n")]
    assert triggers == '\non:\n  push:\n    tags: ["v*"]'
    others, publish = text.split("\n  publish:\n")
    assert "needs: [ci, wheel]" in publish and "needs: archives" in others
    assert "pypi-publish" in publish and "id-token: write" in publish
    assert "pypi-publish" not in others and "write" not in others
    ci = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "workflow_call:" in ci and "uses: ./.github/workflows/ci.yml" in others
    (pythons,) = re.findall(r"python: (\[.+\])", ci)
    assert f"python: {pythons}" in others
