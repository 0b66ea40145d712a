"""paper/RESULTS.md: all tables of results, with claims and hypotheses, generated from the records."""

from __future__ import annotations

from collections.abc import Sequence

from imae.files.atomic import write_atomically
from imae.files.read import AnyPath
from imae.paper import exact, tables
from imae.paper.claims import CLAIMS, HELD, NO_DATA, NOT_HELD, by_text
from imae.paper.evidence import CIFAR100, EVIDENCE, count_evidence
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
SAME_GRADIENT = 1e-7  # GCE's q is a field in single precision
NO_RECORDS = "No run has a record yet."
NO_FULL_RUN = (
    "No such run has a record yet. The command that trains them: `imae paper table2 --cifar10 PATH`."
)
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
MEASURES = {"best": "test best", "final": "test final", "corrupted": "train, corrupted labels"}


def update_results_page(path: AnyPath, records: Sequence[Record]) -> None:
    """Write the page."""
    write_atomically(path, results_page(records).encode())


def results_page(records: Sequence[Record]) -> str:
    """The page as Markdown: what is exact, runs of the paper's size, the authors' own runs, studies."""
    settings = gather(records)
    full = [results for results in settings if not results.setting.is_scaled]
    scaled = [results for results in settings if results.setting.is_scaled]
    parts = [
        HEAD.rstrip(),
        "\n".join(f"- {line}" for line in in_short(settings)),
        "## Without training",
        without_training(),
        *(markdown(table) for table in (tables.table4(), tables.variance_table())),
        gradients_words(),
        "## Runs of the paper's size",
        *(part for results in full for part in _setting(results)),
        *([] if full else [NO_FULL_RUN]),
        "## The authors' own runs, and other claims that need no training of ours",
        logs_words(),
        *(markdown(table) for table in tables.tables("cifar100", records)),
        *(markdown(table) for table in [tables.evidence_table(records=records)] if table is not None),
        "## Studies at a smaller scale",
        STUDY_WORDS if scaled else NO_RECORDS,
        *(part for results in scaled for part in _setting(results)),
    ]
    return "\n\n".join(parts) + "\n"


def in_short(settings: Sequence[Results]) -> list[str]:
    """What is shown and what is not, a sentence for each kind of evidence."""
    claimed = (*table_1(), *table_2())
    full = any(results.has(claimed) for results in settings if not results.setting.is_scaled)
    lines = [without_training(), *([] if full else [NO_FULL_RUN_SHORT]), logs_words()]
    for results in settings:
        held, judged = claims_held(results)
        words = f"{held} of {judged} claims held" if judged else NO_CLAIM
        small = SMALL_WORDS if results.setting.is_scaled else ""
        lines.append(f"{size_words(results)}: {words}{small}.")
    return lines


def size_words(results: Results) -> str:
    """The size of a setting's runs."""
    if not results.setting.is_scaled:
        return "Runs of the paper's size"
    return f"Scaled-down runs: {results.setting.iterations:,} iterations on {results.setting.images:,} images"


def _setting(results: Results) -> list[str]:
    """The tables, claims and hypotheses of one setting."""
    parts, table = [], _table(results)
    if table.rows:
        parts += [markdown(table), _claims(results)]
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
    fallen = [item for item in EVIDENCE if item.of == CIFAR100 and item.checked.verdict == NOT_HELD]
    printed = sum(item.printed.verdict == NOT_HELD for item in fallen)
    return (
        f"The authors' own logs (CIFAR-100, 48 runs): {numbers[HELD]} of {sum(numbers.values())} claims that "
        f"they can test held; of the {len(fallen)} others, {printed} do not hold in the printed numbers "
        "either."
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
    if not judged:
        return f"{NO_CLAIM.capitalize()} by these runs."
    by_maker: dict[str, list[str]] = {}
    for claim in CLAIMS:
        verdict = claim.check(results).verdict
        if claim.counts and verdict != NO_DATA:
            by_maker.setdefault(claim.whose, []).append(verdict)
    parts = (f"{whose}: {found.count(HELD)} of {len(found)}" for whose, found in by_maker.items())
    return f"Claims that these runs can test: {held} of {judged} held ({'; '.join(parts)})."


def _claims(results: Results) -> str:
    """The number of the claims that hold, and a list of those that do not."""
    checked = [(claim, claim.check(results)) for claim in CLAIMS if claim.counts]
    fallen = {claim: verdict for claim, verdict in checked if verdict.verdict == NOT_HELD}
    lines = [claims_words(results) + (" Not held:" if fallen else "")]
    for text, group in by_text(fallen).items():
        where = "; ".join(f"{c.where} ({fallen[c].numbers}{', narrowly' * fallen[c].narrow})" for c in group)
        lines.append(f"- {text} [{group[0].source}]: {where}")
    return "\n".join([lines[0], "", *lines[1:]] if fallen else lines)
