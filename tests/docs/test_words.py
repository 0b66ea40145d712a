"""One word for one thing in messages, help, comments and pages (CONTRIBUTING.md, "Words")."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest
from source_tree import PARTS

ROOT = Path(__file__).parents[2]
# Names: of arguments, of a kind of data that records hold, of the option that was called so.
NAMES = r"`picture`|--picture\b|\{\w*\(?picture\b[^}]*\}|^picture\b(?=  )|PICTURES?"


def texts() -> list[Path]:
    code = [path for part in (*PARTS, "imae", "docs_site") for path in (ROOT / part).rglob("*.py")]
    return [*code, *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]


def words(path: Path) -> list[str]:
    """The lines of strings and comments, or of a page."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text.splitlines()
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    return [line.strip() for token in tokens if token.type in kinds for line in token.string.splitlines()]


def pictures(lines: list[str]) -> list[str]:
    return [line for line in lines if re.search(r"\bpictures?\b", re.sub(NAMES, "", line), re.IGNORECASE)]


@pytest.mark.parametrize("path", texts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_an_image_is_called_image_and_curves_a_figure(path: Path) -> None:
    assert not pictures(words(path))


def test_the_word_is_found() -> None:
    assert pictures(["no Pictures here", "a --picture FILE", "{picture.label} of a picture"]) == [
        "no Pictures here",
        "{picture.label} of a picture",
    ]
