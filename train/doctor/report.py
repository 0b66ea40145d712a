"""A survey as text and as one HTML page that needs nothing else."""

from __future__ import annotations

from collections import Counter
from html import escape

from imae.files.errors import printable
from imae.train.doctor.row import COLUMNS, NO, PARTLY, UNKNOWN, YES, Row, Stop
from imae.train.doctor.survey import Survey

COLOURS = {YES: "\x1b[32m", PARTLY: "\x1b[33m", UNKNOWN: "\x1b[33m", NO: "\x1b[31m"}
BOLD, RED, RESET = "\x1b[1m", "\x1b[31m", "\x1b[0m"
WIDEST = 60  # characters of a path in the table
MEANING = (
    "reads: the file is whole and all its words are known. builds: so do its layers, with blobs of zeros. "
    "trains: the net of phase TRAIN builds from data that are there and has a loss and blobs that learn; no "
    "iteration was run. exports: each layer has an ONNX form; no model was run. No code of the project was "
    "run."
)


def as_text(survey: Survey, colours: bool = False) -> str:
    """A table, and below each file what was found out. `colours`: for a terminal."""
    width = min(max([len(printable(row.path)) for row in survey.rows] + [4]), WIDEST)
    kinds = max([len(row.kind) for row in survey.rows] + [4])
    head = f"{'file':{width}}  {'kind':{kinds}}  " + "  ".join(f"{name:7}" for name in COLUMNS)
    lines = [f"project {printable(survey.root)}", "", _painted(head.rstrip(), BOLD, colours)]
    for row in survey.rows:
        cells = "  ".join(_cell(getattr(row, name), colours) for name in COLUMNS)
        lines.append(f"{printable(row.path):{width}}  {row.kind:{kinds}}  {cells}".rstrip())
        for stop in row.stops:
            lines.append(f"    {_painted('stops:', RED, colours)} {_stop_text(stop)}")
        lines += [f"    warning: {printable(text)}" for text in row.warnings]
        lines += [f"    {printable(text)}" for text in row.facts]
    if not survey.rows:
        lines.append("no net, solver, weights or data of Caffe was found")
    if survey.differences:
        lines += ["", "where layer types of these nets differ from Caffe's, on purpose:"]
        lines += [
            f"    {printable(kind)}: {printable(text)}" for kind, text in sorted(survey.differences.items())
        ]
    lines += ["", *map(printable, survey.notes), _summary(survey), MEANING]
    return "\n".join(lines) + "\n"


def _cell(value: str, colours: bool) -> str:
    text = f"{value or '-':7}"
    return f"{COLOURS[value]}{text}{RESET}" if colours and value in COLOURS else text


def _painted(text: str, colour: str, colours: bool) -> str:
    return f"{colour}{text}{RESET}" if colours else text


def _stop_text(stop: Stop) -> str:
    text = printable(f"{stop.what} [{stop.owner}]")
    return f"{text}: {printable(stop.remedy)}" if stop.remedy else text


def _summary(survey: Survey) -> str:
    kinds = Counter(row.kind for row in survey.rows)
    nets = [row for row in survey.rows if row.kind == "net"]
    counts = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()) or "nothing"
    of_nets = ", ".join(
        f"{sum(getattr(row, name) == YES for row in nets)} {word}" for name, word in WORDS.items()
    )
    stopped = sum(bool(row.stops) for row in survey.rows)
    well = "nothing stops them" if survey.all_well else f"something stops {stopped} of them"
    return f"{counts}: {well}" + (f". Of {len(nets)} nets {of_nets}." if nets else ".")


WORDS = {"reads": "read", "builds": "build", "trains": "train", "exports": "export"}

POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # the page loads and runs nothing
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; width: 100% } tr { border-top: 1px solid #ddd }
th, td { text-align: left; padding: .35em .6em; vertical-align: top }
.yes { color: #176f2c } .no { color: #b3261e } .partly, .unknown { color: #8a5a00 }
.path { font-family: ui-monospace, monospace; overflow-wrap: anywhere }
ul { margin: .2em 0; padding-left: 1.2em }
.stop { color: #b3261e } .owner { color: #555 } .warning { color: #8a5a00 } .fact { color: #555 }
"""


def as_html(survey: Survey) -> str:
    """One page; every text of the project is escaped, and it loads nothing."""
    head = "".join(f"<th>{name}</th>" for name in ("file", "kind", *COLUMNS))
    body = "".join(map(_html_row, survey.rows))
    notes = "".join(f"<p>{_html(note)}</p>" for note in (*survey.notes, _summary(survey), MEANING))
    differences = "".join(
        f"<li>{_html(kind)}: {_html(text)}</li>" for kind, text in sorted(survey.differences.items())
    )
    if differences:
        differences = (
            f"<h2>Where layer types of these nets differ from Caffe's, on purpose</h2><ul>{differences}</ul>"
        )
    title = f"imae doctor: {_html(survey.root)}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>{notes}"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{differences}</body></html>\n"
    )


def _html(text: str) -> str:
    return escape(printable(text), quote=True)


def _html_row(row: Row) -> str:
    items = [
        f'<li class="stop">{_html(stop.what)} '
        f'<span class="owner">[{_html(stop.owner)}] {_html(stop.remedy)}</span></li>'
        for stop in row.stops
    ]
    items += [f'<li class="warning">warning: {_html(text)}</li>' for text in row.warnings]
    items += [f'<li class="fact">{_html(text)}</li>' for text in row.facts]
    details = f"<ul>{''.join(items)}</ul>" if items else ""
    cells = "".join(
        f'<td class="{getattr(row, name) or "none"}">{getattr(row, name) or "-"}</td>' for name in COLUMNS
    )
    path = f'<span class="path">{_html(row.path)}</span>'
    return f"<tr><td>{path}{details}</td><td>{_html(row.kind)}</td>{cells}</tr>\n"
