"""The known word closest to a misspelt one, for the end of an error: "; did you mean 'gaussian'?"."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str], quote: str = "", *, any_case: bool = False) -> str:
    """ "; did you mean NAME?" with the known name closest to a word, or "" if none is close.

    quote      the quotation mark on both sides of the name
    any_case   ignore case and quotes and accept less similar names: for fields and enum values of a prototxt
    """
    names = {name.lower(): name for name in known} if any_case else {name: name for name in known}
    if any_case:
        matches = get_close_matches(word.strip("\"'").lower(), names, n=1, cutoff=0.5)
    else:
        matches = get_close_matches(word, names, n=1)
    return f"; did you mean {quote}{names[matches[0]]}{quote}?" if matches else ""
