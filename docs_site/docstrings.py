"""Docstrings of this project as Markdown.

They are plain text, with habits that Markdown does not know:

    indented lines                  formulas and commands: a block of code
    NAME  text                      two blanks or more after a name: what it is, further lines below the text
    words_with_underscores, x.py    names of fields and files: code

Examples begin with >>>, as for doctest.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

ENTRY = re.compile(r"(\S.*?) {2,}(\S.*)")
# A name in running text that is code: top[0], num_output, relu_layer.cpp, --flag.
NAME = re.compile(
    r"(?<![\w/`.-])("
    r"(?:top|bottom)\[[\w.]+\]"
    r"|--[a-z][\w-]*"
    r"|[\w/]+\.(?:py|proto|cpp|cu|hpp|prototxt|caffemodel|onnx|md|json|csv|html)\b"
    r"|[A-Za-z][A-Za-z0-9]+(?:_[A-Za-z0-9]{2,})+(?:\.\w+)*"  # not q_y, a number of a formula
    r")(?![\w/])"
)


def to_markdown(text: str, language: str = "text") -> str:
    """A docstring as Markdown; `language` is that of its indented blocks."""
    return "\n\n".join(_blocks(inspect.cleandoc(text), language))


def prose(text: str) -> str:
    """A paragraph: names as code, and nothing of it taken for Markdown."""
    parts = re.split(r"(`+[^`]+`+)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else _plain(part) for part in parts)


def _plain(text: str) -> str:
    pieces = NAME.split(text)
    return "".join(f"`{piece}`" if index % 2 else escape(piece) for index, piece in enumerate(pieces))


def escape(text: str) -> str:
    """Text in which no character is taken for Markdown or HTML."""
    text = re.sub(r"([\\*_\[\]|`])", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def entries(lines: list[str]) -> list[tuple[str, str]] | None:
    """(name, text) of lines such as `bottom[0]  scores`; None where the text itself stands in columns."""
    found: list[tuple[str, str]] = []
    for line in lines:
        if line.startswith(" "):
            if not found or re.search(r"\S {2,}\S", line):
                return None
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        elif (match := ENTRY.fullmatch(line)) and not re.search(r" {2,}", match[2]):
            found.append((match[1], match[2]))
        elif match is None and found:  # as "no tops"
            found.append((line, ""))
        else:
            return None
    return found


def _blocks(text: str, language: str) -> Iterator[str]:
    code: list[str] = []  # indented blocks that follow each other are one
    for block in [*re.split(r"\n\s*\n", text), ""]:
        lines = block.splitlines()
        if lines and all(line.startswith("    ") for line in lines):
            code += [*([""] if code else []), *lines]
            continue
        if code:
            yield fence("\n".join(line[4:] for line in code), language)
            code = []
        if lines:
            yield from _paragraph(lines, language)


def _paragraph(lines: list[str], language: str) -> Iterator[str]:
    """What has no blank line in it: a list, entries, or text with indented lines below it."""
    if re.match(r"[-*] |\d+\. ", lines[0]):
        items = re.split(r"\n(?=[-*] |\d+\. )", "\n".join(lines))
        yield "\n".join(f"{item.split()[0]} {prose(item.partition(' ')[2])}" for item in items)
        return
    if lines[0].startswith(">>> "):
        yield fence("\n".join(lines), "pycon")
        return
    if ENTRY.fullmatch(lines[0]):
        found = entries(lines)
        yield fence("\n".join(lines), "text") if found is None else definitions(found)
        return
    count = next((index for index, line in enumerate(lines) if line.startswith("    ")), len(lines))
    first_entry = next((index for index, line in enumerate(lines[:count]) if ENTRY.fullmatch(line)), count)
    if 0 < first_entry < len(lines) and first_entry != count:
        yield prose("\n".join(lines[:first_entry]))
        yield from _paragraph(lines[first_entry:], language)
        return
    if count:
        yield prose("\n".join(lines[:count]))
    if rest := lines[count:]:
        end = next((index for index, line in enumerate(rest) if not line.startswith(" ")), len(rest))
        yield fence("\n".join(line[4:] for line in rest[:end]), language)
        if rest[end:]:
            yield from _paragraph(rest[end:], language)


def definitions(pairs: list[tuple[str, str]]) -> str:
    """A list of names and what they are."""
    return "\n\n".join(f"{_term(name)}\n:   {prose(text) or '&nbsp;'}" for name, text in pairs)


def _term(name: str) -> str:
    """Names as code, words as they are."""
    parts = re.split(r", (?![^\[(]*[\])])", name)
    return ", ".join(escape(part) if " " in part else f"`{part}`" for part in parts)


def fence(text: str, language: str = "text") -> str:
    """A block of code."""
    return f"```{language}\n{text.rstrip()}\n```"
