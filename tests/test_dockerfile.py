"""What the Dockerfile names is there: files, constraints, a Python that imae supports, the command."""

from __future__ import annotations

import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions() -> list[tuple[str, str]]:
    """(instruction, the rest) of each, with lines that go on joined."""
    text = re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE).replace("\\\n", "")
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def test_its_instructions_are_known() -> None:
    names = {name for name, _ in instructions()}
    assert names == {"FROM", "ARG", "COPY", "RUN", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert instructions()[0][0] == "FROM"


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    copied = [rest.split()[0] for name, rest in instructions() if name == "COPY" and "--from" not in rest]
    assert copied == [".", "constraints.txt", "requirements"]
    needed = ["constraints.txt", "requirements/onnxruntime-cpu/pyproject.toml", "setup.py", "cli/main.py"]
    for path in needed:
        assert (ROOT / path).is_file()
        assert not [pattern for pattern in ignored if fnmatch(path, pattern)]
    assert f"/tmp/imae/{needed[1].rpartition('/')[0]}" in TEXT


def test_its_python_is_one_that_is_supported() -> None:
    images = {rest.split()[0] for name, rest in instructions() if name == "FROM"}
    (version,) = {re.fullmatch(r"python:(3\.\d+)-slim", image)[1] for image in images}  # type: ignore[index]
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]


def test_its_command_is_imae() -> None:
    assert ("ENTRYPOINT", '["imae"]') in instructions() and "imae" in PROJECT["scripts"]


def test_what_git_ignores_does_not_get_in() -> None:
    """Nothing that was built here: neither environments nor kernels of another processor."""
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {"**/*.so", ".venv", "data", ".git"} <= set(ignored)
    if not (ROOT / ".git").exists():
        return  # out of the source archive there is no git to ask
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not [path for path in tracked.split() if any(fnmatch(path, pattern) for pattern in ignored)]
