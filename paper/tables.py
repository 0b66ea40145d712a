"""The paper's tables, compared with ours: the paper's number, our number, the difference in points.

Our number is the mean over seeds, with ± the standard deviation between them if there are several. Each table
is for one setting (size and images); a table without runs shows only the paper's numbers.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path

from imae.files.errors import ImaeError
from imae.files.read import AnyPath
from imae.paper import exact
from imae.paper.authors_logs import authors_runs, chosen, difference, read_curve
from imae.paper.claims import CLAIMS, NO_DATA, NOT_HELD, Claim, Verdict, by_text
from imae.paper.evidence import CLOTHING, COMMANDS, EVIDENCE, MARS, noise_of
from imae.paper.expected import (
    CIFAR100_NOISE,
    LATER_TABLE_5,
    LATER_TABLES_3_4,
    TABLE_3,
    paper_later_table_6,
    paper_tables_1_2,
)
from imae.paper.experiments import (
    ITERATIONS,
    Run,
    arithmetic,
    choose_t,
    cifar100,
    figures_6_7,
    human_noise,
    later_table_6,
    table_1,
    table_2,
    training_command,
    variants,
)
from imae.paper.record import Record
from imae.paper.results import (
    IMAGES,
    MEASURES,
    TEST_IMAGES,
    Results,
    Sample,
    Setting,
    gather,
    is_full_size,
    net_words,
    noise_words,
    provenance,
)
from imae.paper.results_files import (
    CLOTHING1M_FORMAT,
    MARS_FORMAT,
    clothing1m_results,
    mars_results,
)
from imae.paper.suspects import STUDIES, WithSpreadOfBase, change_words

NOTHING = "–"
NO_RUNS_YET = "no runs yet"
NO_RUNS = Results(Setting(ITERATIONS, IMAGES, TEST_IMAGES, ""), {})
CLAIM_NOTE = (
    "Means over seeds are compared. Narrowly: by less than two standard errors, of shares of so many images "
    "and between seeds."
)
HEADINGS = {
    "corrupted": "train, corrupted",
    "intact": "train, intact",
    "best": "test best",
    "final": "test final",
    "certain": "p > 1 − 1e-6",
    "hopeless": "p < 1e-6",
}
SUSPECT_MEASURES = ("final", "corrupted")
HOW_TO_GET_MARS = (
    "MARS (Zheng et al., ECCV 2016; bbox_train, bbox_test and info, from its authors) is not at hand. With "
    f"it where prototxt/models/mars says, for IMAE (its solver says how another loss is chosen): "
    f"{COMMANDS[MARS]}. The file: {MARS_FORMAT}"
)


@dataclass(frozen=True)
class Table:
    """Cells of text. columns: (group, name); columns of one group share a heading.

    keys   the number of first columns that identify a row
    """

    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    keys: int = 1


def number(value: float | None, sign: bool = False) -> str:
    """A number of per cent or points with one decimal, as the paper prints it."""
    if value is None:
        return NOTHING
    value = round(value, 1) or 0.0  # no minus zero
    text = f"{value:+.1f}" if sign and value else f"{value:.1f}"
    return text.replace("-", "−")


def ours(sample: Sample | None) -> str:
    """The mean over seeds and the spread between them, as text."""
    if sample is None:
        return NOTHING
    return number(sample.mean) + ("" if sample.spread is None else f" ± {sample.spread:.1f}")


def compared(paper: float | None, sample: Sample | None) -> tuple[str, str, str]:
    """The paper's number, our number, and their difference, as text."""
    difference = None if paper is None or sample is None else sample.mean - paper
    return number(paper), ours(sample), number(difference, sign=True)


def _compared_columns(measures: Iterable[str]) -> list[tuple[str, str]]:
    """The three columns of each measure."""
    return [
        (HEADINGS.get(measure, MEASURES[measure].label), name)
        for measure in measures
        for name in ("paper", "ours", "diff.")
    ]


def _seeds(results: Results, run: Run) -> str:
    return str(len(results.seeds(run)))


# What a row says of its runs: the number of seeds; at full size also precision and device.
def _run_columns(results: Results) -> list[tuple[str, str]]:
    full = bool(results.runs) and not results.setting.is_scaled
    return [("", name) for name in (("seeds", "precision", "device") if full else ("seeds",))]


def _run_cells(results: Results, run: Run) -> list[str]:
    records = results.seeds(run)
    cells = [
        str(len(records)),
        "; ".join(sorted({record.run.precision for record in records})) or NOTHING,
        "; ".join(sorted({record.device for record in records})) or NOTHING,
    ]
    return cells[: len(_run_columns(results))]


def _titled(title: str, results: Results) -> str:
    """The title with the size of the runs, which a reader must not overlook."""
    if not results.runs:
        return f"{title}: {NO_RUNS_YET}"
    return f"{title}; {'SCALED DOWN' if results.setting.is_scaled else 'full size'}"


def _notes(results: Results, runs: Iterable[Run]) -> tuple[str, ...]:
    return tuple(provenance(results, results.of(runs))) if results.runs else ()


def _paper_table(
    title: str,
    runs: Sequence[Run],
    paper: Mapping[Run, Mapping[str, float]],
    measures: Sequence[str],
    results: Results,
    note: str,
) -> Table:
    """A row per net, noise and loss; three columns per measure."""
    rows = []
    for run in runs:
        cells = [net_words(run.net), noise_words(run), run.label]
        for measure in measures:
            cells += compared(paper.get(run, {}).get(measure), results.sample(run, measure))
        rows.append((*cells, *_run_cells(results, run)))
    keys = [("", "net"), ("", "noise"), ("", "loss")]
    return Table(
        _titled(title, results),
        (*keys, *_compared_columns(measures), *_run_columns(results)),
        tuple(rows),
        (note, *_notes(results, runs)),
        keys=3,
    )


def table1(results: Results) -> Table:
    """Clean labels. The paper gives one number. It is compared with our final one; our best is shown, too."""
    printed, rows = paper_tables_1_2(), []
    for run in table_1():
        cells = compared(printed[run]["final"], results.sample(run, "final"))
        best = ours(results.sample(run, "best"))
        rows.append((net_words(run.net), run.label, *cells, best, *_run_cells(results, run)))
    best_column = (HEADINGS["best"], "ours")
    columns = (
        *(("", "net"), ("", "loss"), *_compared_columns(["final"])),
        *(best_column, *_run_columns(results)),
    )
    note = "Test accuracy in %. The paper does not say whether its number is the best or the final one."
    return Table(
        _titled("Table 1: CIFAR-10, clean labels", results),
        columns,
        tuple(rows),
        (note, *_notes(results, table_1())),
        keys=2,
    )


def table2(results: Results) -> Table:
    """Labels replaced at random."""
    return _paper_table(
        "Table 2: CIFAR-10, labels replaced at random, own class included",
        table_2(),
        paper_tables_1_2(),
        ("best", "final", "corrupted", "intact"),
        results,
        "Accuracy in %, differences in points. Training accuracies at the end, without augmentation; at 20, "
        "50 and 80 % about 18, 45 and 72 % of the labels are wrong.",
    )


def later_table6(results: Results) -> Table:
    """Noise to the other classes; noisy and clean subset, hybrid."""
    return _paper_table(
        "Later version, table 6: CIFAR-10, noise to the other classes",
        later_table_6(),
        paper_later_table_6(),
        ("best", "final", "noisy_subset", "clean_subset", "hybrid"),
        results,
        "Accuracy in %. Their curves run to about 100,000 iterations, ours to 64,000 or fewer. Hybrid: on "
        "the test images and all training images against their clean labels, which the printed numbers fit.",
    )


def _own_table(
    title: str,
    keys: Sequence[str],
    runs: Mapping[Run, Sequence[str]],
    measures: Sequence[str],
    results: Results,
    note: str,
) -> Table:
    """A table of measures for which the paper prints no numbers."""
    return Table(
        _titled(title, results),
        (
            *(("", key) for key in keys),
            *(("", HEADINGS.get(m, MEASURES[m].label)) for m in measures),
            *_run_columns(results),
        ),
        tuple(
            (*names, *(ours(results.sample(run, m)) for m in measures), *_run_cells(results, run))
            for run, names in runs.items()
        ),
        (note, *_notes(results, runs)),
        keys=len(keys),
    )


def human_table(results: Results) -> Table:
    """CIFAR-10N."""
    runs = {}
    for run in human_noise():
        wrong = {record.wrong_labels / record.train_images for record in results.seeds(run)}
        share = number(100 * max(wrong)) + " %" if wrong else NOTHING
        runs[run] = (run.human, share, run.label)
    return _own_table(
        "Human labels: CIFAR-10N, ResNet-20",
        ("labels", "wrong", "loss"),
        runs,
        ("best", "final", "corrupted", "intact", "noisy_subset", "clean_subset"),
        results,
        "Accuracy in %. Not in the paper: the same losses and settings on labels that people gave.",
    )


def temperature_table(results: Results) -> Table:
    """T on clean and on half-noisy labels: the final values of the curves in figures 6 to 8."""
    return _own_table(
        "Figures 6 to 8 in numbers: IMAE-T, ResNet-20",
        ("labels", "T"),
        {run: (noise_words(run), f"{run.t:g}") for run in figures_6_7()},
        ("best", "final", "corrupted", "intact"),
        results,
        "Accuracy in %. The paper prints no numbers for these figures.",
    )


def choose_t_table(results: Results) -> Table:
    """T on held-out images."""
    return _own_table(
        "Choosing T on a fifth of the training images, ResNet-20, 50 % noise",
        ("T",),
        {run: (f"{run.t:g}",) for run in choose_t()},
        ("validation", "validation_clean", "final"),
        results,
        "Accuracy in %. Trained on the other four fifths.",
    )


def suspects_table(results: Results) -> Table:
    """Each variant that has records, compared with its base, the paper's own run."""
    rows, runs = [], [run for run in variants() if run in results] or variants()
    for run in runs:
        cells = [noise_words(run), run.label, change_words(run)]
        for measure in SUSPECT_MEASURES:
            base, changed = results.sample(run.base, measure), results.sample(run, measure)
            difference = None if base is None or changed is None else changed.mean - base.mean
            cells += [ours(base), ours(changed), number(difference, sign=True)]
        shares = product(("certain", "hopeless"), (run.base, run))
        cells += [ours(results.sample(one, measure)) for measure, one in shares]
        rows.append((*cells, _seeds(results, run.base), _seeds(results, run)))
    return Table(
        _titled("What may be to blame: ResNet-20, one thing changed at a time", results),
        (
            *(("", key) for key in ("noise", "loss", "changed")),
            *(
                (HEADINGS[measure], name)
                for measure in SUSPECT_MEASURES
                for name in ("base", "changed", "diff.")
            ),
            *product((HEADINGS["certain"], HEADINGS["hopeless"], "seeds"), ("base", "changed")),
        ),
        tuple(rows),
        (
            "Accuracy in %, differences in points. Base: all as in the paper, the runs of tables 1 and 2. "
            "p: of the training images' labels as trained with; records from before it was measured lack it.",
            *_notes(results, dict.fromkeys(run for variant in runs for run in (variant.base, variant))),
        ),
        keys=3,
    )


def arithmetic_table(results: Results) -> Table:
    """IMAE-8 with and without the epsilon, divided by the sum of the weights or by the batch size."""
    divisors = {"SUM_OF_WEIGHTS": "sum of weights", "BATCH_SIZE": "batch size"}
    return _own_table(
        "IMAE-8's arithmetic: the epsilon and the normaliser",
        ("noise", "divided by", "epsilon"),
        {
            run: (noise_words(run), divisors[run.normalizer], f"{run.epsilon:g}")
            for run in sorted(arithmetic(), key=lambda run: run.rate)
        },
        ("best", "final", "corrupted", "certain", "hopeless"),
        results,
        "Accuracy in %; p: of the training images' labels as trained with, at the end.",
    )


def table3(mars: AnyPath | None = None) -> Table:
    """MARS. `mars`: a JSON file of results, see MARS_FORMAT."""
    results = mars_results(mars) if mars is not None else {}
    rows = []
    for metric, printed in TABLE_3.items():
        for loss, value in printed.items():
            share = results.get(loss, {}).get(metric)
            rows.append((metric, loss, *compared(value, None if share is None else Sample((100 * share,)))))
    note = f"Ours: {mars}." if mars is not None else f"{HOW_TO_GET_MARS}."
    return Table(
        "Table 3: MARS, GoogLeNet with batch normalisation",
        (("", "metric"), ("", "loss"), ("%", "paper"), ("%", "ours"), ("%", "diff.")),
        tuple(rows),
        (note, "GCE is the paper's reference [31]."),
        keys=2,
    )


def _exact_table(title: str, name: str, entries: Iterable[exact.Exact]) -> Table:
    rows = [(e.name, e.printed, e.rounded, "yes" if e.same else "NO", f"{e.value:.9f}") for e in entries]
    columns = (("", name), ("", "paper"), ("", "ours, as printed"), ("", "same"), ("", "ours"))
    return Table(title, columns, tuple(rows), ("Computed, not trained; the same at every size.",))


def table4() -> Table:
    """The variance of IMAE's weights."""
    return _exact_table("Table 4: variance of the weights of IMAE-T, p uniform", "T", exact.table_4())


def variance_table() -> Table:
    """The variances in figure 1's caption."""
    return _exact_table("Figure 1: variance of the weights", "loss", exact.figure_1_variances())


def formula_table() -> Table:
    """The later version's table 2, compared with our layers' gradients."""
    rows = [
        (f.loss, f.value, f.own, f.other, f.norm, f"{max(own, other, norm):.0e}")
        for f, own, other, norm in exact.later_table_2()
    ]
    names = ("loss", "L(p)", "dL/dz_y", "dL/dz_j, j ≠ y", "L1 norm", "our layer: off by")
    return Table(
        "Later version, table 2: loss, gradient, weight; p is p_y",
        tuple(("", name) for name in names),
        tuple(rows),
        (
            "Last column: the largest difference between the printed formulas and what the layer computes, "
            "relative to the norm, for p from 0.01 to 0.99, in double precision (GCE's field q has single).",
            "L(p), by its derivative: "
            + "; ".join(f"{value.loss}: {value.words}" for value in exact.later_table_2_values())
            + ".",
            "IMAE here keeps MAE's value 2 (1-p), as in the first version; the later one has the integral.",
        ),
        keys=5,
    )


def cifar100_table(results: Results) -> Table:
    """The later version's tables 3 and 4 and DM's table 1, the authors' logs, and our runs."""
    logs = {(run.family, run.noise): run for run in authors_runs()}
    own = {(run.loss, noise_of(run)): run for run in cifar100()}
    rows = []
    for loss, values in LATER_TABLES_3_4.items():
        for noise, printed in zip(CIFAR100_NOISE, values, strict=True):
            kind, _, rate = noise.partition(" ")
            log = logs.get((loss, float(rate or 0))) if kind != "asym" else None
            cells = [f"{100 * v:.2f}" for v in (log.curve.best, log.curve.final)] if log else [NOTHING] * 2
            run = own.get((loss, noise))
            ours_ = [NOTHING] * 3
            if run is not None and run in results:
                best = results.sample(run, "best")
                difference = number(best.mean - printed, sign=True) if best else NOTHING
                ours_ = [ours(best), ours(results.sample(run, "final")), difference]
            seeds = "0" if run is None else _seeds(results, run)
            rows.append((loss, noise, number(printed), log.label if log else NOTHING, *cells, *ours_, seeds))
    columns = (
        *(("", "loss"), ("", "noise"), ("", "printed"), ("log", "run"), ("log", "best"), ("log", "final")),
        *(("ours", "best"), ("ours", "final"), ("ours", "best - printed"), ("ours", "seeds")),
    )
    runs = results.of(own.values())
    about = (
        " ".join(provenance(results, runs))
        if runs
        else f"Ours: {NO_RUNS_YET}; imae paper cifar100 trains them."
    )
    return Table(
        _titled("Later version, tables 3 and 4: CIFAR-100, ResNet-44", results),
        columns,
        tuple(rows),
        (
            f"Test accuracy in %: what the authors print, their own logs, and our runs. {about} The authors "
            "do not give IMAE's T for asymmetric noise; ours is 8. DM is another paper's, no run of ours. "
            "imae paper later-tables --log FILE shows any log beside theirs.",
        ),
        keys=2,
    )


def clothing_table(clothing1m: AnyPath | None = None) -> Table:
    """The later version's table 5. `clothing1m`: a JSON file of results, see CLOTHING1M_FORMAT."""
    results = clothing1m_results(clothing1m) if clothing1m is not None else {}
    samples = {loss: Sample((100 * value,)) for loss, value in results.items()}
    note = (
        f"Ours: {clothing1m}."
        if clothing1m is not None
        else "Clothing1M (Xiao et al., CVPR 2015) is not at hand; its authors give it on request. "
        "prototxt/models/clothing1m says where it belongs, and has the solver. With its test accuracies in a "
        f"file, --clothing1m FILE: {CLOTHING1M_FORMAT}. For IMAE (its solver says how another loss is "
        f"chosen): {COMMANDS[CLOTHING]}."
    )
    return Table(
        "Later version, table 5: Clothing1M, ResNet-50",
        (("", "loss"), *(("test accuracy in %", name) for name in ("paper", "ours", "diff."))),
        tuple((loss, *compared(value, samples.get(loss))) for loss, value in LATER_TABLE_5.items()),
        (note,),
    )


def log_table(log: AnyPath, noise: float | None = None, loss: str | None = None) -> Table:
    """A CIFAR-100 log compared with the authors' own: all of them, or those of one noise rate or loss."""
    curve = read_curve(log)
    rows = []
    for run in chosen(authors_runs(), noise, loss):
        common = difference(curve, run.curve)
        rows.append(
            (
                run.label,
                f"{run.noise:g}",
                *compared(100 * run.curve.best, Sample((100 * curve.best,))),
                *compared(100 * run.curve.final, Sample((100 * curve.final,))),
                str(common[0] if common else 0),
                number(100 * common[1] if common else None, sign=True),
            )
        )
    columns = [(measure, name) for measure in ("best", "final") for name in ("authors", "log", "diff.")]
    along = [("along the training", "tests in common"), ("along the training", "mean diff.")]
    return Table(
        f"{Path(log).name} beside the authors' CIFAR-100 runs",
        (("", "loss"), ("", "noise"), *columns, *along),
        tuple(rows),
        (
            f"Test accuracy in %. The log has {len(curve.iterations)} tests, the last at iteration "
            f"{curve.iterations[-1]:,}; the authors' runs end at 30,000.",
        ),
        keys=2,
    )


# The tables made from runs: the function that makes each, and its runs.
FROM_RUNS: dict[str, tuple[Callable[[Results], Table], Callable[[], list[Run]]]] = {
    "table1": (table1, table_1),
    "table2": (table2, table_2),
    "temperatures": (temperature_table, figures_6_7),
    "human-noise": (human_table, human_noise),
    "choose-t": (choose_t_table, choose_t),
    "later-table6": (later_table6, later_table_6),
    "cifar100": (cifar100_table, cifar100),
    "suspects": (suspects_table, variants),
    "arithmetic": (arithmetic_table, arithmetic),
}
# The experiment with the runs of a table, where it has another name.
_EXPERIMENTS = {"temperatures": "figure6", "later-table6": "later-tables"}
# The table that has the numbers of each figure.
FIGURE_TABLES = {"figure3": "table2", "figure4": "table2"} | dict.fromkeys(
    ("figure6", "figure7", "figure8"), "temperatures"
)
NAMES = (
    *(
        "table1",
        "table2",
        "table3",
        "table4",
        "figure1",
        "figure3",
        "figure4",
        "figure5",
        "figure6",
        "figure7",
    ),
    *("figure8", "human-noise", "choose-t", "later-tables", "cifar100", "suspects", "arithmetic"),
)


def tables(
    name: str, records: Sequence[Record], mars: AnyPath | None = None, clothing1m: AnyPath | None = None
) -> list[Table]:
    """The tables of one of NAMES; tables of runs come once per setting. ImaeError for another name."""
    name = FIGURE_TABLES.get(name, name)
    if name in FROM_RUNS:
        make, runs = FROM_RUNS[name]
        return [make(results) for results in gather(records) if results.has(runs())] or [make(NO_RUNS)]
    if name == "table3":
        return [table3(mars)]
    if name in ("table4", "figure5"):
        return [table4()]
    if name == "figure1":
        return [variance_table()]
    if name == "later-tables":
        sixth = tables("later-table6", records)
        return [formula_table(), *tables("cifar100", records), clothing_table(clothing1m), *sixth]
    raise ImaeError(f"there is no table '{name}'; known: {', '.join(NAMES)}")


def command(name: str) -> str:
    """What trains the runs of one of FROM_RUNS."""
    return training_command(_EXPERIMENTS.get(name, name))


def all_claims_table(records: Sequence[Record]) -> Table:
    """Every claim about CIFAR-10: whether it holds in print, and in our runs of the paper's size.

    Nets and noise rates that a claim is made of share a row; the last column says what trains its runs.
    """
    full = [results for results in gather(records) if is_full_size(results)]
    rows = []
    for text, group in by_text(CLAIMS).items():
        printed = _tally({claim: claim.in_paper() for claim in group})
        own = []
        for results in full:
            tally = _tally({claim: claim.check(results) for claim in group})
            if tally != NOTHING:
                own.append(f"{results.setting.label}: {tally}" if len(full) > 1 else tally)
        begun = any(results.has(run for claim in group for run in claim.runs) for results in full)
        shown = "; ".join(own) or ("not all of its runs yet" if begun else "no run yet")
        rows.append((text, group[0].source, printed, shown, f"`{group[0].command}`"))
    return Table(
        "Every claim about CIFAR-10",
        tuple(("", name) for name in ("claim", "source", "in print", "our full-size runs", "command")),
        tuple(rows),
        (
            "In print: by the numbers of tables 1, 2 and the later version's table 6; – where only a figure "
            "shows it. Each count is of nets and noise rates. The command trains the runs that are missing.",
        ),
        keys=5,
    )


def _tally(verdicts: Mapping[Claim, Verdict]) -> str:
    """How many hold, and where it is not so."""
    judged = {claim: verdict for claim, verdict in verdicts.items() if verdict.verdict != NO_DATA}
    fallen = [f"{c.where} ({v.numbers})" for c, v in judged.items() if v.verdict == NOT_HELD]
    if not judged:
        return NOTHING
    words = f"held {len(judged) - len(fallen)} of {len(judged)}"
    return f"{words}; not: {'; '.join(fallen)}" if fallen else words


def claim_tables(records: Sequence[Record], shown: str | None = None) -> list[Table]:
    """The verdicts on the claims, a table per setting; `shown`: only those of this table or figure."""
    claims = [claim for claim in CLAIMS if shown in (None, *claim.shown)]
    if shown in STUDIES:
        claims = list(STUDIES[shown])
    made = []
    for results in gather(records):
        source = WithSpreadOfBase(results) if shown in STUDIES else results
        rows = []
        for text, group in by_text(claims).items():
            for claim in group:
                verdict, paper = claim.check(source), claim.in_paper()
                if verdict.verdict != NO_DATA:
                    printed = NOTHING if paper.verdict == NO_DATA else f"{paper.verdict}: {paper.numbers}"
                    rows.append((text, claim.where, printed, verdict.words, verdict.numbers))
        if rows:
            columns = tuple(
                ("", name) for name in ("claim", "where", "in the paper's table", "ours", "numbers")
            )
            judged = results.records if shown in STUDIES else results.own_records
            notes = (*provenance(results, judged), CLAIM_NOTE)
            title = "Hypotheses" if shown in STUDIES else "Claims"
            made.append(Table(_titled(title, results), columns, tuple(rows), notes, keys=5))
    return made


def evidence_table(
    shown: str | None = None,
    records: Sequence[Record] = (),
    mars: AnyPath | None = None,
    clothing1m: AnyPath | None = None,
) -> Table | None:
    """The claims that need no training of ours, of this table or figure; None if there are none.

    With full-size runs on CIFAR-100 among the records, or results on MARS or Clothing1M (JSON files, see
    MARS_FORMAT and CLOTHING1M_FORMAT), a column has the verdicts by these.
    """
    full = [r for r in gather(records) if not r.setting.is_scaled and r.has(cifar100())]
    on_mars = mars_results(mars) if mars is not None else None
    on_clothing = clothing1m_results(clothing1m) if clothing1m is not None else None
    has_own = bool(full or on_mars or on_clothing)
    rows = []
    items = [item for item in EVIDENCE if shown in (None, *item.claim.shown)]
    for item in sorted(items, key=lambda item: [e.claim.text for e in items].index(item.claim.text)):
        verdicts = item.printed, item.checked
        numbers = item.checked.numbers or item.printed.numbers
        by_ours = [item.ours(full[0] if full else None, on_mars, on_clothing)] if has_own else []
        words = (
            NOTHING if verdict.verdict == NO_DATA else verdict.verdict for verdict in (*verdicts, *by_ours)
        )
        numbers += "".join(f"; ours: {verdict.numbers}" for verdict in by_ours if verdict.numbers)
        rows.append((item.claim.text, item.about, item.claim.source, *words, numbers))
    if not rows:
        return None
    commands = "; ".join(f"{of}: {COMMANDS[of]}" for of in dict.fromkeys(item.of for item in items))
    return Table(
        "Claims that need no training of ours",
        tuple(
            ("", name)
            for name in (
                *("claim", "about", "source", "printed", "logs or formulas"),
                *(["ours"] if has_own else []),
                "numbers",
            )
        ),
        tuple(rows),
        (
            "Printed: by the numbers that the paper, its later version or DM print. Logs or formulas: by the "
            "authors' own 48 logs (CIFAR-100), by formulas computed here (weights, labels), by counting the "
            f"benchmark's files (MARS's files). What gives our own numbers: {commands}.",
        ),
        keys=7 if has_own else 6,
    )


def print_table(
    name: str,
    records: Sequence[Record],
    mars: AnyPath | None = None,
    log: AnyPath | None = None,
    noise: float | None = None,
    loss: str | None = None,
    clothing1m: AnyPath | None = None,
) -> None:
    """Print the tables of one of NAMES and the claims about them as Markdown.

    mars              for table3: a JSON file of results on MARS, see MARS_FORMAT
    clothing1m        for later-tables: one of results on Clothing1M, see CLOTHING1M_FORMAT
    log, noise, loss  for later-tables: the log of a CIFAR-100 run, compared with the authors' of this noise
                      and loss
    """
    printed = tables(name, records, mars, clothing1m)
    if log is not None:
        printed = [log_table(log, noise, loss), *printed]
    evidence = evidence_table(name, records, mars, clothing1m)
    judged = [*claim_tables(records, name), *([evidence] if evidence else [])]
    print("\n\n".join(markdown(table) for table in [*printed, *judged]))


def markdown(table: Table) -> str:
    """A table as Markdown, its columns aligned for a terminal."""
    head = [f"{group}, {name}" if group else name for group, name in table.columns]
    lines = [head, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if i < table.keys else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = [":" + "-" * (w - 1) if i < table.keys else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    notes = [" ".join(table.notes), ""] if table.notes else []
    return "\n".join([f"**{table.title}**", "", *notes, line(head), line(rule), *map(line, table.rows)])


def html_table(table: Table) -> str:
    """A table as HTML, without its title and notes; columns of one group share a heading."""
    groups = [(group, len(list(columns))) for group, columns in groupby(table.columns, key=lambda c: c[0])]
    head = ""
    if any(group for group, _ in groups):
        cells = "".join(f'<th colspan="{span}">{html.escape(group)}</th>' for group, span in groups)
        head = f'<tr class="groups">{cells}</tr>'
    names = (
        f'<th class="key">{html.escape(name)}</th>' if i < table.keys else f"<th>{html.escape(name)}</th>"
        for i, (_, name) in enumerate(table.columns)
    )
    head += f"<tr>{''.join(names)}</tr>"
    body: list[str] = []
    before: tuple[str, ...] = ()
    for row in table.rows:
        fresh = row[: table.keys - 1] != before
        before = row[: table.keys - 1]
        cells = "".join(
            f'<td class="key">{html.escape(cell)}</td>' if i < table.keys else f"<td>{html.escape(cell)}</td>"
            for i, cell in enumerate(row)
        )
        body.append(f'<tr class="first">{cells}</tr>' if fresh and table.keys > 1 else f"<tr>{cells}</tr>")
    text = f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="wide" tabindex="0">{text}</div>'  # keys can move it, too
