"""Claims that need no training of ours: about formulas, printed numbers, and the authors' own 48 runs.

The authors' logs (CIFAR-100, ResNet-44, symmetric noise to the other classes; see authors_logs.py) are real
trainings by the authors' own Caffe. So the sentences of the paper and of its later version are put to them as
they are put to our runs. Where they do not hold there, this says so.

Each claim is checked in two sources: the numbers that the paper or its later version prints, and what lies
behind them: the logs, or the formulas computed by imae.losses. One of the two may be absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

from imae.losses import example_weights as weights
from imae.paper.authors_logs import NOISE, authors_runs
from imae.paper.claims import (
    COMPETITIVE,
    HELD,
    MUCH_HIGHER,
    NO_DATA,
    NOT_HELD,
    SIGNIFICANT,
    Claim,
    Comparison,
    Elsewhere,
    Key,
    Printed,
    Verdict,
    above,
    growing,
    half_of,
    lead,
    measured,
)
from imae.paper.exact import figure_1
from imae.paper.expected import (
    CIFAR100_NOISE,
    LATER_TABLE_5,
    LATER_TABLES_3_4,
    TABLE_3,
    TABLE_4,
    VARIANCES,
)
from imae.paper.experiments import Run, cifar100
from imae.paper.results import MEASURES, Results, Sample

MARGIN = 5.0  # table 3: IMAE is at least 9.7 above the others
ROUNDING = 0.0501  # a number printed with one decimal; and a little, for the arithmetic in float
CIFAR100, MARS, CLOTHING, WEIGHTS = "CIFAR-100", "MARS", "Clothing1M", "weights"
COMMANDS = {
    CIFAR100: "imae paper cifar100 --cifar100 PATH",
    MARS: "imae train prototxt/models/mars's solver; imae retrieve; imae paper table3 --mars JSON",
    CLOTHING: "imae train prototxt/models/clothing1m's solver",
    WEIGHTS: "imae paper figure1, imae paper table4",
}


@dataclass(frozen=True)
class Evidence:
    """A claim, what lies behind the printed numbers, and the command that gives ours.

    behind   the logs or the formulas; None where only printed numbers are at hand
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
        """In the logs, or by the formulas."""
        return Verdict(NO_DATA) if self.behind is None else self.claim.check(self.behind)

    def ours(self, results: Results) -> Verdict:
        """In our own runs on CIFAR-100."""
        return self.claim.check(OurCifar100(results))

    @property
    def about(self) -> str:
        """The data and the noise, or what else it is about."""
        return self.claim.where if self.claim.where.startswith(self.of) else f"{self.of}, {self.claim.where}"

    @property
    def command(self) -> str:
        """What gives our own numbers."""
        return COMMANDS[self.of]


def _noise(kind: str, rate: float) -> str:
    return f"{kind} {rate:g}" if rate else "clean"


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
    numbers: dict[Key, Mapping[str, float]] = {}
    for name, (p, w) in figure_1().items():
        steps = w[1:] - w[:-1]
        numbers[Elsewhere(WEIGHTS, name)] = {
            "p of the largest": float(p[w.argmax()]),
            "largest rise": float(steps.max()),
            "ends above the least": float(max(w[0], w[-1]) - w.min()),
            "variance": weights.variance(_weight(name)),
        }
    for t in TABLE_4:
        numbers.setdefault(
            Elsewhere(WEIGHTS, f"IMAE-{t:g}"), {"variance": weights.variance(_weight(f"IMAE-{t:g}"))}
        )
    return numbers


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
    """Figures 1 and 5, table 4, section 4."""
    computed, printed = Printed(_curves(), 3), Printed(_printed_weights(), 3)
    cce, mae, imae = (Elsewhere(WEIGHTS, name) for name in ("CCE", "MAE", "IMAE-8"))
    by_t = [Elsewhere(WEIGHTS, f"IMAE-{t:g}") for t in sorted(TABLE_4)]
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
    ]
    return [
        (Claim(text, "p uniform on [0, 1]", source, shown, comparisons, source_of), computed, WEIGHTS)
        for text, source, shown, comparisons, source_of in rows
    ]


def _mars_claims() -> list[tuple[Claim, Printed | None, str]]:
    """Table 3, section 5.2."""
    printed = Printed(_printed_mars(TABLE_3))
    cce, mae, gce, imae = (Elsewhere(MARS, loss) for loss in ("CCE", "MAE", "GCE", "IMAE"))
    claims: list[tuple[Claim, Printed | None, str]] = []
    for metric in TABLE_3:
        rows = (
            (
                f"IMAE is above CCE, MAE and GCE by a significant margin ({MARGIN:g} points or more)",
                above(imae, (cce, mae, gce), metric, MARGIN),
            ),
            (
                f"MAE works much worse than CCE ({MUCH_HIGHER:g} points or more)",
                above(cce, (mae,), metric, MUCH_HIGHER),
            ),
        )
        claims += [
            (
                Claim(text, f"MARS, {metric}", "section 5.2, table 3", ("table3",), comparisons, printed),
                None,
                MARS,
            )
            for text, comparisons in rows
        ]
    return claims


def _cifar100_claims() -> list[tuple[Claim, Printed | None, str]]:
    """The later version's tables 3 and 4, and the paper's own sentences, on CIFAR-100."""
    logs, printed = Printed(_logged(), 2), Printed(_printed_cifar100())
    by_noise = {
        noise: {loss: Elsewhere(CIFAR100, loss, noise) for loss in LATER_TABLES_3_4}
        for noise in CIFAR100_NOISE
    }
    noisy = [_noise("sym", rate) for rate in NOISE if rate]
    rows: list[tuple[str, str, str, tuple[Comparison, ...]]] = []
    for noise, losses in by_noise.items():
        cce, mae, imae, gce = (losses[name] for name in ("CCE", "MAE", "IMAE", "GCE"))
        underfits = f"MAE underfits: its test accuracy is far below CCE's and IMAE's ({MUCH_HIGHER:g} points)"
        far_below = above(cce, (mae,), "best", MUCH_HIGHER) + above(imae, (mae,), "best", MUCH_HIGHER)
        rows.append((underfits, noise, "section 5.1.2", far_below))
        if noise == "clean":
            competitive = (
                f"IMAE is competitive with CCE on clean labels (at most {COMPETITIVE:g} point below)"
            )
            rows.append((competitive, noise, "section 5.1.1", above(imae, (cce,), "best", -COMPETITIVE)))
            significant = f"IMAE is significantly above MAE on clean labels ({SIGNIFICANT:g} point or more)"
            rows.append((significant, noise, "section 5.1.1", above(imae, (mae,), "best", SIGNIFICANT)))
        else:
            later = "later version, tables 3 and 4"
            rows.append(
                ("IMAE's best test accuracy is above CCE's", noise, later, above(imae, (cce,), "best"))
            )
        rows.append(
            ("IMAE's best test accuracy is above GCE's", noise, "DM, table 1", above(imae, (gce,), "best"))
        )
        if noise in noisy:
            final = "IMAE's final test accuracy is above CCE's and MAE's"
            rows.append((final, noise, "introduction", above(imae, (cce, mae), "final")))
            smaller = "The fall from best to final is smaller for MAE and IMAE than for CCE"
            fall = measured(cce, "fall")
            rows.append(
                (
                    smaller,
                    noise,
                    "section 5.1.2",
                    tuple(Comparison(fall, ">", 0, measured(loss, "fall")) for loss in (mae, imae)),
                )
            )
            half = "The fall is significantly smaller for MAE and IMAE than for CCE (at most half of it)"
            rows.append(
                (
                    half,
                    noise,
                    "section 5.1.2",
                    tuple(
                        Comparison(measured(loss, "fall"), "≤", 0, half_of(cce, "fall"))
                        for loss in (mae, imae)
                    ),
                )
            )
    cce_by_noise = [by_noise[noise]["CCE"] for noise in noisy]
    falls = [measured(run, "fall", run.noise) for run in cce_by_noise]
    rows.append(("CCE's fall grows with the noise rate", "sym 0.2 to 0.6", "section 5.1.2", growing(falls)))
    leads = [lead(by_noise[noise]["IMAE"], (by_noise[noise]["CCE"],), "best") for noise in noisy]
    rows.append(
        (
            "IMAE's lead over CCE grows with the noise rate",
            "sym 0.2 to 0.6",
            "introduction",
            growing(leads),
        )
    )
    for loss in LATER_TABLES_3_4:
        same = tuple(
            Comparison(measured(by_noise[noise][loss], "off", f"{noise} off by"), "≤", ROUNDING)
            for noise in ("clean", *noisy)
        )
        rows.append(
            ("The printed numbers are the best ones of the logs", loss, "later version, tables 3 and 4", same)
        )
    return [
        (Claim(text, where, source, ("later-tables",), comparisons, printed), logs, CIFAR100)
        for text, where, source, comparisons in rows
    ]


def _clothing_claims() -> list[tuple[Claim, Printed | None, str]]:
    """The later version's table 5."""
    numbers: dict[Key, Mapping[str, float]] = {
        Elsewhere(CLOTHING, loss): {"test": value} for loss, value in LATER_TABLE_5.items()
    }
    printed = Printed(numbers)
    losses = {loss: Elsewhere(CLOTHING, loss) for loss in LATER_TABLE_5}
    imae, mae = losses.pop("IMAE"), losses.pop("MAE")
    rest = list(losses.values())
    rows = (
        ("IMAE's test accuracy is above all others'", above(imae, (*rest, mae), "test")),
        (
            f"MAE works much worse than all others ({MUCH_HIGHER:g} points or more)",
            tuple(c for other in (*rest, imae) for c in above(other, (mae,), "test", MUCH_HIGHER)),
        ),
    )
    return [
        (
            Claim(text, "Clothing1M", "later version, table 5", ("later-tables",), comparisons, printed),
            None,
            CLOTHING,
        )
        for text, comparisons in rows
    ]


EVIDENCE = tuple(
    Evidence(claim, behind, of)
    for claim, behind, of in (*_weight_claims(), *_mars_claims(), *_cifar100_claims(), *_clothing_claims())
)


def count_evidence(evidence: Iterable[Evidence], of: str) -> dict[str, int]:
    """How many of the claims about `of` hold in the logs or formulas, and how many do not."""
    verdicts = [item.checked.verdict for item in evidence if item.of == of]
    return {verdict: verdicts.count(verdict) for verdict in (HELD, NOT_HELD)}
