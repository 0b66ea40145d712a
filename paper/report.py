"""The reproduction as one HTML page: claims, tables, figures, the authors' logs, open questions, every run.

The page is self-contained (no scripts, no other files, no fonts), follows the reader's light or dark theme,
and is the same, byte for byte, for the same records.
"""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from imae.files.atomic import write_atomically
from imae.files.read import AnyPath
from imae.paper import figures, tables
from imae.paper.claims import CLAIMS, HELD, NO_DATA, NOT_HELD, Claim, by_text, count
from imae.paper.open_questions import OPEN_QUESTIONS
from imae.paper.record import Record
from imae.paper.results import Results, gather, provenance
from imae.paper.results_page import (
    claims_held,
    claims_words,
    in_short,
    logs_words,
    size_words,
    without_training,
)
from imae.paper.suspects import SPREAD_NOTE, STUDIES
from imae.paper.tables import Table, html_table, number

TITLE = "Improving MAE against CCE under Label Noise: the paper, reproduced"
PAPER = "https://arxiv.org/abs/1903.12141"
SIGNS = {HELD: "✓", NOT_HELD: "✗"}
LOSS_NAME = re.compile(r"\b(CCE|MAE|IMAE|GCE)-(\d)")


class Section(NamedTuple):
    """A part of the page: its tables, figures and claims by name, and which tables need runs."""

    id: str
    title: str
    tables: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()  # of tables.FROM_RUNS


SECTIONS = (
    Section("table1", "Table 1: clean labels", ("table1",), (), ("table1",)),
    Section(
        "table2", "Table 2, figures 3 and 4: wrong labels", ("table2",), ("figure3", "figure4"), ("table2",)
    ),
    Section("table3", "Table 3: video retrieval", ("table3",)),
    Section("exact", "Table 4, figures 1 and 5: weights", ("figure1", "table4"), ("figure1", "figure5")),
    Section(
        "temperature",
        "Figures 6 to 8: the choice of T",
        ("figure6", "choose-t"),
        ("figure6", "figure7", "figure8"),
        ("temperatures", "choose-t"),
    ),
    Section("human-noise", "Human labels", ("human-noise",), ("human-noise",), ("human-noise",)),
    Section(
        "suspects",
        "What does not hold, looked into",
        ("suspects",),
        ("suspects",),
    ),
    Section(
        "arithmetic",
        "The arithmetic: the epsilon and the normaliser",
        ("arithmetic",),
        (),
        ("arithmetic",),
    ),
    Section(
        "later-tables",
        "The later version, and the authors' logs",
        ("later-tables",),
        ("later-tables",),
        ("cifar100", "later-table6"),
    ),
)

STYLE = """
:root { color-scheme: light dark; --ground: #fbfbfc; --panel: #ffffff; --muted: #57606a; --rule: #dfe3e8;
  --held: #0b6e4f; --fallen: #a8460a; --link: #0a5dab; LIGHT }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --panel: #1b1f25; --muted: #a0a8b3;
  --rule: #333a44; --held: #46c79a; --fallen: #ff9a5c; --link: #76b7f5; DARK } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 74rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .25rem; } a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: 0; list-style: none; }
.note, .about { color: var(--muted); font-size: .875rem; margin: .25rem 0; }
.scaled { border-left: .3rem solid var(--fallen); padding-left: .6rem; }
/* A shadow at each side at which a table goes on: what covers the shadows moves with the table. */
.wide { overflow-x: auto; margin: .5rem 0; background:
  linear-gradient(to right, var(--ground) 40%, transparent) 0 / 2.5rem 100% no-repeat local,
  linear-gradient(to left, var(--ground) 40%, transparent) 100% / 2.5rem 100% no-repeat local,
  linear-gradient(to right, var(--muted), transparent) 0 / .8rem 100% no-repeat scroll,
  linear-gradient(to left, var(--muted), transparent) 100% / .8rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .55rem; text-align: right; white-space: nowrap; }
th { border-bottom: 1px solid var(--muted); font-weight: 600; }
.groups th { border-bottom: 0; text-align: center; }
.groups th:not(:empty) { border-bottom: 1px solid var(--rule); }
tr.first td, table.text td:not(:empty) { border-top: 1px solid var(--rule); }
th.key, td.key { text-align: left; }
table.text td, table.text th { text-align: left; vertical-align: top; white-space: normal; min-width: 8rem; }
.panels { display: grid; gap: .5rem; grid-template-columns: repeat(auto-fit,
  minmax(min(max(16rem, calc(100% / var(--across) - .5rem)), 100%), 1fr)); }
.panels svg { width: 100%; max-width: 34rem; height: auto; background: var(--panel); border-radius: .4rem; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; padding: 0; margin: .3rem 0; list-style: none;
  font-size: .875rem; }
.swatch { width: 2.25rem; height: .75rem; margin-right: .35rem; } .swatch line { stroke-width: 2.5; }
.counts { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; margin: .25rem 0; }
.counts b { font-size: 1.4rem; }
.claims { padding-left: 1.1rem; } .claims li { margin: .35rem 0; }
.chip { display: inline-block; margin: .1rem .3rem .1rem 0; padding: 0 .45rem; border: 1px solid;
  border-radius: .7rem; font-size: .8rem; white-space: nowrap; }
.held { color: var(--held); } .not { color: var(--fallen); }
pre { overflow-x: auto; font-size: .8rem; background: var(--panel); padding: .5rem; border-radius: .4rem; }
summary { cursor: pointer; }
@media (max-width: 40rem) {
  table.text, table.text tbody, table.text tr, table.text td { display: block; }
  table.text thead { display: none; }
  table.text tr { border-top: 1px solid var(--rule); padding: .4rem 0; }
  table.text td { border: 0; padding: .1rem 0; } table.text td:not(:empty) { border: 0; }
  table.text td:empty { display: none; } table.text td:first-child { font-weight: 600; }
  table.text td:not(:first-child)::before { content: attr(data-name) " "; color: var(--muted); }
}
"""


def write_report(
    records: Sequence[Record],
    output: AnyPath,
    mars: AnyPath | None = None,
    clothing1m: AnyPath | None = None,
) -> None:
    """Write the page.

    mars, clothing1m   JSON files of results on MARS and Clothing1M, see MARS_FORMAT and CLOTHING1M_FORMAT
    """
    write_atomically(output, page(records, mars, clothing1m).encode())


def page(records: Sequence[Record], mars: AnyPath | None = None, clothing1m: AnyPath | None = None) -> str:
    """The page as text."""
    settings = gather(records)
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(TITLE)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{page_style()}</style></head><body>",
        f"<h1>{html.escape(TITLE)}</h1>",
        *_opening(settings),
        _contents(),
        *_without_training(records, mars, clothing1m),
        *_summary(settings, records),
    ]
    for section in SECTIONS:
        parts += _section(section, records, settings, mars, clothing1m)
    parts += [_questions(), _runs(settings), "</body></html>\n"]
    return _unbroken("\n".join(parts))


def _unbroken(page: str) -> str:
    """The page with hyphens in the losses' names at which no line ends; not in code, figures, attributes."""
    parts = re.split(r"(<(style|pre|code|svg|title)\b.*?</\2>|<[^>]*>)", page, flags=re.DOTALL)
    # Each text is followed by the tag, or the element, and by its name.
    texts = (LOSS_NAME.sub("\\1\N{NON-BREAKING HYPHEN}\\2", text) for text in parts[::3])
    return "".join(itertools.chain(*itertools.zip_longest(texts, parts[1::3], fillvalue="")))


def page_style() -> str:
    """The style sheet of a page with figures."""
    style = STYLE.replace("LIGHT", figures.css_variables(False)).replace("DARK", figures.css_variables(True))
    return style.strip()


def _contents() -> str:
    links = [("evidence", "Without training"), ("summary", "Claims"), *((s.id, s.title) for s in SECTIONS)]
    links += [("questions", "Open questions"), ("runs", "Runs")]
    items = "".join(f'<li><a href="#{id_}">{html.escape(title)}</a></li>' for id_, title in links)
    return f"<nav><ul>{items}</ul></nav>"


def _paragraph(text: str, css: str = "note") -> str:
    return f'<p class="{css}">{html.escape(text)}</p>'


def _about(results: Results, records: Sequence[Record]) -> str:
    """Size, images and device of these records; scaled-down runs are highlighted."""
    css = "about scaled" if results.setting.is_scaled else "about"
    return _paragraph(" ".join(provenance(results, records)), css)


def _opening(settings: Sequence[Results]) -> Iterator[str]:
    """What IMAE is, a figure, and what the page shows, in a few lines."""
    yield (
        "<p>IMAE is a loss for training with wrong labels. It gives each example a weight by p, the "
        "probability that the net gives to the example's label: <code>exp(T p (1 - p))</code>. Cross entropy "
        "(CCE) weights an example the more, the less the net believes its label, and so memorises wrong "
        "labels. MAE weights the examples in the middle, but differentiates too little, and so fits too "
        "little. IMAE prefers the middle as MAE does, and T says how much.</p>"
    )
    for chart in figures.charts("figure1", ()):
        yield _chart(chart, "opening")
    yield (
        f'<p>This page sets every table and figure of <a href="{PAPER}">arXiv 1903.12141</a> (first '
        "version), and the available parts of the later version, beside the results of imae, where there are "
        "any. Differences are in points, ours minus the paper's. What the paper leaves open, and what was "
        'chosen, stands under <a href="#questions">open questions</a>; IMAE\'s divisor and epsilon were '
        "changed, after the first runs, to those of the authors' layer.</p>"
    )
    yield f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in in_short(settings))}</ul>"


def _without_training(
    records: Sequence[Record], mars: AnyPath | None, clothing1m: AnyPath | None
) -> Iterator[str]:
    """The claims about formulas, printed numbers and the authors' logs."""
    yield '<h2 id="evidence">Without training: formulas, printed numbers, the authors\' own logs</h2>'
    yield _paragraph(f"{without_training()} {logs_words()}", "")
    table = tables.evidence_table(None, records, mars, clothing1m)
    if table is not None:
        yield _paragraph(" ".join(table.notes))
        fallen = [row for row in table.rows if NOT_HELD in row[3:-1]]
        yield from _by_verdict(table, fallen)


def _by_verdict(
    table: Table, fallen: Sequence[tuple[str, ...]], uncounted: Sequence[tuple[str, ...]] = ()
) -> Iterator[str]:
    """A table of claims in parts: those that do not hold, unfolded; the others; those that do not count."""
    held = [row for row in table.rows if row not in fallen and row not in uncounted]
    fallen = [row for row in fallen if row not in uncounted]
    for title, rows, opened in (
        ("Not held", fallen, " open"),
        ("Held", held, ""),
        ("Not held by the paper's own numbers, so not counted", uncounted, ""),
    ):
        if rows:
            words = _text_table([name for _, name in table.columns], rows)
            summary = f"{title}: {len(rows)}, with the numbers"
            yield f"<details{opened}><summary>{summary}</summary>{words}</details>"


def _summary(settings: Sequence[Results], records: Sequence[Record]) -> Iterator[str]:
    yield '<h2 id="summary">The claims, by our runs</h2>'
    yield _paragraph(
        "A claim counts only where the paper's own numbers hold it. The runs of the paper's size come first; "
        "scaled-down ones are studies of mechanisms, and cannot test what 64,000 iterations do."
    )
    if not settings:
        yield "<p>No run has a record yet, so no claim about training can be judged.</p>"
    every = tables.all_claims_table(records)
    words = _text_table([name for _, name in every.columns], every.rows)
    about = _paragraph(" ".join(every.notes))
    yield f"<details><summary>{every.title}: {len(every.rows)}</summary>{about}{words}</details>"
    for results in settings:
        yield f"<h3>{html.escape(size_words(results))}</h3>"
        yield _about(results, results.own_records)
        yield _paragraph(claims_words(results), "")
        if not claims_held(results)[1]:
            continue
        css = {HELD: "held", NOT_HELD: "not", NO_DATA: "note"}
        counts = (f'<span class="{css[v]}"><b>{n}</b> {v}</span>' for v, n in count(results).items())
        yield f'<p class="counts">{"".join(counts)}</p>'
        yield _paragraph(f"{tables.CLAIM_NOTE} By claim: beside the tables and figures below.")
        (table,) = tables.claim_tables(results.records) or [Table("", (), ())]
        fallen = [row for row in table.rows if row[3].startswith(NOT_HELD)]
        yield from _by_verdict(table, fallen, [row for row in table.rows if row[2].startswith(NOT_HELD)])


def claim_list(claims: Iterable[Claim], results: Results) -> str:
    """The claims that can be judged, each with a chip per net and noise."""
    items = []
    for text, group in by_text(claims).items():
        chips = []
        for claim in group:
            verdict = claim.check(results)
            if verdict.verdict != NO_DATA:
                css = "held" if verdict.verdict == HELD else "not"
                words = f"{SIGNS[verdict.verdict]} {claim.where}{' (narrowly)' if verdict.narrow else ''}"
                title = f"{verdict.words}: {verdict.numbers}"
                chips.append(
                    f'<span class="chip {css}" title="{html.escape(title)}">{html.escape(words)}</span>'
                )
        if chips:
            items.append(
                f'<li>{html.escape(text)} <span class="note">[{html.escape(group[0].source)}]</span><br>'
                f"{''.join(chips)}</li>"
            )
    return f'<ul class="claims">{"".join(items)}</ul>' if items else ""


def _section(
    section: Section,
    records: Sequence[Record],
    settings: Sequence[Results],
    mars: AnyPath | None,
    clothing1m: AnyPath | None,
) -> Iterator[str]:
    yield f'<h2 id="{section.id}">{html.escape(section.title)}</h2>'
    made = [table for name in section.tables for table in tables.tables(name, records, mars, clothing1m)]
    for table in made:
        yield f"<h3>{html.escape(table.title)}</h3>"
        scaled = " scaled" if "SCALED" in table.title else ""
        yield _paragraph(" ".join(table.notes), f"note{scaled}")
        yield html_table(table)
    full = [results for results in settings if not results.setting.is_scaled]
    missing = [name for name in section.trained if not any(r.has(tables.FROM_RUNS[name][1]()) for r in full)]
    if missing:
        commands = ", ".join(f"<code>{html.escape(tables.command(name))}</code>" for name in missing)
        yield f"<p>Its runs of the paper's size are missing; what trains them: {commands}.</p>"
    for name in section.figures:
        for index, chart in enumerate(figures.charts(name, records)):
            yield _chart(chart, f"{section.id}-{name}-{index}")
    if section.id in STUDIES:
        yield from _hypotheses(records, section.id)
    shown = {*section.tables, *section.figures}
    claims = [claim for claim in CLAIMS if shown & set(claim.shown)]
    for results in settings:
        listed = claim_list(claims, results)
        if listed:
            yield f"<h3>The claims, by {html.escape(size_words(results).lower())}</h3>{listed}"


def _hypotheses(records: Sequence[Record], study: str) -> Iterator[str]:
    """The hypotheses about the runs of a study, and their verdicts."""
    for table in tables.claim_tables(records, study):
        yield f"<h3>{html.escape(table.title)}</h3>"
        yield _paragraph(f"{SPREAD_NOTE} {tables.CLAIM_NOTE}" if study == "suspects" else tables.CLAIM_NOTE)
        suspects = {claim.text: claim.source for claim in STUDIES[study]}
        rows = [(suspects[text], text, where, *rest) for text, where, _, *rest in table.rows]
        yield _text_table(("suspect", "if it is to blame", "where", "", "numbers"), rows)


def _chart(chart: figures.Chart, prefix: str) -> str:
    about = (
        _paragraph(chart.about, "about scaled" if "SCALED" in chart.about else "about") if chart.about else ""
    )
    panels = "".join(f"<div>{svg}</div>" for svg in figures.panel_svgs(chart, prefix))
    return (
        f"<h3>{html.escape(chart.title)}</h3>{about}{figures.legend_html(chart)}"
        f'<div class="panels" style="--across: {chart.across}">{panels}</div>'
    )


def _text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text, left-aligned and wrapped; a first cell equal to the one above it is left empty."""
    cells, above = "", None
    for first, *rest in rows:
        shown = zip(head, (first if first != above else "", *rest), strict=True)
        tds = (f'<td data-name="{html.escape(name)}">{_code(cell)}</td>' for name, cell in shown)
        cells += f"<tr>{''.join(tds)}</tr>"
        above = first
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    table = f'<table class="text"><thead><tr>{names}</tr></thead><tbody>{cells}</tbody></table>'
    return f'<div class="wide" tabindex="0">{table}</div>'


def _code(text: str) -> str:
    """Text as HTML: parts in backquotes become code; no line breaks before a %."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text).replace(" %", "&nbsp;%"))


def _questions() -> str:
    head = ("", "the paper", "the authors' later code (CIFAR-100)", "here")
    return (
        '<h2 id="questions">Open questions of the reproduction</h2>'
        "<p>What the paper does not say, what the authors' published code did otherwise, and what the runs "
        "here do.</p>" + _text_table(head, OPEN_QUESTIONS)
    )


def _runs(settings: Sequence[Results]) -> str:
    parts = ['<h2 id="runs">Runs</h2>']
    for results in settings:
        rows = [
            (
                record.run.name,
                number(100 * record.best.test),
                number(100 * record.final.test),
                f"{record.wrong_labels:,} of {record.train_images:,}",
                f"{record.seconds / 60:,.0f}",
                record.began[:10],
            )
            for record in results.records
        ]
        names = ("run", "best", "final", "wrong labels", "minutes", "began")
        columns = tuple(("", name) for name in names)
        parts += [f"<h3>{html.escape(size_words(results))}</h3>", _about(results, results.records)]
        parts.append(html_table(Table("", columns, tuple(rows))))
        for record in results.records:
            versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
            net = f"SHA-256 of the net: {record.net_sha256}"
            parts.append(
                f"<details><summary>{html.escape(record.run.name)}: solver</summary>"
                f'<p class="note">{html.escape(f"{record.device}; {versions}; {net}")}</p>'
                f"<pre>{html.escape(record.solver)}</pre></details>"
            )
    return "\n".join(parts)
