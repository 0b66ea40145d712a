"""The README's lines about the reproduction, which are generated from the records between two markers.

paper/RESULTS.md has everything (results_page.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imae.files.atomic import write_atomically
from imae.files.errors import DataError
from imae.files.read import AnyPath
from imae.paper.expected import paper_tables_1_2
from imae.paper.experiments import ITERATIONS, LATER, Run, table_2
from imae.paper.record import Record
from imae.paper.results import IMAGES, Results, gather, is_full_size, noise_words
from imae.paper.results_page import claims_held, without_training
from imae.paper.tables import NOTHING, number, ours

BEGIN, END = "<!-- paper:begin -->", "<!-- paper:end -->"
SIZES = 3  # the most lines of runs
# The runs whose numbers are shown: half of the labels replaced, as in most of the paper's figures, and most.
SHOWN = [[run for run in table_2() if run.net == "resnet20" and run.rate == rate] for rate in (0.5, 0.8)]
COLUMNS = (
    f"iterations of {ITERATIONS:,}",
    f"images of {IMAGES:,}",
    "runs",
    "final test accuracy in %, ResNet-20, by noise: the paper's / ours",
    "claims held",
)


def readme_lines(records: Sequence[Record]) -> str:
    """The text between the markers: a line for each of the largest sizes of the runs on CIFAR-10."""
    settings = [results for results in gather(records) if results.setting.protocol != LATER]
    rows = [_row(results) for results in settings[:SIZES]]
    if not rows:
        return f"{without_training()} No run on CIFAR-10 has a record yet.\n"
    full = any(map(is_full_size, settings))
    size = "" if full else " No run of the paper's size yet:"
    lines = [
        f"{without_training()}{size}",
        "",
        _line(COLUMNS),
        _line(["---"] * len(COLUMNS)),
        *map(_line, rows),
    ]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _row(results: Results) -> list[str]:
    setting = results.setting
    runs = sum(len(records) for records in results.runs.values())
    held, judged = claims_held(results)
    shown = [[run for run in group if run in results] for group in SHOWN]
    precision = "" if setting.precision == "fp32" else f" ({setting.precision})"
    return [
        f"{setting.iterations:,}{precision}",
        f"{setting.images:,}",
        str(runs),
        "; ".join(_accuracies(results, group) for group in shown if group) or NOTHING,
        f"{held} of {judged}" if judged else NOTHING,
    ]


def _accuracies(results: Results, runs: Sequence[Run]) -> str:
    """Of runs on the same labels."""
    return f"{noise_words(runs[0])}: {', '.join(_accuracy(results, run) for run in runs)}"


def _accuracy(results: Results, run: Run) -> str:
    paper = paper_tables_1_2()[run]["final"]
    return f"{run.label} {number(paper)} / {ours(results.sample(run, 'final'))}"


def update_readme(path: AnyPath, records: Sequence[Record]) -> bool:
    """Write the lines between the markers of a file; True if that changes it. DataError without markers."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read '{path}': {error}") from None
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"'{path}' lacks the lines {BEGIN} and {END}, between which the results belong")
    fresh = f"{before}{begin}{readme_lines(records)}{end}{after}"
    if fresh != text:
        write_atomically(path, fresh.encode())
    return fresh != text
