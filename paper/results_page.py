"""paper/RESULTS.md: all tables of results, with claims and hypotheses, generated from the records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imae.files.atomic import write_atomically
from imae.files.read import AnyPath
from imae.paper import exact, figures, tables
from imae.paper.claims import CLAIMS, HELD, NO_DATA, NOT_HELD, OURS, by_text
from imae.paper.evidence import CIFAR100, EVIDENCE, LABELS, MARS_FILES, WEIGHTS, count_evidence
from imae.paper.expected import paper_tables_1_2
from imae.paper.experiments import LATER, Run, arithmetic, human_noise, table_1, table_2, variants
from imae.paper.record import Record
from imae.paper.results import Results, gather, is_full_size, net_words, noise_words, provenance
from imae.paper.suspects import SPREAD_NOTE, STUDIES, WithSpreadOfBase, change_words
from imae.paper.tables import NO_RUNS, NOTHING, Table, arithmetic_table, markdown, number, ours

HEAD = """# The paper's numbers, and ours

Made from the records in `paper/records` by `imae paper report --results paper/RESULTS.md`; a test fails when
it is out of date. How to run the reproduction, and what the columns mean: [docs/paper.md](../docs/paper.md).
"""
SAME_GRADIENT = 1e-7  # GCE's q is a field in single precision
NO_RECORDS = "No run has a record yet."
NO_FULL_RUN = "No such run has a record yet: the tables below have the printed numbers alone."
NO_FULL_RUN_SHORT = (
    "No run of the paper's size has a record yet: what the paper says of CIFAR-10 (tables 1 and 2, figures "
    "3, 4 and 6 to 8) is neither confirmed nor refuted here."
)
NO_CLAIM = "no claim can be tested"
SMALL_WORDS = " (a study of mechanisms: too small to test the paper's numbers)"
STUDY_WORDS = (
    "They study mechanisms. They cannot test what 64,000 iterations do: a claim that does not hold here may "
    "hold there, and the other way round."
)
CURVES = "authors_curves.svg"
# The tables of runs on CIFAR-10; those of PRINTED are shown without runs, too.
FULL_SIZE = {
    "table1": "table 1",
    "table2": "table 2",
    "temperatures": "figures 6 to 8, for which no numbers are printed",
    "choose-t": "the choice of T",
    "later-table6": "the later version's table 6",
    "human-noise": "human labels, which the paper has not",
}
PRINTED = ("table1", "table2", "later-table6")
# What is asked of runs: the claims that count, and questions of our own.
ASKED = tuple(claim for claim in CLAIMS if claim.counts or claim.whose == OURS)
MEASURES = {"best": "test best", "final": "test final", "corrupted": "train, corrupted labels"}


def update_results_page(path: AnyPath, records: Sequence[Record]) -> list[Path]:
    """Write the page, and beside it the figure that it shows; returns the paths of both."""
    figure = figure_beside(path)
    figures.draw_charts(figures.charts("later-tables", records)[:1], figure)
    write_atomically(path, results_page(records).encode())
    return [Path(path), figure]


def figure_beside(path: AnyPath) -> Path:
    """The figure that belongs to a page."""
    return Path(path).with_name(CURVES)


def results_page(records: Sequence[Record]) -> str:
    """The page as Markdown: what is exact, runs of the paper's size, the authors' own runs, studies."""
    settings = gather(records)
    full = [results for results in settings if is_full_size(results)]
    scaled = [results for results in settings if results.setting.is_scaled]
    parts = [
        HEAD.rstrip(),
        "\n".join(f"- {line}" for line in in_short(settings)),
        "## Without training",
        without_training(),
        *(markdown(table) for table in (tables.table4(), tables.variance_table())),
        gradients_words(),
        "## Runs of the paper's size",
        *([] if full else [NO_FULL_RUN]),
        *_full_size(full),
        "## The authors' own runs",
        logs_words(),
        f"![The authors' test accuracies along the training, by noise rate; ours laid over]({CURVES})",
        *(markdown(table) for table in tables.tables("cifar100", records)),
        "## The claims",
        "A claim counts for or against us only where the paper's own numbers hold it.",
        markdown(tables.all_claims_table(records)),
        *(markdown(table) for table in [tables.evidence_table(records=records)] if table is not None),
        "## Studies at a smaller scale",
        STUDY_WORDS if scaled else NO_RECORDS,
        *(part for results in scaled for part in _setting(results)),
    ]
    return "\n\n".join(parts) + "\n"


def in_short(settings: Sequence[Results]) -> list[str]:
    """What is shown and what is not, a sentence for each kind of evidence."""
    full = any(map(is_full_size, settings))
    lines = [without_training(), computed_words(), *([] if full else [NO_FULL_RUN_SHORT]), logs_words()]
    counted = sum(claim.counts for claim in CLAIMS)
    for results in settings:
        held, judged = claims_held(results)
        words = f"{held} of {judged} claims held" if judged else NO_CLAIM
        if results.setting.protocol == LATER:
            words = later_words(results)
        elif is_full_size(results) and judged < counted:
            words += f"; {counted - judged} of {counted} need runs that are still missing"
        small = SMALL_WORDS if results.setting.is_scaled else ""
        lines.append(f"{size_words(results)}: {words}{small}.")
    return lines


def size_words(results: Results) -> str:
    """The size of a setting's runs."""
    setting, later = results.setting, results.setting.protocol == LATER
    precision = "" if setting.precision == "fp32" else f", {setting.precision}"
    if not setting.is_scaled:
        whose = "authors' later size, CIFAR-100" if later else "paper's size"
        return f"Runs of the {whose}{precision}"
    data = ", CIFAR-100" if later else ""
    size = f"{setting.iterations:,} iterations on {setting.images:,} images"
    return f"Scaled-down runs{data}{precision}: {size}"


def later_words(results: Results) -> str:
    """How many of the claims about CIFAR-100 hold in these runs."""
    verdicts = [item.ours(results).verdict for item in EVIDENCE if item.of == CIFAR100 and item.counts]
    judged = len(verdicts) - verdicts.count(NO_DATA)
    return f"{verdicts.count(HELD)} of {judged} claims held" if judged else NO_CLAIM


def _full_size(full: Sequence[Results]) -> list[str]:
    """The paper's tables, each beside the runs of all settings of its size; then claims and hypotheses."""
    parts = []
    for name, words in FULL_SIZE.items():
        make, runs = tables.FROM_RUNS[name]
        having = [results for results in full if results.has(runs())]
        if name in PRINTED and not having:
            parts.append(markdown(make(NO_RUNS)))
        parts += [markdown(make(results)) for results in having]
        if not having:
            parts.append(f"No run yet of {words}: `{tables.command(name)}`.")
    for results in full:
        parts += [f"{size_words(results)}. {_claims(results)}", *_studies(results)]
    return parts


def _setting(results: Results) -> list[str]:
    """The table, claims and hypotheses of one setting that is scaled down."""
    table = _table(results)
    return [*([markdown(table), _claims(results)] if table.rows else []), *_studies(results)]


def _studies(results: Results) -> list[str]:
    """Variants and their hypotheses."""
    parts = []
    if results.has(variants()):
        parts += [markdown(_suspects_table(results)), _hypotheses(results, "suspects", SPREAD_NOTE)]
    if results.has(run for run in arithmetic() if run.changes):
        about = _hypotheses(results, "arithmetic", "Written down before the first of these runs.")
        parts += [markdown(arithmetic_table(results)), about]
    return parts


def without_training() -> str:
    """How many of the numbers that need no training are the paper's."""
    same = [entry.same for entry in (*exact.table_4(), *exact.figure_1_variances())]
    return (
        f"Without training: {sum(same)} of {len(same)} numbers of table 4 and figure 1 match to the printed "
        "digit."
    )


def computed_words() -> str:
    """How many of the claims about what can be computed or counted hold."""
    counts = {of: count_evidence(EVIDENCE, of) for of in (WEIGHTS, LABELS, MARS_FILES)}
    parts = (f"{of} {numbers[HELD]} of {sum(numbers.values())}" for of, numbers in counts.items())
    return f"Claims that can be computed or counted: {', '.join(parts)} held."


def gradients_words() -> str:
    """How many layers have the gradients of the later version's table 2."""
    rows = exact.later_table_2()
    same = [max(row.own, row.other, row.norm) <= SAME_GRADIENT for row in rows]
    return (
        f"The later version's table 2: the gradients of {sum(same)} of {len(same)} losses' layers are the "
        f"printed formulas, to {SAME_GRADIENT:g} of their norm (`imae paper later-tables --show` shows each)."
    )


def logs_words() -> str:
    """How many of the claims hold in the authors' own logs."""
    numbers = count_evidence(EVIDENCE, CIFAR100)
    return (
        f"The authors' own logs (CIFAR-100, 48 runs): {numbers[HELD]} of {sum(numbers.values())} claims that "
        "they can test held. GCE is above IMAE at 40 and 60 % noise, in print as in the logs."
    )


def _table(results: Results) -> Table:
    """Each run of tables 1 and 2 and of the human labels: paper -> ours, in per cent."""
    printed, rows = paper_tables_1_2(), []
    runs = [run for run in (*table_1(), *table_2(), *human_noise()) if run in results]
    for run in runs:
        cells = [_cell(printed.get(run, {}).get(measure), results, run, measure) for measure in MEASURES]
        rows.append((net_words(run.net), noise_words(run), run.label, *cells, str(len(results.seeds(run)))))
    columns = ("net", "noise", "loss", *MEASURES.values(), "seeds")
    notes = (
        *provenance(results, results.of(runs)),
        "Accuracy in %: the paper's / ours (difference); ± is the standard deviation between seeds.",
    )
    return Table("Scaled-down runs", tuple(("", name) for name in columns), tuple(rows), notes, keys=3)


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
    return "\n".join(
        [f"What should be seen if a choice is to blame. {note}" if study == "suspects" else note, "", *lines]
    )


def _cell(paper: float | None, results: Results, run: Run, measure: str) -> str:
    sample = results.sample(run, measure)
    if sample is None:
        return NOTHING
    if paper is None:
        return f"{NOTHING} / {ours(sample)}"
    return f"{number(paper)} / {ours(sample)} ({number(sample.mean - paper, sign=True)})"


def claims_held(results: Results) -> tuple[int, int]:
    """How many of the claims hold, and how many the runs can test.

    A claim counts only where the paper's own numbers hold it.
    """
    verdicts = [claim.check(results).verdict for claim in CLAIMS if claim.counts]
    return verdicts.count(HELD), len(verdicts) - verdicts.count(NO_DATA)


def claims_words(results: Results) -> str:
    """How many of the claims hold, and how many of them are the paper's own."""
    held, judged = claims_held(results)
    by_maker: dict[str, list[str]] = {}
    for claim in ASKED:
        verdict = claim.check(results).verdict
        if verdict != NO_DATA:
            by_maker.setdefault(claim.whose, []).append(verdict)
    words = {whose: f"{found.count(HELD)} of {len(found)}" for whose, found in by_maker.items()}
    own = words.pop(OURS, None)
    asked = f" Questions that we add: {own} held." if own else ""
    if not judged:
        return f"{NO_CLAIM.capitalize()} by these runs.{asked}"
    parts = "; ".join(f"{whose}: {count}" for whose, count in words.items())
    return f"Claims that these runs can test: {held} of {judged} held ({parts}).{asked}"


def _claims(results: Results) -> str:
    """The number of the claims that hold, and a list of those that do not."""
    checked = [(claim, claim.check(results)) for claim in ASKED]
    fallen = {claim: verdict for claim, verdict in checked if verdict.verdict == NOT_HELD}
    lines = [claims_words(results) + (" Not held:" if fallen else "")]
    for text, group in by_text(fallen).items():
        where = "; ".join(f"{c.where} ({fallen[c].numbers}{', narrowly' * fallen[c].narrow})" for c in group)
        lines.append(f"- {text} [{group[0].source}]: {where}")
    return "\n".join([lines[0], "", *lines[1:]] if fallen else lines)
