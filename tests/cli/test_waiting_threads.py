"""OpenMP's threads go to sleep soon, unless the user has chosen how they wait."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from imae.cli.waiting_threads import CHOICES, ROUNDS, sleep_soon

# Its parser alone imports torch.
PROGRAM = "import sys; from imae.cli.main import main; sys.exit(main(['train', '--help']))"


@pytest.mark.parametrize(
    ("chosen", "rounds"),
    [({}, str(ROUNDS)), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_openmp_waits_as_the_user_chose_or_sleeps_soon(chosen: dict[str, str], rounds: str) -> None:
    env = {name: value for name, value in os.environ.items() if name not in CHOICES} | chosen
    env |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "usage: imae train" in done.stdout
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("torch has another OpenMP here than GNU's")
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr) == [rounds]


def test_nothing_is_chosen_once_torch_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CHOICES:
        monkeypatch.delenv(name, raising=False)
    assert "torch" in sys.modules
    sleep_soon()
    assert not set(CHOICES) & set(os.environ)
    monkeypatch.delitem(sys.modules, "torch")
    sleep_soon()
    assert os.environ["GOMP_SPINCOUNT"] == str(ROUNDS)
    monkeypatch.delenv("GOMP_SPINCOUNT")
