"""`imae completion`: what the script, read by bash itself, completes."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from imae.cli.command_completion import script
from imae.cli.main import COMMANDS, main

CASES = {
    "imae dem": "demo",
    "imae summary --mod": "--model",
    "imae summary --dialect nv": "nvidia",
    "imae draw_net --rankdir T": "TB",
    "imae completion z": "zsh",
    "imae export --no-such": "",
    "imae no-such --mod": "",
}
ASK = """
COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _imae; echo "${COMPREPLY[*]}"
"""


@pytest.fixture(scope="module")
def bash_script() -> str:
    return script()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash to read the script")
@pytest.mark.parametrize("line", CASES)
def test_bash_completes(bash_script: str, line: str) -> None:
    done = subprocess.run(
        ["bash", "-uc", bash_script + ASK, "bash", line], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == CASES[line].split() and not done.stderr


def test_every_command_and_option_is_there(bash_script: str) -> None:
    for name in COMMANDS:
        assert f"\n        {name}) known='--" in bash_script or f"\n        {name}) known=--" in bash_script
    assert "--no-python-layers" in bash_script and "WORDS" in bash_script


def test_the_command(capsys: pytest.CaptureFixture[str], bash_script: str) -> None:
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == bash_script
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out == f"autoload -U +X bashcompinit && bashcompinit\n{bash_script}"
    assert main(["completion", "fish"]) == 2
    assert "completion: argument shell: invalid choice: 'fish'" in capsys.readouterr().err
