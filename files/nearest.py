"""What a misspelt word may mean, for the end of an error: "; did you mean 'gaussian'?"."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str], quote: str = "", *, any_case: bool = False) -> str:
    """ "; did you mean NAME?" with the known name nearest to a word, or nothing if none is near.

    quote      what stands on both sides of the name
    any_case   whether letters of different case are near, as field names and enum values of a prototxt are
    """
    names = {name.lower(): name for name in known} if any_case else {name: name for name in known}
    if any_case:
        found = get_close_matches(word.strip("\"'").lower(), names, n=1, cutoff=0.5)
    else:
        found = get_close_matches(word, names, n=1)
    return f"; did you mean {quote}{names[found[0]]}{quote}?" if found else ""
