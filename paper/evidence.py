"""Claims that need no training of ours: about formulas, printed numbers, and the authors' own 48 runs.

The authors' logs (CIFAR-100, ResNet-44, symmetric noise to the other classes; see authors_logs.py) are real
trainings by the authors' own Caffe. So the sentences of the paper and of its later version are put to them as
they are put to our runs. Where they do not hold there, this says so. Sentences that the paper says of
CIFAR-10 are marked so in their source.

Each claim is checked in two sources: the numbers that the paper or its later version prints, and what lies
behind them: the logs, the formulas computed by imae.losses, or counts. One of the two may be absent. A third
source is ours, if there is one: runs on CIFAR-100, results on MARS and Clothing1M.

A claim counts for or against the paper if it is not ours and the printed numbers do not contradict it. Bounds
for sentences that print no numbers are our choice, and part of the claim's text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from imae.losses import example_weights as weights
from imae.paper import exact
from imae.paper.authors_logs import NOISE, authors_runs
from imae.paper.claims import (
    COMPETITIVE,
    HELD,
    MUCH_HIGHER,
    NO_DATA,
    NOT_HELD,
    OURS,
    SIGNIFICANT,
    Claim,
    Comparison,
    Elsewhere,
    Key,
    Printed,
    Quantity,
    Source,
    Verdict,
    above,
    growing,
    half_of,
    lead,
    measured,
)
from imae.paper.expected import (
    CIFAR100_NOISE,
    LATER_TABLE_5,
    LATER_TABLES_3_4,
    MARS_COUNTS,
    TABLE_3,
    TABLE_4,
    VARIANCES,
)
from imae.paper.experiments import RATES, Run, cifar100, training_command
from imae.paper.mars import COUNTED
from imae.paper.results import MEASURES, Results, Sample

LATER_TABLE_6_RATES = (0.4, 0.8)
MARGIN = 5.0  # table 3: IMAE is at least 9.7 above the others
ROUNDING = 0.0501  # a number printed with one decimal; and a little, for the arithmetic in float
BILLION = 1e9
CONTRIBUTES = 0.5  # of the largest weight: our choice
ALMOST_EQUAL = 0.9  # of the largest weight: our choice
CONTRIBUTING = (16.0, 8.0, 4.0, 2.0)  # the T that are compared by it
QUARTER = 25.0  # per cent of the examples: more are "a wide range", fewer "a quite small proportion"
POINT = 1.0
UNIFORM = "p uniform on [0, 1]"
GCE_ABOVE = ("sym 0.4", "sym 0.6")  # where DM's table 1 has GCE above IMAE
MUCH_WORSE = f"MAE works much worse than CCE ({MUCH_HIGHER:g} points or more, of the printed measure)"
SAID_OF_CIFAR10 = "said of CIFAR-10"
CIFAR100, MARS, CLOTHING, WEIGHTS = "CIFAR-100", "MARS", "Clothing1M", "weights"
LABELS, MARS_FILES = "labels", "MARS's files"
# Command lines that give our own numbers; what they read must be where the nets' files say.
COMMANDS = {
    CIFAR100: training_command("cifar100"),
    MARS: "imae train prototxt/models/mars/googlenet_bn_solver.prototxt && imae retrieve data/mars/info "
    "--images data/mars/bbox_test --model prototxt/models/mars/googlenet_bn.prototxt --weights "
    "snapshots/mars_googlenet_bn_imae_iter_50000.caffemodel --blob pool5 --loss IMAE --results mars.json && "
    "imae paper table3 --mars mars.json",
    CLOTHING: "imae train prototxt/models/clothing1m/resnet50_solver.prototxt && imae test --model "
    "prototxt/models/clothing1m/resnet50.prototxt --stage imae --weights "
    "snapshots/clothing1m_resnet50_imae_iter_312500.caffemodel --iterations 277",
    WEIGHTS: "imae paper figure1 && imae paper figure5 && imae paper table4",
    LABELS: "imae paper table2 --show && imae paper later-tables --show",
    MARS_FILES: "IMAE_MARS=data/mars/info pytest tests/paper/test_evidence.py",
}


@dataclass(frozen=True)
class Evidence:
    """A claim, what lies behind the printed numbers, and the command that gives ours.

    behind   the logs, the formulas or the counts; None where only printed numbers are at hand
    """

    claim: Claim
    behind: Printed | None
    of: str

    @property
    def printed(self) -> Verdict:
        """In the numbers that are printed."""
        return self.claim.in_paper()

    @property
    def checked(self) -> Verdict:
        """In the logs, or by the formulas or counts."""
        return Verdict(NO_DATA) if self.behind is None else self.claim.check(self.behind)

    @property
    def counts(self) -> bool:
        """Whether it tells for or against the paper: not ours, and not against the printed numbers."""
        return self.claim.counts

    def ours(
        self,
        results: Results | None = None,
        mars: Mapping[str, Mapping[str, float]] | None = None,
        clothing1m: Mapping[str, float] | None = None,
    ) -> Verdict:
        """In our own numbers.

        results      our runs on CIFAR-100
        mars         mAP and CMC-1 by loss, 0 to 1: results_files.mars_results
        clothing1m   test accuracies by loss, 0 to 1: results_files.clothing1m_results
        """
        source: Source | None = None
        if self.of == CIFAR100 and results is not None:
            source = OurCifar100(results)
        elif self.of == MARS and mars is not None:
            source = Printed(_of_mars(mars), 2)
        elif self.of == CLOTHING and clothing1m is not None:
            source = Printed(_on_clothing1m({loss: 100 * value for loss, value in clothing1m.items()}), 2)
        return Verdict(NO_DATA) if source is None else self.claim.check(source)

    @property
    def about(self) -> str:
        """The data and the noise, or what else it is about."""
        return self.claim.where if self.claim.where.startswith(self.of) else f"{self.of}, {self.claim.where}"

    @property
    def command(self) -> str:
        """What gives our own numbers."""
        return COMMANDS[self.of]


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _noise(kind: str, rate: float) -> str:
    return f"{kind} {rate:g}" if rate else "clean"


def _of_mars(results: Mapping[str, Mapping[str, float]]) -> dict[Key, Mapping[str, float]]:
    """Results on MARS, in per cent."""
    return {
        Elsewhere(MARS, loss): {metric: 100 * value for metric, value in metrics.items()}
        for loss, metrics in results.items()
    }


def _on_clothing1m(accuracies: Mapping[str, float]) -> dict[Key, Mapping[str, float]]:
    """Test accuracies on Clothing1M by loss, in per cent."""
    return {Elsewhere(CLOTHING, loss): {"test": value} for loss, value in accuracies.items()}


def _same(left: Quantity, right: Quantity) -> tuple[Comparison, ...]:
    """Two quantities are equal."""
    return Comparison(left, "≥", 0, right), Comparison(left, "≤", 0, right)


def _logged() -> dict[Key, Mapping[str, float]]:
    """Best, final and fall of the authors' logs, in per cent; how far the best is from the printed number."""
    numbers: dict[Key, Mapping[str, float]] = {}
    for run in authors_runs():
        best, final = 100 * run.curve.best, 100 * run.curve.final
        measures = {"best": best, "final": final, "fall": best - final}
        noise = _noise("sym", run.noise)
        if run.family in LATER_TABLES_3_4:
            measures["off"] = abs(best - LATER_TABLES_3_4[run.family][CIFAR100_NOISE.index(noise)])
        numbers[Elsewhere(CIFAR100, run.family, noise)] = measures
    return numbers


class OurCifar100:
    """Our own runs of the authors' later protocol, looked up by loss and noise."""

    def __init__(self, results: Results) -> None:
        self._results, self.digits = results, results.digits
        self._runs = {(run.loss, noise_of(run)): run for run in cifar100()}

    def sample(self, run: Key, measure: str) -> Sample | None:
        """A measure of the run of this loss and noise."""
        if not isinstance(run, Elsewhere) or run.of != CIFAR100 or measure not in MEASURES:
            return None
        own = self._runs.get((run.loss, run.noise))
        return None if own is None else self._results.sample(own, measure)


def noise_of(run: Run) -> str:
    """The labels of a run of ours as the authors' tables name them."""
    return _noise("asym" if run.noise.startswith("asymmetric") else "sym", run.rate)


def _printed_cifar100() -> dict[Key, Mapping[str, float]]:
    return {
        Elsewhere(CIFAR100, loss, noise): {"best": value}
        for loss, values in LATER_TABLES_3_4.items()
        for noise, value in zip(CIFAR100_NOISE, values, strict=True)
    }


def _printed_mars(table: Mapping[str, Mapping[str, float]]) -> dict[Key, Mapping[str, float]]:
    losses = dict.fromkeys(loss for values in table.values() for loss in values)
    return {
        Elsewhere(MARS, loss): {metric: values[loss] for metric, values in table.items() if loss in values}
        for loss in losses
    }


def _curves() -> dict[Key, Mapping[str, float]]:
    """What figures 1 and 5 show of the weights, computed; p is the probability of the annotated label."""
    curves = exact.figure_1() | {f"IMAE-{t}": curve for t, curve in exact.figure_5().items()}
    numbers: dict[Key, Mapping[str, float]] = {}
    for name, (p, w) in curves.items():
        weight, steps = _weight(name), w[1:] - w[:-1]
        variance = weights.variance(weight)
        measures = {
            "p of the largest": float(p[w.argmax()]),
            "largest rise": float(steps.max()),
            "ends above the least": float(max(w[0], w[-1]) - w.min()),
            "largest above least": float(w.max() - w.min()),
            "variance": variance,
        }
        t = float(name.removeprefix("IMAE-")) if name.startswith("IMAE-") else 0.0
        if t:
            measures["equation 26 off"] = BILLION * abs(exact.equation_26(t) / variance - 1)
        numbers[Elsewhere(WEIGHTS, name)] = measures
    return numbers


def _shares() -> dict[Key, Mapping[str, float]]:
    """The share of the examples, in per cent, whose weights are near the largest; only what is claimed."""
    wanted = {"MAE": ("almost equal", ALMOST_EQUAL)}
    wanted |= {f"IMAE-{t:g}": ("contribute", CONTRIBUTES) for t in CONTRIBUTING}
    return {
        Elsewhere(WEIGHTS, name): {what: 100 * exact.share_of_examples(_weight(name), least)}
        for name, (what, least) in wanted.items()
    }


def _weight(name: str) -> weights.Weight:
    """The weight of a loss that figure 1 or 5 shows."""
    if name.startswith("IMAE-"):
        t = float(name.removeprefix("IMAE-"))
        return lambda p, rest: weights.imae(p, rest, t)
    return {"CCE": weights.cce, "MAE": weights.mae}[name]


def _printed_weights() -> dict[Key, Mapping[str, float]]:
    numbers = {f"IMAE-{t:g}": float(variance) for t, variance in TABLE_4.items()}
    numbers["MAE"] = float(VARIANCES["MAE"])
    return {Elsewhere(WEIGHTS, name): {"variance": value} for name, value in numbers.items()}


def _weight_claims() -> list[tuple[Claim, Printed | None, str]]:
    """Figures 1 and 5, table 4, equation 26, section 4."""
    computed, printed, shares = Printed(_curves(), 3), Printed(_printed_weights(), 3), Printed(_shares())
    cce, mae, imae = (Elsewhere(WEIGHTS, name) for name in ("CCE", "MAE", "IMAE-8"))
    by_t = [Elsewhere(WEIGHTS, f"IMAE-{t:g}") for t in sorted(TABLE_4)]
    flat, curved = by_t[0], by_t[1:]
    of_largest = f"at least {_percent(CONTRIBUTES)} of the largest weight"
    middle = [
        Comparison(measured(loss, "p of the largest", f"{loss.label} at p ="), sign, 0.5)
        for loss, sign in product((mae, imae), ("≥", "≤"))
    ]
    ends = [
        Comparison(measured(loss, "ends above the least", f"{loss.label}: ends above its least by"), "≤", 0)
        for loss in (mae, imae)
    ]
    rows: list[tuple[str, str, tuple[str, ...], tuple[Comparison, ...], Printed | None]] = [
        (
            "CCE gives an example the more weight, the lower its probability is",
            "figure 1, section 4",
            ("figure1",),
            (Comparison(measured(cce, "largest rise", "CCE's largest rise from a p to the next"), "<", 0),),
            None,
        ),
        (
            "MAE and IMAE give the most weight in the middle, at p = 0.5",
            "figure 1, section 4",
            ("figure1",),
            tuple(middle),
            None,
        ),
        (
            "MAE and IMAE give the least weight at both ends, p = 0 and p = 1",
            "figure 1, section 4",
            ("figure1",),
            tuple(ends),
            None,
        ),
        (
            "IMAE-8 differentiates examples more than MAE: the variance of its weights is larger",
            "figure 1, section 4",
            ("figure1",),
            above(imae, (mae,), "variance"),
            printed,
        ),
        (
            "T controls the differentiation: the variance grows with T",
            "supplement 1, table 4",
            ("table4", "figure5"),
            growing([measured(loss, "variance") for loss in by_t]),
            printed,
        ),
        (
            "Equation 26 is the variance, integrated numerically, for every T > 0 of table 4 (off by at most "
            "1 part in a billion, the unit here, our choice; at T = 0 it is 0/0)",
            "supplement 1, equation 26",
            ("table4",),
            tuple(
                Comparison(measured(loss, "equation 26 off", f"{loss.label} off by"), "≤", 1)
                for loss in curved
            ),
            None,
        ),
        (
            "With every T > 0 the weight is largest in the middle, at p = 0.5",
            "supplement 1, figure 5",
            ("figure5",),
            tuple(
                Comparison(measured(loss, "p of the largest", f"{loss.label} at p ="), sign, 0.5)
                for loss, sign in product(curved, ("≥", "≤"))
            ),
            None,
        ),
        (
            "With T = 0 all examples have the same weight",
            "supplement 1, figure 5",
            ("figure5",),
            (Comparison(measured(flat, "largest above least", "largest above the least by"), "≤", 0),),
            None,
        ),
    ]
    of_shares: list[tuple[str, str, tuple[str, ...], tuple[Comparison, ...]]] = [
        (
            f"With MAE a wide range of examples contribute almost equally ({QUARTER:g} % of them or more "
            f"have at least {_percent(ALMOST_EQUAL)} of the largest weight; both bounds are our choice)",
            f"{OURS}, of section 4",
            ("figure1",),
            (Comparison(measured(mae, "almost equal"), "≥", QUARTER),),
        ),
        (
            f"With T = 16 only a quite small proportion of the examples can contribute ({QUARTER:g} % of "
            f"them or fewer have {of_largest}; both bounds are our choice)",
            f"{OURS}, of supplement 3.1",
            ("figure5", "figure7"),
            (Comparison(measured(by_t[-1], "contribute"), "≤", QUARTER),),
        ),
        (
            f"The proportion of the examples that contribute ({of_largest}, our choice) shrinks as T grows "
            "from 2 to 16",
            "supplement 3.1",
            ("figure5", "figure7"),
            growing([measured(Elsewhere(WEIGHTS, f"IMAE-{t:g}"), "contribute") for t in CONTRIBUTING]),
        ),
    ]
    found: list[tuple[Claim, Printed | None, str]] = []
    for text, source, shown, comparisons, in_print in rows:
        found.append((Claim(text, UNIFORM, source, shown, comparisons, in_print), computed, WEIGHTS))
    for text, source, shown, comparisons in of_shares:
        found.append((Claim(text, UNIFORM, source, shown, comparisons), shares, WEIGHTS))
    return found


def _of_labels() -> dict[Key, Mapping[str, float]]:
    """Shares of labels in per cent, as the two kinds of symmetric noise leave them on average."""
    numbers: dict[Key, Mapping[str, float]] = {
        Elsewhere(LABELS, "any", _percent(rate)): {
            "overlap": 100 * exact.overlap(rate),
            "printed": 100 * (1 - rate),
        }
        for rate in RATES
    }
    for rate in LATER_TABLE_6_RATES:
        numbers[Elsewhere(LABELS, "other", _percent(rate))] = {
            "right": 100 * (1 - rate),
            "each wrong": 100 * rate / (exact.CLASSES - 1),
        }
    return numbers


def _label_claims() -> list[tuple[Claim, Printed | None, str]]:
    """The paper's overlap rate; what the authors' page says of the majority."""
    computed = Printed(_of_labels())
    claims = []
    for rate in RATES:
        key = Elsewhere(LABELS, "any", _percent(rate))
        given, printed = measured(key, "overlap", "overlap"), measured(key, "printed", "1 - r")
        overlap = (
            "The overlap rate of the corrupted and the intact labels is 1 - r (within a point, our choice; "
            "any of the ten classes is drawn, the own one too, which gives 1 - 0.9 r)"
        )
        within = Comparison(given, "≤", POINT, printed), Comparison(given, "≥", -POINT, printed)
        shown = ("table2", "figure8") if rate == 0.5 else ("table2",)
        claims.append(Claim(overlap, f"r = {_percent(rate)}", "table 2, supplement 4", shown, within))
    keys = [Elsewhere(LABELS, "other", _percent(rate)) for rate in LATER_TABLE_6_RATES]
    right = [measured(key, "right", f"{key.noise} noise: right") for key in keys]
    wrong = [measured(key, "each wrong", f"each other class at {key.noise}") for key in keys]
    rows = (
        (
            "Up to 80 % noise the correct portion is the majority (more than half of the labels)",
            tuple(Comparison(portion, ">", 50) for portion in right),
        ),
        (
            "Up to 80 % noise the correct portion is larger than that of any other class",
            tuple(Comparison(a, ">", 0, b) for a, b in zip(right, wrong, strict=True)),
        ),
    )
    source, where = "authors' page, question 3", "noise to the nine other classes"
    claims += [Claim(text, where, source, ("later-tables",), comparisons) for text, comparisons in rows]
    return [(claim, computed, LABELS) for claim in claims]


def _mars_file_claims() -> list[tuple[Claim, Printed | None, str]]:
    """Section 5.2's counts: whether they add up, and whether the benchmark's files have them."""
    printed: dict[Key, Mapping[str, float]] = {
        Elsewhere(MARS_FILES, part): dict(counts) for part, counts in MARS_COUNTS.items()
    }
    counted: dict[Key, Mapping[str, float]] = {
        Elsewhere(MARS_FILES, part): counts | {f"{what} printed": MARS_COUNTS[part][what] for what in counts}
        for part, counts in COUNTED.items()
    }
    source, shown, claims = "section 5.2", ("table3",), []
    whole, *parts = (Elsewhere(MARS_FILES, part) for part in MARS_COUNTS)
    for what in MARS_COUNTS["all"]:
        together = Quantity("together", tuple((part, what) for part in parts), sum)
        adding = _same(together, measured(whole, what, "in all"))
        text = "The printed numbers for training and for testing add up to the printed number of all"
        claims.append(Claim(text, what, source, shown, adding, Printed(printed, 0)))
    for part in parts:
        rows = (
            ("The protocol's files have as many videos and images as printed", ("videos", "images")),
            (
                "The protocol's files have as many persons as printed (label 0, distractors, and -1, junk, "
                "are no persons; with them the files for testing have 636 labels)",
                ("persons",),
            ),
        )
        for text, kinds in rows:
            same = tuple(
                comparison
                for what in kinds
                for comparison in _same(
                    measured(part, what, what), measured(part, f"{what} printed", f"printed {what}")
                )
            )
            claims.append(Claim(text, part.loss, source, shown, same))
    behind = Printed(counted, 0)
    return [(claim, behind, MARS_FILES) for claim in claims]


def _mars_claims() -> list[tuple[Claim, Printed | None, str]]:
    """Table 3, section 5.2."""
    printed = Printed(_printed_mars(TABLE_3))
    cce, mae, gce, imae = (Elsewhere(MARS, loss) for loss in ("CCE", "MAE", "GCE", "IMAE"))
    claims: list[tuple[Claim, Printed | None, str]] = []
    for metric in TABLE_3:
        rows = (
            (
                f"IMAE is above CCE, MAE and GCE by a significant margin ({MARGIN:g} points or more)",
                "section 5.2, table 3",
                above(imae, (cce, mae, gce), metric, MARGIN),
            ),
            (MUCH_WORSE, "abstract; table 3", above(cce, (mae,), metric, MUCH_HIGHER)),
        )
        claims += [
            (Claim(text, f"MARS, {metric}", source, ("table3",), comparisons, printed), None, MARS)
            for text, source, comparisons in rows
        ]
    return claims


Row = tuple[str, str, str, tuple[Comparison, ...]]  # text, where, source, comparisons


def _cifar100_claims() -> list[tuple[Claim, Printed | None, str]]:
    """The later version's tables 3 and 4, and the paper's own sentences, on CIFAR-100."""
    logs, printed = Printed(_logged(), 2), Printed(_printed_cifar100())
    by_noise = {
        noise: {loss: Elsewhere(CIFAR100, loss, noise) for loss in LATER_TABLES_3_4}
        for noise in CIFAR100_NOISE
    }
    noisy = [_noise("sym", rate) for rate in NOISE if rate]
    rows = [row for noise, losses in by_noise.items() for row in _rows_of_noise(noise, losses)]
    rows += _rows_across([by_noise[noise] for noise in noisy])
    rows += _rows_of_kinds(by_noise)
    for loss in LATER_TABLES_3_4:
        same = tuple(
            Comparison(measured(by_noise[noise][loss], "off", f"{noise} off by"), "≤", ROUNDING)
            for noise in ("clean", *noisy)
        )
        rows.append(("The printed numbers are the best ones of the logs", loss, f"{OURS}, of the logs", same))
    return [
        (Claim(text, where, source, ("later-tables",), comparisons, printed), logs, CIFAR100)
        for text, where, source, comparisons in rows
    ]


def _rows_of_noise(noise: str, losses: Mapping[str, Elsewhere]) -> list[Row]:
    """Claims about one noise; the fall and the final accuracy are known where there are logs."""
    cce, mae, imae, gce = (losses[name] for name in ("CCE", "MAE", "IMAE", "GCE"))
    first, last = (gce, imae) if noise in GCE_ABOVE else (imae, gce)
    gce_row = (
        f"{first.label}'s best test accuracy is above {last.label}'s",
        noise,
        f"{OURS}, of DM's table 1",
        above(first, (last,), "best"),
    )
    if noise == "clean":
        source = f"section 5.1.1, {SAID_OF_CIFAR10}"
        competitive = f"IMAE is competitive with CCE on clean labels (at most {COMPETITIVE:g} point below)"
        significant = f"IMAE is significantly above MAE on clean labels ({SIGNIFICANT:g} point or more)"
        return [
            (MUCH_WORSE, noise, "abstract", above(cce, (mae,), "best", MUCH_HIGHER)),
            (competitive, noise, source, above(imae, (cce,), "best", -COMPETITIVE)),
            (significant, noise, source, above(imae, (mae,), "best", SIGNIFICANT)),
            gce_row,
        ]
    source = f"section 5.1.2, {SAID_OF_CIFAR10}"
    of_symmetric = "" if noise.startswith("sym") else ", symmetric noise"
    underfits = f"MAE underfits: its test accuracy is far below CCE's and IMAE's ({MUCH_HIGHER:g} points)"
    far_below = above(cce, (mae,), "best", MUCH_HIGHER) + above(imae, (mae,), "best", MUCH_HIGHER)
    later = "later version, tables 3 and 4"
    rows = [
        (underfits, noise, source + of_symmetric, far_below),
        ("IMAE's best test accuracy is above CCE's", noise, later, above(imae, (cce,), "best")),
        gce_row,
    ]
    if noise.startswith("sym"):
        falls = [measured(loss, "fall") for loss in (mae, imae)]
        smaller = "The fall from best to final is smaller for MAE and IMAE than for CCE"
        half = "The fall is significantly smaller for MAE and IMAE than for CCE (at most half of it)"
        rows += [
            (
                "IMAE's final test accuracy is above CCE's and MAE's",
                noise,
                f"introduction, {SAID_OF_CIFAR10}",
                above(imae, (cce, mae), "final"),
            ),
            (
                smaller,
                noise,
                source,
                tuple(Comparison(measured(cce, "fall"), ">", 0, fall) for fall in falls),
            ),
            (half, noise, source, tuple(Comparison(fall, "≤", 0, half_of(cce, "fall")) for fall in falls)),
        ]
    return rows


def _rows_across(by_noise: Sequence[Mapping[str, Elsewhere]]) -> list[Row]:
    """Claims about what changes as the rate of symmetric noise grows."""
    trios = [(losses["CCE"], losses["MAE"], losses["IMAE"]) for losses in by_noise]
    falls = [measured(cce, "fall", cce.noise) for cce, _, _ in trios]
    leads = [lead(imae, (cce, mae), "final") for cce, mae, imae in trios]
    where = "sym 0.2 to 0.6"
    return [
        (
            "CCE's fall grows with the noise rate",
            where,
            f"section 5.1.2, {SAID_OF_CIFAR10}",
            growing(falls),
        ),
        (
            "IMAE's lead in final test accuracy grows with the noise rate",
            where,
            f"introduction, {SAID_OF_CIFAR10}",
            growing(leads),
        ),
    ]


def _rows_of_kinds(by_noise: Mapping[str, Mapping[str, Elsewhere]]) -> list[Row]:
    """Symmetric beside asymmetric noise, at the two rates that both have."""
    text = "Uniform noise is more challenging than asymmetric noise of the same rate: less best test accuracy"
    rows: list[Row] = []
    for rate, loss in product(("0.2", "0.4"), LATER_TABLES_3_4):
        uniform, asymmetric = (
            measured(by_noise[f"{kind} {rate}"][loss], "best", kind) for kind in ("sym", "asym")
        )
        harder = (Comparison(uniform, "<", 0, asymmetric),)
        rows.append((text, f"rate {rate}, {loss}", "authors' page, question 2", harder))
    return rows


def _clothing_claims() -> list[tuple[Claim, Printed | None, str]]:
    """The later version's table 5."""
    printed = Printed(_on_clothing1m(LATER_TABLE_5))
    losses = {loss: Elsewhere(CLOTHING, loss) for loss in LATER_TABLE_5}
    cce, mae, imae = losses["CCE"], losses["MAE"], losses.pop("IMAE")
    rows = (
        (
            "IMAE's test accuracy is above all others'",
            "later version, table 5",
            above(imae, losses.values(), "test"),
        ),
        (MUCH_WORSE, "abstract; later version, table 5", above(cce, (mae,), "test", MUCH_HIGHER)),
    )
    return [
        (Claim(text, "Clothing1M", source, ("later-tables",), comparisons, printed), None, CLOTHING)
        for text, source, comparisons in rows
    ]


EVIDENCE = tuple(
    Evidence(claim, behind, of)
    for claim, behind, of in (
        *(*_weight_claims(), *_label_claims(), *_mars_file_claims(), *_mars_claims()),
        *(*_cifar100_claims(), *_clothing_claims()),
    )
)


def count_evidence(evidence: Iterable[Evidence], of: str) -> dict[str, int]:
    """How many of the claims about `of` that count hold in the logs or by formulas, and how many do not."""
    verdicts = [item.checked.verdict for item in evidence if item.of == of and item.counts]
    return {verdict: verdicts.count(verdict) for verdict in (HELD, NOT_HELD)}
