"""paper/RESULTS.md: all tables of results, with claims and hypotheses, generated from the records."""

from __future__ import annotations

from collections.abc import Sequence

from imae.files.atomic import write_atomically
from imae.files.read import AnyPath
from imae.paper import exact
from imae.paper.claims import CLAIMS, HELD, NO_DATA, NOT_HELD, by_text
from imae.paper.expected import paper_tables_1_2
from imae.paper.experiments import Run, arithmetic, human_noise, table_1, table_2, variants
from imae.paper.record import Record
from imae.paper.results import Results, gather, net_words, noise_words, provenance
from imae.paper.suspects import SPREAD_NOTE, STUDIES, WithSpreadOfBase, change_words
from imae.paper.tables import NOTHING, Table, arithmetic_table, markdown, number, ours

HEAD = """# The paper's numbers, and ours

Made from the records in `paper/records` by `imae paper report --results paper/RESULTS.md`; a test fails when
it is out of date. How to run the reproduction, and what the columns mean: [docs/paper.md](../docs/paper.md).
"""
NO_RECORDS = "No run has a record yet."
MEASURES = {"best": "test best", "final": "test final", "corrupted": "train, corrupted labels"}


def update_results_page(path: AnyPath, records: Sequence[Record]) -> None:
    """Write the page."""
    write_atomically(path, results_page(records).encode())


def results_page(records: Sequence[Record]) -> str:
    """The page as Markdown."""
    parts = [HEAD.rstrip(), without_training()]
    for results in gather(records):
        table = _table(results)
        if table.rows:
            parts += [markdown(table), _claims(results)]
        if results.has(variants()):
            parts += [markdown(_suspects_table(results)), _hypotheses(results, "suspects", SPREAD_NOTE)]
        if results.has(run for run in arithmetic() if run.changes):
            about = _hypotheses(results, "arithmetic", "Written down before the first of these runs.")
            parts += [markdown(arithmetic_table(results)), about]
    if len(parts) == 2:
        parts.append(NO_RECORDS)
    return "\n\n".join(parts) + "\n"


def without_training() -> str:
    """How many of the numbers that need no training are the paper's."""
    same = [entry.same for entry in (*exact.table_4(), *exact.figure_1_variances())]
    return (
        f"Without training: {sum(same)} of {len(same)} numbers of table 4 and figure 1 match to the printed "
        "digit."
    )


def _table(results: Results) -> Table:
    """Each run of tables 1 and 2 and of the human labels: paper -> ours, in per cent."""
    printed, rows = paper_tables_1_2(), []
    runs = [run for run in (*table_1(), *table_2(), *human_noise()) if run in results]
    for run in runs:
        cells = [_cell(printed.get(run, {}).get(measure), results, run, measure) for measure in MEASURES]
        rows.append((net_words(run.net), noise_words(run), run.label, *cells, str(len(results.seeds(run)))))
    title = "Scaled-down runs" if results.setting.is_scaled else "Runs of the paper's size"
    columns = ("net", "noise", "loss", *MEASURES.values(), "seeds")
    notes = (
        *provenance(results, results.of(runs)),
        "Accuracy in %: the paper's / ours (difference); ± is the standard deviation between seeds.",
    )
    return Table(title, tuple(("", name) for name in columns), tuple(rows), notes, keys=3)


def _suspects_table(results: Results) -> Table:
    """Each variant that has records: base -> changed, in per cent."""
    rows = []
    runs = [run for run in variants() if run in results]
    for run in runs:
        cells = []
        for measure in MEASURES:
            base, changed = results.sample(run.base, measure), results.sample(run, measure)
            difference = number(changed.mean - base.mean, sign=True) if base and changed else NOTHING
            cells.append(f"{ours(base)} / {ours(changed)} ({difference})")
        seeds = f"{len(results.seeds(run.base))} / {len(results.seeds(run))}"
        rows.append((noise_words(run), run.label, change_words(run), *cells, seeds))
    columns = ("noise", "loss", "changed", *MEASURES.values(), "seeds")
    notes = (
        "ResNet-20 at the same scale, one thing changed at a time.",
        *provenance(results, results.of(runs))[2:],
        "Accuracy in %: as in the paper / changed (difference).",
    )
    title = "What does not hold, looked into"
    return Table(title, tuple(("", name) for name in columns), tuple(rows), notes, keys=3)


def _hypotheses(results: Results, study: str, note: str) -> str:
    """The hypotheses about the runs of a study, and whether they hold."""
    lines, source = [], WithSpreadOfBase(results)
    checked = {claim: claim.check(source) for claim in STUDIES[study]}
    judged = {claim: verdict for claim, verdict in checked.items() if verdict.verdict != NO_DATA}
    for text, group in by_text(judged).items():
        verdicts = "; ".join(f"{c.where}: {judged[c].words} ({judged[c].numbers})" for c in group)
        lines.append(f"- {group[0].source}. {text}: {verdicts}")
    return "\n".join([f"If these are to blame. {note}" if study == "suspects" else note, "", *lines])


def _cell(paper: float | None, results: Results, run: Run, measure: str) -> str:
    sample = results.sample(run, measure)
    if sample is None:
        return NOTHING
    if paper is None:
        return f"{NOTHING} / {ours(sample)}"
    return f"{number(paper)} / {ours(sample)} ({number(sample.mean - paper, sign=True)})"


def claims_held(results: Results) -> tuple[int, int]:
    """How many of the paper's claims hold, and how many the runs can test."""
    verdicts = [claim.check(results).verdict for claim in CLAIMS]
    return verdicts.count(HELD), len(verdicts) - verdicts.count(NO_DATA)


def _claims(results: Results) -> str:
    """The number of the paper's claims that hold, and a list of those that do not."""
    checked = [(claim, claim.check(results)) for claim in CLAIMS]
    held, judged = claims_held(results)
    fallen = {claim: verdict for claim, verdict in checked if verdict.verdict == NOT_HELD}
    lines = [f"Claims that these runs can test: {held} of {judged} held." + (" Not held:" if fallen else "")]
    for text, group in by_text(fallen).items():
        where = "; ".join(f"{c.where} ({fallen[c].numbers}{', narrowly' * fallen[c].narrow})" for c in group)
        lines.append(f"- {text}: {where}")
    return "\n".join([lines[0], "", *lines[1:]] if fallen else lines)
