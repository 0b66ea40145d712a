"""What a misspelt word may mean."""

from __future__ import annotations

import pytest

from imae.files.errors import PrototxtError
from imae.files.nearest import did_you_mean
from imae.prototxt.text import parse_solver
from imae.train.update_rules import update_rule


@pytest.mark.parametrize(
    ("word", "known", "options", "hint"),
    [
        ("gausian", ["constant", "gaussian"], {"quote": "'"}, "; did you mean 'gaussian'?"),
        ("trane", {"train": 1, "test": 2}, {}, "; did you mean train?"),
        ("--solvr", {"--solver", "--strict"}, {}, "; did you mean --solver?"),
        ("cosine", ["fixed", "step"], {}, ""),
        ("ave", ["MAX", "AVE"], {}, ""),
        ("ave", ["MAX", "AVE"], {"any_case": True}, "; did you mean AVE?"),
        ('"AVE"', ["MAX", "AVE"], {"any_case": True}, "; did you mean AVE?"),
        ("slope", ["negative_slope"], {"quote": '"', "any_case": True}, '; did you mean "negative_slope"?'),
        ("x", [], {}, ""),
    ],
)
def test_the_nearest_name(word: str, known: list[str], options: dict[str, object], hint: str) -> None:
    assert did_you_mean(word, known, **options) == hint  # type: ignore[arg-type]  # options of a test


def test_an_update_rule_is_guessed_too() -> None:
    with pytest.raises(PrototxtError, match=r"Unknown solver type: AdaGrd \(.*\); did you mean 'AdaGrad'\?$"):
        update_rule(parse_solver('type: "AdaGrd"'))
