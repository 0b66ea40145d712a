"""A sweep: one net trained with several losses, noise rates and seeds; resumable; one HTML report.

A sweep is a TOML file; paths in it are relative to the working directory, as in a prototxt:

    solver = "solver.prototxt"        # its net, rates and iterations; the seed is set for each run
    train = "data/train_lmdb"         # the LMDB whose labels are made wrong
    replaces = "data/train_lmdb"      # the one that the net's Data layers name, if it is another than train
    noise = "symmetric-exclusive"     # one of the kinds of `imae corrupt-labels` that have a rate
    rates = [0, 0.4, 0.6]
    seeds = [1, 2, 3]
    noise_seed = 123                  # the default; the wrong labels are the same for all runs of a rate

    [losses]
    CCE = 'type: "SoftmaxWithLoss"'                      # a layer's text: takes the place of the net's loss
    IMAE-8 = 'type: "IMAELoss" imae_loss_param { t: 8 }'
    MAE = { stage = "mae" }                              # the net's own loss of that stage
    own = { net = "other.prototxt" }                     # another net

NAME.toml has its runs in the folder NAME: data/ (LMDBs with wrong labels), runs/RUN/ (net, solver, log,
snapshots), records/RUN.json, report.html. A run with a record is not run again; a run that was stopped goes
on from its last snapshot.
"""

from __future__ import annotations

import hashlib
import html
import json
import platform
import re
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from imae.converters.corrupt_labels import INSTANCE, NOISES, corrupt_labels
from imae.converters.label_file import clean_labels_path, read_labels
from imae.files.atomic import write_atomically
from imae.files.caffe_log import read_log
from imae.files.errors import DataError, FileError, ImaeError
from imae.files.nearest import did_you_mean
from imae.files.read import AnyPath, read_bytes
from imae.layers.layer import LossLayer
from imae.layers.registry import class_of
from imae.paper.figures import STYLES, Chart, Line, Panel, legend_html, panel_svgs
from imae.paper.processes import last_snapshot, run_all, start_training
from imae.paper.report import page_style
from imae.paper.tables import Table, html_table, markdown
from imae.prototxt import TRAIN, LayerParameter, NetParameter, NetState, SolverParameter
from imae.prototxt.dialects import read_net_text, read_solver_dialect
from imae.prototxt.state import filter_by_state, in_state
from imae.prototxt.text import parse_text, to_text
from imae.train.compare_runs import is_better, sample, summarise, test_curves
from imae.train.curve_style import new_figure
from imae.train.snapshot_lock import writing_alone

FORMAT = 1  # of a record
KINDS = (*NOISES, INSTANCE)
NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,60}", re.ASCII)
FIELDS = {"solver": str, "train": str, "noise": str, "rates": list, "seeds": list, "losses": dict}


@dataclass(frozen=True)
class Sweep:
    """A sweep as its file says. losses: by name, a layer's text, or {"stage": ...}, or {"net": ...}."""

    solver: str
    train: str
    noise: str
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    losses: Mapping[str, str | Mapping[str, str]]
    noise_seed: int = 123
    replaces: str = ""


class Run(NamedTuple):
    """One training of a sweep."""

    loss: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder and its record."""
        return f"{self.loss}_noise{self.rate:g}_seed{self.seed}"


@dataclass(frozen=True)
class Record:
    """What a run has given: its settings, and the values of each test output by iteration."""

    loss: str
    rate: float
    seed: int
    noise: str
    noise_seed: int
    wrong_labels: int
    train_records: int
    solver: str
    net_sha256: str
    versions: dict[str, str]
    seconds: float
    train_loss: float | None
    outputs: dict[str, dict[str, list[float]]]

    def best(self, output: str) -> float:
        """The best value of an output."""
        values = self.outputs[output]["values"]
        best = values[0]
        for value in values:
            best = value if is_better(output, value, best) else best
        return best


def read_sweep(path: AnyPath) -> Sweep:
    """The sweep of a TOML file; DataError for anything else."""
    try:
        content = tomllib.loads(read_bytes(path).decode())
    except OSError as error:
        raise DataError(f"cannot read the sweep '{path}': {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' is no sweep in TOML: {error}") from None
    known = [*FIELDS, "noise_seed", "replaces"]
    for field in content:
        if field not in known:
            raise DataError(
                f"'{path}': unknown '{field}'{did_you_mean(field, known)} (known: {', '.join(known)}; "
                "iterations, learning rate and tests are the solver's)"
            )
    kinds = FIELDS | ({"replaces": str} if "replaces" in content else {})
    for field, kind in kinds.items():
        if not isinstance(content.get(field), kind) or not content[field]:
            raise DataError(f"'{path}': '{field}' must be given as a {kind.__name__} that is not empty")
    sweep = Sweep(**{**content, "rates": tuple(content["rates"]), "seeds": tuple(content["seeds"])})
    _check(sweep, path)
    return sweep


def _check(sweep: Sweep, path: AnyPath) -> None:
    if sweep.noise not in KINDS:
        raise DataError(f"'{path}': noise must be one of {', '.join(KINDS)}; got '{sweep.noise}'")
    for rate in sweep.rates:
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise DataError(f"'{path}': rates must be numbers from 0 to 1; got {rate!r}")
    for seed in (*sweep.seeds, sweep.noise_seed):
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise DataError(f"'{path}': seeds must be whole numbers from 0 to 4294967295; got {seed!r}")
    for name, loss in sweep.losses.items():
        if not NAME.fullmatch(name):
            raise DataError(
                f"'{path}': the name of a loss is also that of files: letters, digits, . + - _; got {name!r}"
            )
        text = isinstance(loss, dict) and len(loss) == 1 and isinstance(next(iter(loss.values())), str)
        if not isinstance(loss, str) and not (text and next(iter(loss)) in ("stage", "net")):
            raise DataError(
                f"'{path}': the loss {name} must be a layer's text, {{ stage = \"...\" }} or "
                f'{{ net = "..." }}; got {loss!r}; a name with a dot is written in quotes'
            )
    for field in ("rates", "seeds"):
        values = getattr(sweep, field)
        if len(set(values)) < len(values):
            raise DataError(f"'{path}': {field} has a value twice")


def all_runs(sweep: Sweep) -> list[Run]:
    """The runs of a sweep: each loss with each rate and each seed."""
    return [
        Run(loss, float(rate), seed) for seed, rate, loss in product(sweep.seeds, sweep.rates, sweep.losses)
    ]


def noisy_lmdb(sweep: Sweep, rate: float, folder: Path) -> Path:
    """The LMDB that the runs of a rate are trained on, which is made if it is not there."""
    if rate == 0:
        return Path(sweep.train)
    lmdb = folder / "data" / f"{sweep.noise}_{rate:g}_seed{sweep.noise_seed}_lmdb"
    if not lmdb.exists():
        _make_folder(lmdb.parent)
        corrupt_labels(sweep.train, lmdb, sweep.noise, rate=rate, seed=sweep.noise_seed)
    return lmdb


def prepared_net(sweep: Sweep, run: Run, lmdb: Path) -> tuple[NetParameter, list[str]]:
    """The net of a run, and the stages of its train net."""
    solver = read_solver_dialect(sweep.solver, None)
    loss = sweep.losses[run.loss]
    stages = list(solver.train_state.stage)
    path = solver.net
    if not isinstance(loss, str):
        path, stages = loss.get("net", path), [loss["stage"]] if "stage" in loss else stages
    if not path:
        raise DataError(f"'{sweep.solver}': a sweep needs a solver with a field net, the train_val prototxt")
    net = read_net_text(path)
    if isinstance(loss, str):
        _replace_loss(net, stages, parse_text(loss, LayerParameter, f"the loss {run.loss}"), path)
    replaced = sweep.replaces or sweep.train
    named = [
        layer
        for layer in net.layer
        if layer.type == "Data" and Path(layer.data_param.source) == Path(replaced)
    ]
    if not named:
        sources = [layer.data_param.source for layer in net.layer if layer.type == "Data"]
        raise DataError(
            f"'{path}': no Data layer reads '{replaced}', which the sweep replaces (fields train, "
            f"replaces); there is {', '.join(sources) or 'none'}"
        )
    for layer in named:
        layer.data_param.source = str(lmdb)
    return net, stages


def _replace_loss(net: NetParameter, stages: Sequence[str], loss: LayerParameter, path: str) -> None:
    """Put a loss into the place of the train net's loss, with its blobs and its rules."""
    trained = filter_by_state(net, in_state(net, TRAIN, NetState(stage=stages)).state)
    found = [
        index
        for index, layer in enumerate(net.layer)
        if issubclass(class_of(layer), LossLayer) and layer in trained.layer
    ]
    if len(found) != 1:
        raise DataError(
            f"'{path}': a loss's text takes the place of the net's one loss in phase TRAIN; there are "
            f"{len(found)}; name losses by stage or net"
        )
    old = net.layer[found[0]]
    for field in ("name", "bottom", "top", "include", "exclude", "loss_weight"):
        value = getattr(old, field)
        if field == "name":
            loss.name = loss.name or value
        elif not getattr(loss, field):
            getattr(loss, field).extend(value)
    if not issubclass(class_of(loss), LossLayer):
        raise DataError(f'the loss {loss.name}: type "{loss.type}" is no loss')
    old.CopyFrom(loss)


def solver_of(sweep: Sweep, run: Run, folder: Path, net: Path, stages: Sequence[str]) -> SolverParameter:
    """The solver of a run: the sweep's, with net, seed, stages and places of its own."""
    param = read_solver_dialect(sweep.solver, None)
    param.net, param.snapshot_prefix = str(net), str(folder / "run")
    param.random_seed = run.seed
    param.train_state.stage[:] = stages
    param.snapshot = param.snapshot or max(1, param.max_iter // 10)
    param.snapshot_after_train = True
    return param


def run_sweep(path: AnyPath, jobs: int = 1, options: Sequence[str] = ()) -> Path:
    """Train what has no record yet, and write the report; returns its path.

    jobs      processes at a time
    options   options of `imae train` for each of them

    ImaeError names the runs that failed, when all have ended.
    """
    if jobs < 1:
        raise ImaeError(f"--jobs must be at least 1, got {jobs}")
    sweep = read_sweep(path)
    folder = Path(path).with_suffix("")
    if folder == Path(path):
        raise DataError(f"'{path}': the name of a sweep must have an ending, NAME.toml; its runs are in NAME")
    new_figure(1, 1)  # the report has curves; without matplotlib this is told before the training
    _make_folder(folder)
    with writing_alone(str(folder / "sweep"), f"another imae sweep writes into '{folder}'; wait for its end"):
        runs = all_runs(sweep)
        waiting = [run for run in runs if not _is_done(sweep, run, folder)]
        print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them with a record", flush=True)
        iterations = read_solver_dialect(sweep.solver, None).max_iter
        failed = run_all(
            waiting,
            jobs,
            lambda run: _start(folder / "runs" / run.name, options),
            lambda run, status: _end(sweep, run, folder, status),
            lambda run: _iteration(folder, run, iterations),
            iterations * len(waiting),
        )
        if failed:
            raise ImaeError(
                f"{len(failed)} of {len(runs)} runs have not ended: {', '.join(run.name for run in failed)}; "
                f"their logs are {folder / 'runs' / failed[0].name / 'log'} and the like; the same command "
                "goes on with them"
            )
        records = [read_record(_record_path(folder, run)) for run in runs]
        report = folder / "report.html"
        text = read_bytes(path).decode()
        write_atomically(report, page(Path(path).stem, text, sweep, records).encode())
    for table in tables(sweep, records):
        print(f"\n{markdown(table)}")
    return report


def _record_path(folder: Path, run: Run) -> Path:
    return folder / "records" / f"{run.name}.json"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder '{folder}': {error.strerror}") from None


def _is_done(sweep: Sweep, run: Run, folder: Path) -> bool:
    """Whether a run has a record; its net and solver are written if not. DataError if these have changed."""
    lmdb = noisy_lmdb(sweep, run.rate, folder)
    own = folder / "runs" / run.name
    net, stages = prepared_net(sweep, run, lmdb)
    texts = {
        own / "net.prototxt": to_text(net),
        own / "solver.prototxt": to_text(solver_of(sweep, run, own, own / "net.prototxt", stages)),
    }
    _make_folder(own)
    record = _record_path(folder, run)
    for path, text in texts.items():
        if path.exists() and read_bytes(path).decode() != text:
            raise DataError(
                f"'{path}' is of another run: the sweep's net, solver or data have changed since; give the "
                f"sweep another name, or remove '{own}' and '{record}'"
            )
        write_atomically(path, text.encode())
    if not record.exists():
        return False
    read_record(record)
    return True


def _start(folder: Path, options: Sequence[str]) -> subprocess.Popen[bytes]:
    return start_training(folder, options)


def _iteration(folder: Path, run: Run, iterations: int) -> int:
    """How far a run is, by its snapshots: for the progress bar."""
    if _record_path(folder, run).exists():
        return iterations
    return last_snapshot(folder / "runs" / run.name)


def _end(sweep: Sweep, run: Run, folder: Path, status: int) -> bool:
    """Write the record of a run that has reached its last iteration, and print its results."""
    own = folder / "runs" / run.name
    iterations = read_solver_dialect(own / "solver.prototxt", None).max_iter
    if status or not (own / f"run_iter_{iterations}.caffemodel").exists():
        lines = (own / "log").read_text(encoding="utf-8", errors="replace").splitlines()
        tqdm.write(f"{run.name}: exit status {status}: {''.join(lines[-1:])}")
        return False
    record = _record(sweep, run, folder, own)
    _make_folder(folder / "records")
    text = json.dumps({"format": FORMAT, **asdict(record)}, indent=1, ensure_ascii=False)
    write_atomically(_record_path(folder, run), f"{text}\n".encode())
    results = [
        f"{name} {record.best(name):.4g} best, {output['values'][-1]:.4g} last"
        for name, output in record.outputs.items()
    ]
    tqdm.write(f"{run.name}: {', '.join(results) or 'no test'}; {record.seconds:.0f} s")
    return True


def _record(sweep: Sweep, run: Run, folder: Path, own: Path) -> Record:
    numbers = read_log(own / "log")
    training = summarise(run.name, numbers)
    outputs = {}
    solver = read_solver_dialect(own / "solver.prototxt", None)
    for curve in test_curves(numbers):
        values = dict(sorted(dict(zip(curve.iterations, curve.values, strict=True)).items()))
        outputs[output_name(curve.label, solver)] = {
            "iterations": list(map(float, values)),
            "values": list(values.values()),
        }
    wrong = count = 0
    if run.rate:
        path = clean_labels_path(noisy_lmdb(sweep, run.rate, folder))
        clean, noisy = (read_labels(f"{path}:{name}").labels for name in ("clean", "noisy"))
        wrong, count = int(np.sum(clean != noisy)), len(clean)
    return Record(
        *(*run, sweep.noise, sweep.noise_seed, wrong, count),
        solver=(own / "solver.prototxt").read_text(encoding="utf-8"),
        net_sha256=hashlib.sha256((own / "net.prototxt").read_bytes()).hexdigest(),
        versions={name: version(name) for name in ("imae", "torch", "numpy")}
        | {"python": platform.python_version()},
        seconds=round(training.seconds, 1),
        train_loss=training.loss,
        outputs=outputs,
    )


def output_name(label: str, solver: SolverParameter) -> str:
    """The name of a test output; of one of several test nets with the net's stages, where it has some."""
    match = re.search(r" \(test net #(\d+)\)$", label)
    net = int(match[1]) if match else 0
    if not 1 < len(solver.test_state) > net or not solver.test_state[net].stage:
        return label
    return f"{label[: match.start()] if match else label} ({', '.join(solver.test_state[net].stage)})"


def read_record(path: Path) -> Record:
    """The record of a run; DataError for anything else."""
    try:
        content: dict[str, Any] = json.loads(read_bytes(path))
        if content.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        record = Record(**content)
        for output in record.outputs.values():
            if not output["values"] or len(output["values"]) != len(output["iterations"]):
                raise ValueError("an output without values")
    except OSError as error:
        raise DataError(f"cannot read the record '{path}': {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"'{path}' is not a record of a sweep: {error}; remove it, or restore it") from None
    return record


# -- the report --------------------------------------------------------------------------------------------


def tables(sweep: Sweep, records: Sequence[Record]) -> list[Table]:
    """A table for each test output: a row for each loss, best and last for each rate."""
    made = []
    for output in _outputs(records):
        columns = [("", "loss")]
        for rate in sweep.rates:
            columns += [(f"noise {100 * rate:g} %", "best"), (f"noise {100 * rate:g} %", "last")]
        rows = []
        for loss in sweep.losses:
            row = [loss]
            for rate in sweep.rates:
                of_loss = _seeds(records, loss, rate, output)
                row += [
                    sample([r.best(output) for r in of_loss]).text() if of_loss else "-",
                    sample([r.outputs[output]["values"][-1] for r in of_loss]).text() if of_loss else "-",
                ]
            rows.append(tuple(row))
        spread = (
            f"mean ± standard deviation of {len(sweep.seeds)} seeds" if len(sweep.seeds) > 1 else "one seed"
        )
        made.append(Table(f"{output}: {spread}", tuple(columns), tuple(rows)))
    return made


def _outputs(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record.outputs))


def _seeds(records: Sequence[Record], loss: str, rate: float, output: str) -> list[Record]:
    return [r for r in records if (r.loss, r.rate) == (loss, rate) and output in r.outputs]


def chart(sweep: Sweep, records: Sequence[Record], output: str) -> Chart:
    """The curves of an output: a panel for each rate, a line for each loss, in a band over the seeds."""
    styles = list(STYLES.values())
    panels = []
    for rate in sweep.rates:
        lines = []
        for index, loss in enumerate(sweep.losses):
            seeds = [record.outputs[output] for record in _seeds(records, loss, rate, output)]
            if not seeds:
                continue
            by_seed = [dict(zip(seed["iterations"], seed["values"], strict=True)) for seed in seeds]
            x = sorted(set.intersection(*map(set, by_seed)))
            columns = [[values[iteration] for values in by_seed] for iteration in x]
            band = (list(map(min, columns)), list(map(max, columns))) if len(seeds) > 1 else ((), ())
            mean = [sum(column) / len(column) for column in columns]
            lines.append(Line(loss, styles[index % len(styles)], x, mean, *band))
        panels.append(Panel(f"noise {100 * rate:g} %", tuple(lines)))
    return Chart(output, "iterations", output, tuple(panels), min(3, len(panels)))


def page(title: str, text: str, sweep: Sweep, records: Sequence[Record]) -> str:
    """The report as one HTML page, without scripts and other files."""
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{page_style()}</style></head><body>",
        f"<h1>{html.escape(title)}: {len(sweep.losses)} losses, {len(sweep.rates)} noise rates</h1>",
        f'<p class="about">{html.escape(_about(sweep, records))}</p>',
    ]
    for index, (output, table) in enumerate(zip(_outputs(records), tables(sweep, records), strict=True)):
        drawn = chart(sweep, records, output)
        svgs = "".join(f"<div>{svg}</div>" for svg in panel_svgs(drawn, f"chart{index}"))
        parts += [
            f"<h2>{html.escape(table.title)}</h2>",
            html_table(table),
            legend_html(drawn),
            f'<div class="panels" style="--across: {drawn.across}">{svgs}</div>',
        ]
    parts += ["<h2>How it was made</h2>", f"<pre>{html.escape(text)}</pre>"]
    for record in records:
        name = Run(record.loss, record.rate, record.seed).name
        versions = ", ".join(f"{of} {number}" for of, number in record.versions.items())
        wrong = (
            f"{record.wrong_labels} of {record.train_records} labels wrong" if record.rate else "clean labels"
        )
        about = f"{wrong}; {record.seconds:.0f} s; {versions}; SHA-256 of the net: {record.net_sha256}"
        parts.append(
            f'<details><summary>{html.escape(name)}</summary><p class="note">{html.escape(about)}</p>'
            f"<pre>{html.escape(record.solver)}</pre></details>"
        )
    return "\n".join([*parts, "</body></html>\n"])


def _about(sweep: Sweep, records: Sequence[Record]) -> str:
    shares = {r.rate: f"{r.rate:g}: {r.wrong_labels} of {r.train_records}" for r in records if r.rate}
    seeds = ", ".join(map(str, sweep.seeds))
    wrong = f"; wrong labels by rate: {', '.join(shares.values())}" if shares else ""
    return f"{sweep.train}, {sweep.noise} noise (seed {sweep.noise_seed}){wrong}. Seeds: {seeds}."
