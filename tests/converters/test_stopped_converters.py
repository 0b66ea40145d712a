"""A converter that is stopped half-way leaves no half output and can be started again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import FOR_EVER


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the commands are forks of one process")
def test_stopped_and_started_again_it_gives_what_it_would_have_given(tmp_path: Path) -> None:
    """See stopped_converters.py, which does it."""
    script = Path(__file__).parents[1] / "support" / "stopped_converters.py"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=FOR_EVER,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    for kind, least in (("killed at a call", 40), ("killed at a byte", 10), ("interrupted", 10)):
        assert counts[kind] >= least, counts
    assert counts["without space"] > 0 and counts["started again"] > 60, counts
