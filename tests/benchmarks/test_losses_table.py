"""docs/losses.md has what `python -m benchmarks losses` runs."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.losses import LAYERS

PAGE = Path(__file__).parents[2] / "docs" / "losses.md"


def test_a_row_for_each_loss_that_is_run() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("| loss | test, best |") :]
    rows = re.findall(r"^\| ([^|]+) \| 0\.\d{3} \| 0\.\d{3} \| 0\.\d{3} \|$", table, re.MULTILINE)
    assert sorted(rows) == sorted(LAYERS)
