"""A survey as text and as one HTML page that needs nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape

from imae.files.errors import printable
from imae.train.doctor.reasons import Reason, forks_of, reasons_of
from imae.train.doctor.row import COLUMNS, NO, PARTLY, UNKNOWN, YES, Row, Stop
from imae.train.doctor.survey import Survey

COLOURS = {YES: "\x1b[32m", PARTLY: "\x1b[33m", UNKNOWN: "\x1b[33m", NO: "\x1b[31m"}
BOLD, RED, RESET = "\x1b[1m", "\x1b[31m", "\x1b[0m"
WIDEST = 60  # characters of a path in the table
FEW = 3  # files of which the table is always shown
MOST_FILES = 3  # that are named for a reason
MOST_REASONS = 20  # that are listed, unless every file is
MEANING = (
    "reads: the file is whole and all its words are known. builds: so do its layers, with blobs of zeros. "
    "trains: the net of phase TRAIN builds from data that are there and has a loss and blobs that learn; no "
    "iteration was run. exports: each layer has an ONNX form; no model was run. No code of the project was "
    "run."
)


def as_text(survey: Survey, colours: bool = False, every_file: bool = False) -> str:
    """How the project stands and what stops it; with `every_file`, or if there are few, a table of them.

    colours   for a terminal
    """
    reasons = reasons_of(survey.rows)
    lines = [f"project {printable(survey.root)}", "", _painted(_summary(survey), BOLD, colours)]
    if not survey.rows:
        lines.append("no net, solver, weights or data of Caffe was found")
    few = 0 < len(survey.rows) <= FEW
    lines += [f"{title}: {text}" for title, text in _advice(reasons)]
    if reasons and not few:
        lines += ["", _painted("what stops files, and how many:", BOLD, colours)]
    shown = reasons if every_file else reasons[:MOST_REASONS]
    for reason in () if few else shown:
        lines.append(f"{len(reason.files):5}  {printable(_stop_text(reason))}")
        lines.append(f"       {printable(_first_files(reason))}")
    lines += ["", *map(printable, survey.notes)] if survey.notes else []
    if every_file or few:
        return "\n".join([*lines, "", *_table(survey, colours), "", MEANING]) + "\n"
    hidden = [f"{len(survey.rows)} files"] if survey.rows else []
    if len(shown) < len(reasons):
        hidden.append(f"{len(reasons) - len(shown)} more reasons")
    if warnings := sum(len(row.warnings) for row in survey.rows):
        hidden.append(f"{warnings} warnings")
    if survey.differences:
        hidden.append(f"{len(survey.differences)} layer types that differ from Caffe's on purpose")
    lines += ["", f"--all lists {', '.join(hidden)}"] if hidden else []
    return "\n".join(lines) + "\n"


def _advice(reasons: Sequence[Reason]) -> Iterator[tuple[str, str]]:
    """What to do first, and the forks that are needed."""
    first = next((reason for reason in reasons if reason.remedy and not reason.is_consequence), None)
    if first is not None:
        yield "do first", printable(f"{first.what} ({_files(len(first.files))}): {first.remedy}")
    if forks := forks_of(reasons):
        yield "forks", printable(", ".join(f"{fork} ({_files(count)})" for fork, count in forks.items()))


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _first_files(reason: Reason) -> str:
    more = len(reason.files) - MOST_FILES
    return ", ".join(reason.entries[:MOST_FILES]) + (f" and {more} more" if more > 0 else "")


def _table(survey: Survey, colours: bool) -> Iterator[str]:
    """The lines of a table, below each file what was found out."""
    width = min(max(len(printable(row.path)) for row in survey.rows), WIDEST) if survey.rows else 4
    kinds = max([len(row.kind) for row in survey.rows] + [4])
    head = f"{'file':{width}}  {'kind':{kinds}}  " + "  ".join(f"{name:7}" for name in COLUMNS)
    yield _painted(head.rstrip(), BOLD, colours)
    for row in survey.rows:
        cells = "  ".join(_cell(getattr(row, name), colours) for name in COLUMNS)
        yield f"{printable(row.path):{width}}  {row.kind:{kinds}}  {cells}".rstrip()
        for stop in row.stops:
            yield f"    {_painted('stops:', RED, colours)} {printable(_stop_text(stop))}"
        yield from (f"    warning: {printable(text)}" for text in row.warnings)
        yield from (f"    {printable(text)}" for text in row.facts)
    if survey.differences:
        yield from ("", "where layer types of these nets differ from Caffe's, on purpose:")
        for kind, text in sorted(survey.differences.items()):
            yield f"    {printable(kind)}: {printable(text)}"


def _cell(value: str, colours: bool) -> str:
    text = f"{value or '-':7}"
    return f"{COLOURS[value]}{text}{RESET}" if colours and value in COLOURS else text


def _painted(text: str, colour: str, colours: bool) -> str:
    return f"{colour}{text}{RESET}" if colours else text


def _stop_text(stop: Stop | Reason) -> str:
    text = f"{stop.what} [{stop.owner}]"
    return f"{text}: {stop.remedy}" if stop.remedy else text


def _summary(survey: Survey) -> str:
    kinds = Counter(row.kind for row in survey.rows)
    nets = [row for row in survey.rows if row.kind == "net"]
    counts = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()) or "nothing"
    of_nets = ", ".join(
        f"{sum(getattr(row, name) == YES for row in nets)} {word}" for name, word in WORDS.items()
    )
    stopped = sum(bool(row.stops) for row in survey.rows)
    well = "nothing stops them" if survey.all_well else f"something stops {stopped} of them"
    return (f"{len(nets)} nets: {of_nets}. " if nets else "") + f"{counts}: {well}"


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
    reasons = reasons_of(survey.rows)
    summary = f"<p><strong>{_html(_summary(survey))}</strong></p>"
    summary += "".join(f"<p>{title}: {escape(text)}</p>" for title, text in _advice(reasons))
    if reasons:
        summary += f"<h2>What stops files</h2><ul>{''.join(map(_html_reason, reasons))}</ul>"
    notes = "".join(f"<p>{_html(note)}</p>" for note in (*survey.notes, MEANING))
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
        f"<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>{summary}<h2>Files</h2>{notes}"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{differences}</body></html>\n"
    )


def _html(text: str) -> str:
    return escape(printable(text), quote=True)


def _html_reason(reason: Reason) -> str:
    files = "".join(f'<li class="path">{_html(file)}</li>' for file in reason.entries)
    return (
        f'<li><details><summary>{_files(len(reason.files))}: <span class="stop">{_html(reason.what)}</span> '
        f'<span class="owner">[{_html(reason.owner)}] {_html(reason.remedy)}</span></summary>'
        f"<ul>{files}</ul></details></li>"
    )


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
