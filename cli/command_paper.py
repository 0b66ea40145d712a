"""`imae paper`: reproduce the paper's tables and figures.

    imae paper table4
    imae paper table2 --cifar10 cifar-10-binary.tar.gz --gpu 0 --jobs 4
    imae paper table2 --cifar10 cifar10.tar.xz --scale 640:1000:4000 --only resnet20
    imae paper cifar100 --cifar100 cifar-100-binary.tar.gz --only exclusive40
    imae paper figure4 --show --output figure4.svg
    imae paper later-tables --log cifar100.log --noise 0.4 --loss IMAE-8
    imae paper report --output report.html --results paper/RESULTS.md --readme README.md
    imae paper net resnet20_cce_clean_seed1_640x1000

Trains the runs that have no record yet, then prints the table, or draws the figure, from the records; --show
trains nothing. --scale makes runs of fewer iterations on fewer images, --precision bf16 runs in lower
precision; both have records and tables of their own, which state it. A grid that was stopped continues with
the same command, also from a copy of --work on another machine. `net` prints the train_val net of a record.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from imae.cli.device_options import (
    add_gpu_option,
    add_launch_options,
    add_precision_option,
    add_threads_option,
    chosen_compiled,
    chosen_recorder,
    requested_gpu,
)
from imae.cli.output_files import check_output_files
from imae.files.errors import ImaeError, printable
from imae.paper.data import Cifar10, Cifar100, Sources, make_folder
from imae.paper.experiments import GRIDS, Run, Scale, runs
from imae.paper.grid import run_folder, train_all
from imae.paper.record import RECORDS, Record, read_record, read_records

WITHOUT_TRAINING = ("table3", "table4", "figure1", "figure5", "report")
OUTPUT = "data/paper"
# What each name makes. Those of GRIDS get the number of their runs, too.
MAKES = {
    "table1": "clean labels: ResNet-20, 32 and 56 with CCE, MAE and IMAE",
    "table2": "20, 50 and 80 % wrong labels: ResNet-20 and 32",
    "table3": "video retrieval on MARS; ours from --mars JSON",
    "table4": "the variance of IMAE's weights for each T, from the formulas",
    "figure1": "the weight of an example by its p, for each loss, from the formulas",
    "figure3": "accuracy on the corrupted training labels, of table2's runs",
    "figure4": "test accuracy while training, of table2's runs",
    "figure5": "IMAE's weights for each T, from the formulas",
    "figure6": "IMAE with each T, clean and 50 % wrong labels: test accuracy",
    "figure7": "the same on the training set, of figure6's runs",
    "figure8": "T = 16, 8 and 4 on the intact labels, of figure6's runs",
    "choose-t": "T chosen on a held-out fifth of the training images",
    "human-noise": "CIFAR-10N, labels given by people; needs --human-labels NPZ as well",
    "later-tables": "the paper's later version: its table 6, and the authors' logs; --show trains nothing",
    "cifar100": "the authors' later runs; needs --cifar100 PATH instead of --cifar10",
    "suspects": "one thing changed at a time, to find out why a claim does not hold",
    "arithmetic": "IMAE's epsilon and normaliser, two by two",
    "all": "all grids that the given images serve, then the report",
    "report": "one HTML page of all records; --results, --readme: the same for a clone",
    "net": "the train_val net of a record: imae paper net resnet20_cce_clean_seed1_640x1000",
    "run": "for the grids' own use: one run, by --run JSON",
}
NEEDS = """
Without a number of runs nothing is trained: seconds. The others train the runs that have no record yet; they
need CIFAR-10 (--cifar10 PATH). A run has 64,000 iterations (cifar100: 30,000): with ResNet-20 on a CPU with 2
cores about two days (8,000 took 5 to 6.5 hours); on a GPU nobody has measured it. A run of
--scale 640:1000:4000 took 7 to 36 minutes on one core. The same command goes on with runs that were stopped.
--dry-run lists the runs.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _names()
    parser.add_argument(
        "what", choices=[*GRIDS, *WITHOUT_TRAINING, "all", "run", "net"], metavar="WHAT", help="see below"
    )
    parser.add_argument(
        "record", nargs="?", default="", help="for net: a record's file, or the name of a run in --records"
    )
    parser.add_argument("--cifar10", default="", metavar="PATH", help="CIFAR-10: archive or folder")
    parser.add_argument(
        "--cifar100", default="", metavar="PATH", help="for cifar100: CIFAR-100, archive or folder"
    )
    parser.add_argument("--human-labels", default="", metavar="NPZ", help="labels of CIFAR-10N")
    parser.add_argument(
        "--within-class",
        default="",
        metavar="NPZ",
        help="with --human-labels, for images whose names are not in CIFAR-10's order: see convert-folder",
    )
    parser.add_argument(
        "--scale",
        default="",
        metavar="I:N[:M]",
        help="I iterations on N training images, tested on M images, for a machine without a GPU",
    )
    parser.add_argument("--seeds", default="1", metavar="S[,S]", help="a run for each seed (1)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="WORD", help="only runs with this in their names"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (1)")
    add_gpu_option(parser)
    add_launch_options(parser)
    add_precision_option(parser)
    add_threads_option(parser, "of each run, on the CPU")
    parser.add_argument(
        "--work", default="data/paper", metavar="DIR", help="for LMDBs, snapshots, logs (data/paper)"
    )
    parser.add_argument("--records", default=str(RECORDS), metavar="DIR", help="of finished runs")
    parser.add_argument("--show", action="store_true", help="train nothing; show the existing records")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help=f"the figure or the page to write ({OUTPUT}/NAME.png, {OUTPUT}/report.html)",
    )
    parser.add_argument("--results", metavar="FILE", help="for report: the tables as a Markdown page")
    parser.add_argument("--readme", metavar="FILE", help="for report: a README whose lines are updated")
    parser.add_argument(
        "--mars",
        metavar="JSON",
        help="for table3 and report --output: results on MARS, of imae retrieve --results",
    )
    parser.add_argument(
        "--clothing1m", metavar="JSON", help="for later-tables and report --output: accuracies on Clothing1M"
    )
    parser.add_argument("--log", metavar="FILE", help="for later-tables: a training log on CIFAR-100")
    parser.add_argument("--noise", type=float, metavar="R", help="for --log: its noise rate")
    parser.add_argument("--loss", metavar="NAME", help="for --log: its loss, as the authors' logs name it")
    parser.add_argument("--dry-run", action="store_true", help="list the runs, train none")
    parser.add_argument("--run", dest="run_json", metavar="JSON", help="for `run`: the fields of one run")


def run(args: argparse.Namespace) -> None:
    """Train the missing runs, then show the results."""
    records = Path(args.records)
    if args.record and args.what != "net":
        raise ImaeError(f"imae paper {args.what} takes no record; got {args.record!r}")
    if args.what == "net":
        _print_net(args.record, records)
        return
    if args.what == "run":
        _train_one(args, records)
        return
    work = Path(args.work)
    images = Sources(
        Cifar10(work, args.cifar10, args.human_labels, args.within_class), Cifar100(work, args.cifar100)
    )
    # Of all the grids, CIFAR-100's needs images of its own.
    every = [name for name in GRIDS if name != "cifar100" or args.cifar100]
    names = every if args.what == "all" else [args.what] if args.what in GRIDS else []
    scale = Scale.parse(args.scale) if args.scale else Scale()
    wanted = runs(names, _seeds(args.seeds), scale, args.only, args.precision)
    if args.only and names and not wanted:
        raise ImaeError(f"no run of {args.what} has one of these words in its name: {', '.join(args.only)}")
    if args.dry_run:
        print("\n".join(run.name for run in wanted))
        return
    if args.jobs < 1:
        raise ImaeError(f"--jobs must be at least 1, got {args.jobs}")
    if wanted and not args.show and args.log is None:
        _train(args, wanted, images, records)
    finished = read_records(records)
    if args.what in ("report", "all"):
        _report(args, finished)
    else:
        _show(args, finished)


def _names() -> str:
    """What each name makes, in lines of the help."""
    lines = []
    for name, text in MAKES.items():
        count = f"{len(GRIDS[name]())} runs" if name in GRIDS else ""
        lines.append(f"  {name:13}{count:>7}  {text}")
    return "\n".join(["WHAT:", *lines]) + "\n" + NEEDS


def _print_net(wanted: str, records: Path) -> None:
    """Print the train_val net of a record; a comment on top tells how it differs from the run's own file."""
    from imae.paper.recorded_net import recorded_net

    path = Path(wanted) if wanted.endswith(".json") else records / f"{wanted}.json"
    if not wanted or not path.exists():
        raise ImaeError(
            f"imae paper net needs a record: its file, or the name of a run that has one in '{records}'; "
            f"got {wanted!r}"
        )
    record = read_record(path)
    net = recorded_net(record)
    if net.note:
        print("#", printable(f"{record.run.name}: {net.note}."))
    sys.stdout.write(net.text)


def _train(args: argparse.Namespace, wanted: list[Run], images: Sources, records: Path) -> None:
    from imae.net.device import choose_device

    threads, options = args.threads, []
    device = choose_device(requested_gpu(args.gpu))
    if chosen_recorder(args, device):
        options.append("--cuda-graph")
    if chosen_compiled(args, device):
        options.append("--compile")
    if args.gpu is not None:
        options += ["--gpu", args.gpu]
    elif threads is None:
        threads = max(1, (os.cpu_count() or 1) // args.jobs)
    options += ["--threads", str(threads)] if threads is not None else []
    train_all(wanted, images, records, args.jobs, options)


def _show(args: argparse.Namespace, records: list[Record]) -> None:
    """Print the tables of this name, and draw its figure."""
    from imae.paper import figures, tables

    if args.what in tables.NAMES:
        tables.print_table(
            args.what, records, args.mars, args.log, args.noise, args.loss, clothing1m=args.clothing1m
        )
    if args.what in figures.NAMES and (args.output or args.what.startswith("figure")):
        path = args.output or _default_output(f"{args.what}.png")
        figures.draw(args.what, records, path, log=args.log, noise=args.noise, loss=args.loss)
        print(f"wrote {path}")


def _report(args: argparse.Namespace, records: list[Record]) -> None:
    from imae.paper.readme import update_readme
    from imae.paper.report import write_report
    from imae.paper.results_page import figure_beside, update_results_page

    path = args.output or _default_output("report.html")
    outputs = {"--output": path, "--results": args.results, "--readme": args.readme}
    if args.results:
        outputs["the figure beside --results"] = str(figure_beside(args.results))
    check_output_files(outputs, [args.mars, args.clothing1m])
    write_report(records, path, args.mars, args.clothing1m)
    print(f"wrote {path}")
    if args.results:
        for written in update_results_page(args.results, records):
            print(f"wrote {written}")
    if args.readme and update_readme(args.readme, records):
        print(f"renewed the lines in {args.readme}")


def _default_output(name: str) -> Path:
    Path(OUTPUT).mkdir(parents=True, exist_ok=True)
    return Path(OUTPUT, name)


def _train_one(args: argparse.Namespace, records: Path) -> None:
    """Train a run inside --work, so that its prototxts hold no absolute paths."""
    from imae.net.device import choose_device, keep_freed_memory, set_threads
    from imae.paper.training import train

    try:
        wanted = Run(**json.loads(args.run_json or "null"))
    except (ImaeError, ValueError, TypeError) as error:
        raise ImaeError(
            f"--run must be the fields of a run as JSON, got {args.run_json!r}: {error}"
        ) from error
    set_threads(args.threads)
    keep_freed_memory()
    device = choose_device(requested_gpu(args.gpu))
    records = records.absolute()
    paths = (args.cifar10, args.human_labels, args.within_class)
    sources = [os.path.abspath(path) if path else "" for path in paths]  # before the folder changes
    cifar100 = os.path.abspath(args.cifar100) if args.cifar100 else ""
    make_folder(args.work)
    os.chdir(args.work)
    train(
        wanted,
        Sources(Cifar10(Path(), *sources), Cifar100(Path(), cifar100)).images(wanted),
        run_folder(Path(), wanted.name),
        records,
        device,
        chosen_recorder(args, device),
        chosen_compiled(args, device),
    )


def _seeds(text: str) -> list[int]:
    seeds = text.split(",")
    if not all(seed.isdecimal() for seed in seeds):
        raise ImaeError(f"--seeds must be whole numbers with commas between, got {text!r}")
    return [int(seed) for seed in dict.fromkeys(seeds)]
