"""Records grouped for tables, figures and claims: by setting, and within a setting by kind of run.

Runs of different size (iterations, images) or on different images are never grouped. The kind of a run is the
run without its seed and size: a Run as `experiments` lists it. A group holds the seeds of one kind.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from imae.files.errors import DataError
from imae.paper.experiments import LATER, PROTOCOLS, Run
from imae.paper.record import Point, Record

IMAGES, TEST_IMAGES = 50000, 10000


class Measure(NamedTuple):
    """A number read from a record, a share of images; `images` gives of how many, 0 if not of a fixed set."""

    label: str
    read: Callable[[Record], float | None]
    images: Callable[[Record], int]


def _tests(record: Record) -> int:
    return record.test_images


def _train(record: Record) -> int:
    return record.train_images


def _right(record: Record) -> int:
    return record.train_images - record.wrong_labels


def _highest_corrupted(record: Record) -> float:
    return max(point.corrupted for point in record.points)


MEASURES = {
    "best": Measure("best test accuracy", lambda r: r.best.test, _tests),
    "final": Measure("final test accuracy", lambda r: r.final.test, _tests),
    "fall": Measure("fall from best to final", lambda r: r.best.test - r.final.test, _tests),
    "corrupted": Measure("corrupted training labels", lambda r: r.final.corrupted, _train),
    "intact": Measure("intact training labels", lambda r: r.final.intact, _train),
    "short of highest": Measure(
        "final accuracy on the corrupted labels below its highest",
        lambda r: _highest_corrupted(r) - r.final.corrupted,
        _train,
    ),
    "noisy_subset": Measure("noisy subset", lambda r: r.final.noisy_subset, lambda r: r.wrong_labels),
    "clean_subset": Measure("clean subset", lambda r: r.final.clean_subset, _right),
    "hybrid": Measure("hybrid", lambda r: r.hybrid, lambda r: r.test_images + r.train_images),
    "certain": Measure("training labels with p > 1 - 1e-6", lambda r: r.final.certain, _train),
    "hopeless": Measure("training labels with p < 1e-6", lambda r: r.final.hopeless, _train),
    "validation": Measure("held out, labels as given", lambda r: r.final.validation, lambda r: 0),
    "validation_clean": Measure("held out, clean labels", lambda r: r.final.validation_clean, lambda r: 0),
}


@dataclass(frozen=True)
class Sample:
    """A measure of all seeds of a run, in per cent. images: the number it is a share of; 0 if not known."""

    values: tuple[float, ...]
    images: int = 0

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """The standard deviation between seeds; None for a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def error(self) -> float:
        """A rough standard error of the mean, in points: of a share of `images`, and between seeds."""
        share = min(max(self.mean / 100, 0.0), 1.0)
        of_images = 1e4 * share * (1 - share) / self.images if self.images else 0.0
        between = (self.spread or 0.0) ** 2 / len(self.values)
        return math.sqrt(of_images + between)


class Setting(NamedTuple):
    """The settings that must be equal in runs that are compared."""

    iterations: int
    images: int
    test_images: int
    data: str
    images_sha256: str = ""
    precision: str = "fp32"
    protocol: int = 2

    @property
    def is_scaled(self) -> bool:
        """Whether it is smaller than the paper's."""
        return (self.iterations, self.images, self.test_images) != (self.full, IMAGES, TEST_IMAGES)

    @property
    def full(self) -> int:
        """The iterations of the paper's runs, or of the authors' later ones."""
        return PROTOCOLS[self.protocol].iterations

    @property
    def words(self) -> str:
        """The size, and whether it is scaled down."""
        if not self.is_scaled:
            return f"Full size: {self.full:,} iterations, {IMAGES:,} training images"
        return (
            f"SCALED DOWN: {self.iterations:,} of {self.full:,} iterations, {self.images:,} of {IMAGES:,} "
            f"training images, {self.test_images:,} of {TEST_IMAGES:,} test images"
        )

    @property
    def label(self) -> str:
        """What tells it from others of the same size, in short."""
        return f"{self.precision}, {self.data}, protocol {self.protocol}"

    @property
    def choices(self) -> str:
        """The protocol and the precision, in a sentence."""
        own = PROTOCOLS[self.protocol]
        if self.protocol == LATER:
            return f"The authors' net, layers, batches of 32 classes x 8 images, and crops; {self.precision}"
        order = {"SHUFFLED": "shuffled for each epoch", "SEQUENTIAL": "in the order of the database"}
        padding = {"AFTER_MEAN": "the mean image subtracted, then padded", "BEFORE_MEAN": "padded with black"}
        divisor = {"SUM_OF_WEIGHTS": "the sum of its weights", "BATCH_SIZE": "the batch size"}
        return (
            f"Images {order[own.order]}, {padding[own.padding]}; IMAE divided by {divisor[own.normalizer]}, "
            f"epsilon {own.epsilon:g}; {self.precision}"
        )


def kind(run: Run) -> Run:
    """A run without its seed, size and precision."""
    return replace(
        run,
        seed=1,
        precision="fp32",
        iterations=PROTOCOLS[run.protocol].iterations,
        images=IMAGES,
        test_images=TEST_IMAGES,
    )


@dataclass(frozen=True)
class Results:
    """The records of one setting by kind of run, in the order of their seeds.

    A run that is not a variant is looked up with the choices of the setting's protocol, whatever its own
    protocol is. A variant is looked up only in settings of its own protocol.
    """

    setting: Setting
    runs: Mapping[Run, tuple[Record, ...]]
    digits: ClassVar[int] = 2

    def __contains__(self, run: Run) -> bool:
        return bool(self.seeds(run))

    def seeds(self, run: Run) -> tuple[Record, ...]:
        """The records of a run, one per seed."""
        if run.protocol != self.setting.protocol:
            if run.changes or LATER in (run.protocol, self.setting.protocol):
                return ()
            run = run.under(self.setting.protocol)
        return self.runs.get(run, ())

    def sample(self, run: object, measure: str) -> Sample | None:
        """A measure of all seeds of a run; None if there is no record, or none with this number.

        A key of numbers that are none of our runs (claims.Elsewhere) has no record.
        """
        records = self.seeds(run) if isinstance(run, Run) else ()
        _, read, images = MEASURES[measure]
        values = [100 * value for record in records if (value := read(record)) is not None]
        return Sample(tuple(values), images(records[0])) if values else None

    def mean_points(self, run: Run) -> list[list[Point]]:
        """The points of all seeds of a run, grouped by iteration; only iterations that all seeds have."""
        by_seed = [{point.iteration: point for point in record.points} for record in self.seeds(run)]
        common = set.intersection(*map(set, by_seed)) if by_seed else set()
        return [[points[iteration] for points in by_seed] for iteration in sorted(common)]

    def has(self, runs: Iterable[Run]) -> bool:
        """Whether there is a record of any of these runs."""
        return any(run in self for run in runs)

    def of(self, runs: Iterable[Run]) -> list[Record]:
        """The records of these runs."""
        return [record for run in runs for record in self.seeds(run)]

    @property
    def records(self) -> list[Record]:
        """All records."""
        return self.of(self.runs)

    @property
    def own_records(self) -> list[Record]:
        """The records of runs that are not variants."""
        return self.of(run for run in self.runs if not run.changes)


def is_full_size(results: Results) -> bool:
    """Whether these runs have the size of the paper's own, on CIFAR-10."""
    return not results.setting.is_scaled and results.setting.protocol != LATER


def gather(records: Sequence[Record]) -> list[Results]:
    """Group the complete records by setting, the largest first; DataError if a run has two records."""
    settings: dict[Setting, dict[Run, dict[int, Record]]] = {}
    for record in filter(lambda record: record.complete, records):
        run = record.run
        setting = Setting(
            *(run.iterations, run.images, run.test_images, record.images, record.images_sha256),
            *(run.precision, run.protocol),
        )
        seeds = settings.setdefault(setting, {}).setdefault(kind(run), {})
        if run.seed in seeds:
            raise DataError(f"there are two records of the run {run.name}; remove one of them")
        seeds[run.seed] = record
    groups = []
    for setting in sorted(settings, key=lambda s: (-s.iterations, -s.images, -s.test_images, *s[3:])):
        by_name = sorted(settings[setting].items(), key=lambda item: item[0].name)
        groups.append(
            Results(setting, {run: tuple(seeds[s] for s in sorted(seeds)) for run, seeds in by_name})
        )
    return groups


def provenance(results: Results, records: Sequence[Record]) -> list[str]:
    """Size, images, choices, seeds, devices and versions of these records, as sentences."""
    setting = results.setting
    sentences = [f"{setting.words}.", f"Images: {setting.data}.", f"{setting.choices}."]
    if shuffled := [record.run for record in records if record.shuffled_once]:
        runs = "; ".join(", ".join((run.label, noise_words(run), *run.changes)) for run in shuffled)
        which = f"{len(shuffled)} of the runs" if len(shuffled) < len(records) else "all runs"
        sentences.append(
            f"In {which} ({runs}) the images were shuffled once before, so the same seed makes other labels "
            "wrong than in CIFAR-10's own order."
        )
    if records:
        devices = sorted({record.device for record in records})
        versions = sorted({f"torch {r.versions['torch']}" for r in records if "torch" in r.versions})
        sentences.append(f"{len(records)} run{'s' * (len(records) > 1)}, {seed_words(records)}.")
        sentences.append(f"Device: {'; '.join(devices)}" + (f"; {', '.join(versions)}." if versions else "."))
    return sentences


def seed_words(records: Iterable[Record]) -> str:
    """The seeds of these records, as text."""
    seeds = sorted({record.run.seed for record in records})
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def net_words(net: str) -> str:
    """resnet20 as ResNet-20."""
    return net.replace("resnet", "ResNet-")


def noise_words(run: Run) -> str:
    """The labels that a run is trained on."""
    if run.noise == "none":
        return "clean"
    return f"human, {run.human}" if run.noise == "human" else f"{100 * run.rate:g} %"
