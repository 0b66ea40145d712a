"""Builds of ONNX Runtime that overwrite each other are named; a package that only has a name is none."""

from __future__ import annotations

import logging
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from imae.converters import onnx_builds
from imae.converters.onnx_builds import installed_builds, warn_of_two_builds

ROOT = Path(__file__).parents[2]
STANDS_IN = ROOT / "requirements" / "onnxruntime-cpu" / "pyproject.toml"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that packages are looked for in."""
    find = onnx_builds.distributions
    monkeypatch.setattr(onnx_builds, "distributions", lambda name: find(name=name, path=[str(tmp_path)]))
    warn_of_two_builds.cache_clear()
    return tmp_path


def install(site: Path, name: str, version: str, *files: str) -> None:
    """A package as pip would leave it."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in (*files, f"{info.name}/METADATA")))


def test_two_builds_are_warned_of_once(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    install(site, "onnxruntime", "1.31.1", "onnxruntime/__init__.py")
    install(site, "onnxruntime-gpu", "1.30.0", "onnxruntime/__init__.py")
    with caplog.at_level(logging.WARNING):
        warn_of_two_builds()
        warn_of_two_builds()
    assert caplog.messages == [
        "onnxruntime 1.31.1 and onnxruntime-gpu 1.30.0 are both installed, and overwrite each other's files: "
        "results and GPUs may be missing; pip uninstall onnxruntime onnxruntime-gpu, then install one of them"
    ]


def test_a_build_and_a_name_are_not_warned_of(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    install(site, "onnxruntime", "1.31.1", "onnxruntime/__init__.py")
    install(site, "onnxruntime-gpu", "1.31.1+cpu")
    assert installed_builds() == ["onnxruntime 1.31.1"]
    warn_of_two_builds()
    assert caplog.messages == []


def test_one_build_is_installed_here() -> None:
    assert len(installed_builds()) == 1


def test_what_stands_in_satisfies_what_imae_requires() -> None:
    """Its version also satisfies constraints.txt, or pip would refuse it."""
    project = tomllib.loads(STANDS_IN.read_text(encoding="utf-8"))["project"]
    imae = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {one.name: one.specifier for one in map(Requirement, imae["dependencies"])}
    assert project["version"] in required[project["name"]]
    (build,) = map(Requirement, project["dependencies"])
    assert build.specifier == required[build.name]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"(?m)^([\w-]+)==(\S+)$", constraints))
    assert project["version"] == f"{pinned[project['name']]}+cpu"
    assert pinned[build.name] == pinned[project["name"]]
