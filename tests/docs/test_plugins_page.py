"""docs/plugins.md, followed to the letter: its files are written, its commands run in processes of a shell.

The commands see an environment of their own, which borrows the packages of the one that runs the tests; pip
asks no index.
"""

from __future__ import annotations

import os
import re
import site
import subprocess
import venv
from pathlib import Path

import pytest
from pages import Block, blocks, page

from imae.converters.new_plugin import plugin_files, plugin_names

PAGE = "docs/plugins.md"
BLOCKS = blocks(page(PAGE))
STATUS = re.compile(r"# exit status (\d+)$")
REPLACED = re.compile(r"`([\w/.]+\.\w+)` by:$")
NEW = re.compile(r", as `([\w/.]+\.\w+)`:$")
PIP = {
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",  # they are in the environment that is borrowed from
    "PIP_NO_BUILD_ISOLATION": "0",  # pip reads the option itself, so 0 is "no isolation"
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The variables of a shell in a fresh virtual environment with this one's packages."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    borrowed = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
    (packages / "borrowed.pth").write_text("".join(borrowed))
    for name, module in {"pip": "pip", "imae": "imae.cli.main"}.items():
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m {module} "$@"\n')
        script.chmod(0o755)
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    # Without bytecode: a file that is changed within a second, at the same size, would not be read again.
    return {**os.environ, **PIP, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def run(block: Block, folder: Path, environment: dict[str, str]) -> tuple[str, Path]:
    """What a block's lines print, and the folder in which they end."""
    printed = ""
    for line in block.text.splitlines():
        if line.startswith("cd "):
            folder = folder / line.removeprefix("cd ")
            continue
        done = subprocess.run(
            ["/bin/sh", "-c", line],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        expected = STATUS.search(line)
        assert done.returncode == (int(expected[1]) if expected else 0), f"{line}\n{done.stdout}"
        printed += done.stdout
    return printed, folder


def test_the_page(tmp_path: Path, environment: dict[str, str]) -> None:
    folder, printed, shown = tmp_path, "", 0
    for block in BLOCKS:
        replaced, new = REPLACED.search(block.before), NEW.search(block.before)
        if block.language == "sh":
            printed, folder = run(block, folder, environment)
        elif block.language == "text":
            for line in block.text.splitlines():
                assert line in printed, f"{line!r} is not in\n{printed}"
                shown += 1
        elif path := replaced or new:
            assert (folder / path[1]).exists() is bool(replaced), path[1]
            (folder / path[1]).write_text(block.text)
        else:  # a file as it was written
            name = re.findall(r"`([\w/.]+)`:$", block.before)[0]
            assert (folder / name).read_text() == block.text
    assert shown > 8
    assert (folder / "damped.onnx").exists()


def test_the_page_shows_what_the_command_writes() -> None:
    files = plugin_files(plugin_names("Damp"))
    shown = [block.text for block in BLOCKS if block.language == "python"]
    assert shown[0] == files["imae_damp/layer.py"]
    numbers = re.findall(r"_param = (\d+);", files["imae_damp/damp.proto"])
    assert len(numbers) == 2 and all(f"_param = {number};" in page(PAGE) for number in numbers)


def test_the_readme_shows_lines_of_the_plugin() -> None:
    """So that what is read there is what is tested in tests/plugin_xyz."""
    (block,) = (block.text for block in blocks(page("README.md")) if block.language == "python")
    source = iter(page("tests/plugin_xyz/imae_xyz/layer.py").splitlines())
    lines = [line for line in block.splitlines() if line]
    assert lines[0] == '@register_layer("Xyz")' and len(lines) == 5
    assert all(any(line == other for other in source) for line in lines)  # in this order
