"""All fields, values and layer types of a prototxt that the schema lacks. A parser stops at the first one."""

from __future__ import annotations

import re
from typing import NamedTuple

from imae.files.errors import PrototxtError
from imae.prototxt import NetParameter, SolverParameter
from imae.prototxt.text import parse_text

MOST = 40  # words; then the rest of the file is not looked at
FIELD = re.compile(r':(\d+):(\d+): message "[\w.]+" has no field "(\w+)"')
VALUE = re.compile(r':(\d+):(\d+): enum "[\w.]+" has no value "?([\w.]+)')


class Unknown(NamedTuple):
    """The errors about unknown words, and the message without them, or None where it cannot be read then."""

    errors: list[PrototxtError]
    message: NetParameter | SolverParameter | None


def unknown_words(text: str, kind: type[NetParameter] | type[SolverParameter], path: str) -> Unknown:
    """Read a text again and again, each time without the unknown words that stopped it before."""
    errors: list[PrototxtError] = []
    for _ in range(MOST):
        try:
            return Unknown(errors, parse_text(text, kind, path))
        except PrototxtError as error:
            errors.append(error)
            message = str(error)
            if match := FIELD.search(message):
                without = _without_field(text, match[3])
            elif match := VALUE.search(message):
                without = re.sub(rf"\b\w+[ \t]*:[ \t]*\"?{re.escape(match[3])}\b\"?", " ", text)
            else:
                break
            if without == text:
                break
            text = without
    return Unknown(errors, None)


def _without_field(text: str, name: str) -> str:
    """The text without the fields of this name, wherever they are; its lines stay where they are."""
    kept, place = [], 0
    for match in re.finditer(rf"\b{re.escape(name)}\b[ \t\r\n]*(?::[ \t\r\n]*)?", text):
        if match.start() < place:
            continue
        end = _end_of_value(text, match.end())
        if end is None and text.startswith("{", match.end()):
            break  # its brace is never closed, nor is any that is open there
        if end is None:
            continue
        kept.append(text[place : match.start()])
        kept.append("\n" * text.count("\n", match.start(), end))
        place = end
    kept.append(text[place:])
    return " ".join(kept)


STRING_OR_COMMENT = r""""(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|\#[^\n]*"""
BRACE = re.compile(rf"{STRING_OR_COMMENT}|[{{}}]")
SCALAR = re.compile(rf"(?:{STRING_OR_COMMENT}|\[[^\]]*\]|[-+.\w]+)")


def _end_of_value(text: str, start: int) -> int | None:
    """Where the value that begins here ends; None where there is none."""
    if not text.startswith("{", start):
        scalar = SCALAR.match(text, start)
        return scalar.end() if scalar else None
    depth = 0
    for match in BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    return None
