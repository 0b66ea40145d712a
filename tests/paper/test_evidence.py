"""The claims that need no training of ours, checked by numbers worked out by hand from the authors' logs."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mars_protocol import mars_folder
from tolerances import tolerance

import imae
from imae.cli.main import make_parser
from imae.converters.corrupt_labels import symmetric
from imae.files.errors import DataError
from imae.paper import evidence, exact, expected, mars, report, tables
from imae.paper.authors_logs import NOISE, authors_runs
from imae.paper.claims import CLAIMS, HELD, NO_DATA, NOT_HELD, Claim, Comparison, Elsewhere, Printed, measured
from imae.paper.evidence import CIFAR100, EVIDENCE, MARS, UNIFORM, WEIGHTS, Evidence
from imae.paper.results_files import clothing1m_results
from imae.paper.retrieval import Tracklets


def one(text: str, where: str) -> Evidence:
    (found,) = (e for e in EVIDENCE if e.claim.text.startswith(text) and e.claim.where == where)
    return found


def test_the_authors_runs_against_the_papers_sentences() -> None:
    # Best / final of the logs. 0.2: CCE 60.42 / 58.80, IMAE 63.40 / 62.06. 0.4: 53.15 / 50.81, 54.68 / 52.99.
    # 0.6: 42.10 / 38.69, 43.91 / 41.67. GCE 62.38, 58.64, 50.67 (best). MAE at most 8.24.
    assert one("CCE's fall grows", "sym 0.2 to 0.6").checked == (
        HELD,
        "sym 0.2 1.62, sym 0.4 2.34, sym 0.6 3.41",
        False,
    )
    for rate in NOISE[1:]:
        assert (
            one("IMAE's final test accuracy is above CCE's and MAE's", f"sym {rate:g}").checked.verdict
            == HELD
        )
        assert one("IMAE's best test accuracy is above CCE's", f"sym {rate:g}").checked.verdict == HELD
        assert one("MAE underfits", f"sym {rate:g}").checked.verdict == HELD
        assert one("The fall is significantly smaller", f"sym {rate:g}").checked.verdict == NOT_HELD
    assert one("IMAE's best test accuracy is above GCE's", "sym 0.2").checked.verdict == HELD
    gce = one("GCE's best test accuracy is above IMAE's", "sym 0.4")
    assert gce.checked == gce.checked._replace(verdict=HELD, numbers="GCE 58.64, IMAE 54.68")
    # The introduction's sentence about CIFAR-10 does not hold on CIFAR-100.
    lead = one("IMAE's lead in final test accuracy grows", "sym 0.2 to 0.6")
    assert (lead.checked.verdict, lead.printed.verdict) == (NOT_HELD, NO_DATA)
    assert lead.checked.numbers == "sym 0.2 3.26, sym 0.4 2.18, sym 0.6 2.98"
    assert lead.counts and lead.claim.source == "introduction, said of CIFAR-10"


def test_gce_and_imae_are_compared_in_the_sense_of_the_printed_numbers() -> None:
    compared = {e.claim.where: e for e in EVIDENCE if e.claim.source.endswith("DM's table 1")}
    assert not any(e.counts for e in compared.values())
    assert set(compared) == set(expected.CIFAR100_NOISE)
    assert {e.printed.verdict for e in compared.values()} == {HELD}
    assert {where for where, e in compared.items() if e.claim.text.startswith("GCE's")} == {
        "sym 0.4",
        "sym 0.6",
    }


def test_sentences_about_cifar10_say_so_where_they_are_put_to_cifar100() -> None:
    sections = [e.claim.source for e in EVIDENCE if e.of == CIFAR100]
    said = [source for source in sections if source.startswith(("section", "introduction"))]
    assert len(said) == 19 and all("said of CIFAR-10" in source for source in said)
    asym = one("MAE underfits", "asym 0.3").claim.source
    assert asym == "section 5.1.2, said of CIFAR-10, symmetric noise"


def test_the_two_printed_numbers_that_are_not_the_best_of_their_logs() -> None:
    found = [e for e in EVIDENCE if e.claim.text.startswith("The printed numbers are the best")]
    assert all(e.claim.source == "ours, of the logs" and not e.counts for e in found)
    same = {e.claim.where: e.checked.verdict for e in found}
    assert same == {"CCE": NOT_HELD, "GCE": NOT_HELD, "MAE": HELD, "IMAE": HELD, "DM, λ = 0.5": HELD}


def test_formulas_and_printed_variances() -> None:
    fallen = [e.claim.text for e in EVIDENCE if e.of == WEIGHTS and e.checked.verdict != HELD]
    assert [text[:24] for text in fallen] == ["With T = 16 only a quite"]
    variance = one("IMAE-8 differentiates", UNIFORM)
    assert (variance.printed.numbers, variance.checked.numbers) == (
        "IMAE-8 4.546, MAE 0.090",
        "IMAE-8 4.546, MAE 0.089",
    )


def test_equation_26_is_the_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    assert one("Equation 26", UNIFORM).checked.verdict == HELD
    for t, printed in expected.TABLE_4.items():
        assert t == 0 or f"{exact.equation_26(t):.3f}" == printed
    right = exact.equation_26
    monkeypatch.setattr(exact, "equation_26", lambda t: right(t) * (1 + 2e-9))
    (item,) = (Evidence(*found) for found in evidence._weight_claims() if "Equation 26" in found[0].text)
    assert item.checked.verdict == NOT_HELD


def test_the_shares_of_the_examples_that_contribute() -> None:
    # w >= c times the largest, at 1/2 +- u: 1 - 4 u^2 = 0.9 for MAE, exp(-T u^2) = 0.5 for IMAE-T.
    mae, t_16 = one("With MAE a wide range", UNIFORM), one("With T = 16 only", UNIFORM)
    assert mae.checked == (HELD, f"MAE {200 * math.sqrt(0.1 / 4):.1f}", False)
    assert t_16.checked == (NOT_HELD, f"IMAE-16 {200 * math.sqrt(math.log(2) / 16):.1f}", False)
    assert one("The proportion of the examples", UNIFORM).checked.numbers == (
        "IMAE-16 41.6, IMAE-8 58.9, IMAE-4 83.3, IMAE-2 100.0"
    )
    few = Printed({Elsewhere(WEIGHTS, "IMAE-16"): {"contribute": 24.0}})
    assert replace(t_16, behind=few).checked.verdict == HELD
    narrow = Printed({Elsewhere(WEIGHTS, "MAE"): {"almost equal": 24.0}})
    assert replace(mae, behind=narrow).checked.verdict == NOT_HELD


def test_the_shapes_of_figure_5(monkeypatch: pytest.MonkeyPatch) -> None:
    curved, flat = one("With every T > 0", UNIFORM), one("With T = 0 all", UNIFORM)
    assert (curved.checked.verdict, flat.checked.verdict) == (HELD, HELD)
    assert curved.checked.numbers.count("at p = 0.500") == 6
    curves = exact.figure_5()
    p, w = curves["0"]
    curves |= {"0": (p, w + p), "2": (p, p)}
    monkeypatch.setattr(exact, "figure_5", lambda: curves)
    wrong = Printed(evidence._curves(), 3)
    assert [replace(item, behind=wrong).checked.verdict for item in (curved, flat)] == [NOT_HELD] * 2


# -- labels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
def test_more_labels_stay_right_than_the_paper_says(rate: float) -> None:
    item = one("The overlap rate", f"r = {100 * rate:g} %")
    right = {0.2: "82.0", 0.5: "55.0", 0.8: "28.0"}[rate]
    assert item.checked == (NOT_HELD, f"overlap {right}, 1 - r {100 - 100 * rate:.1f}", False)
    assert item.counts
    clean = np.arange(20_000, dtype=np.int64) % 10
    noisy = symmetric(clean, 10, rate, np.random.RandomState(123))
    assert float((noisy == clean).mean()) == pytest.approx(
        exact.overlap(rate), abs=tolerance("drawn share", "float32").atol
    )
    (key,) = {part for comparison in item.claim.comparisons for part, _ in comparison.left.parts}
    as_printed = Printed({key: {"overlap": 100 - 100 * rate, "printed": 100 - 100 * rate}})
    assert replace(item, behind=as_printed).checked.verdict == HELD


def test_the_correct_portion_is_the_largest_and_not_the_majority() -> None:
    where = "noise to the nine other classes"
    majority = one("Up to 80 % noise the correct portion is the majority", where)
    largest = one("Up to 80 % noise the correct portion is larger", where)
    assert majority.checked == (NOT_HELD, "40 % noise: right 60.0, 80 % noise: right 20.0", False)
    assert largest.checked.verdict == HELD and "each other class at 80 % 8.9" in largest.checked.numbers
    (key,) = {part for part, _ in largest.claim.comparisons[1].left.parts}
    wrong = Printed({**evidence._of_labels(), key: {"right": 8.0, "each wrong": 8.9}})
    assert replace(largest, behind=wrong).checked.verdict == NOT_HELD


def test_uniform_noise_beside_asymmetric_noise() -> None:
    # Not in print for MAE, 7.3 and 7.3, and for DM, 61.0 and 60.8, at 0.4.
    found = [e for e in EVIDENCE if e.claim.text.startswith("Uniform noise is more challenging")]
    assert len(found) == 10 and {e.checked.verdict for e in found} == {NO_DATA}
    fallen = {e.claim.where: e.printed.numbers for e in found if e.printed.verdict == NOT_HELD}
    assert fallen == {"rate 0.4, MAE": "sym 7.3, asym 7.3", "rate 0.4, DM, λ = 0.5": "sym 61.0, asym 60.8"}
    assert [e.claim.where for e in found if not e.counts] == list(fallen)


# -- MARS and Clothing1M -------------------------------------------------------------------------------------


def test_the_printed_counts_of_mars_do_not_add_up() -> None:
    text = "The printed numbers for training and for testing add up"
    persons, videos, images = (one(text, what) for what in ("persons", "videos", "images"))
    assert persons.printed == (HELD, "together 1261, in all 1261", False)
    assert videos.printed == (NOT_HELD, "together 20478, in all 20715", False)
    assert images.printed == (NOT_HELD, "together 1191003, in all 1067516", False)
    assert persons.counts and not videos.counts and not images.counts


def test_the_benchmarks_files_have_two_persons_less_than_printed() -> None:
    videos, persons = "The protocol's files have as many videos", "The protocol's files have as many persons"
    assert one(videos, "training").checked.verdict == one(videos, "testing").checked.verdict == HELD
    assert one(persons, "training").checked.verdict == HELD
    assert one(persons, "testing").checked == (NOT_HELD, "persons 634, printed persons 636", False)


def test_what_count_part_counts() -> None:
    tracklets = Tracklets(
        begin=np.array([0, 2, 5, 6]),
        end=np.array([2, 5, 6, 10]),
        person=np.array([3, 3, -1, 0]),
        camera=np.array([1, 2, 1, 1]),
    )
    assert mars.count_part(tracklets) == {"persons": 1, "videos": 4, "images": 10}


def test_the_files_of_mars_are_as_counted() -> None:
    folder = mars_folder()
    parts = {"training": mars.read_part(folder, "train"), "testing": mars.read_part(folder, "test")}
    assert {name: mars.count_part(part) for name, part in parts.items()} == mars.COUNTED
    assert len(np.unique(parts["testing"].person)) == expected.MARS_COUNTS["testing"]["persons"] == 636


def test_claims_of_which_only_printed_numbers_are_at_hand_name_the_command() -> None:
    of_mars = [e for e in EVIDENCE if e.of == MARS]
    assert [e.printed.verdict for e in of_mars] == [HELD] * 4
    assert {e.checked.verdict for e in of_mars} == {NO_DATA}
    assert all("imae paper table3 --mars" in e.command for e in of_mars)
    assert {e.of for e in EVIDENCE} == set(evidence.COMMANDS)


@pytest.mark.parametrize("of", evidence.COMMANDS)
def test_the_commands_can_be_typed(of: str) -> None:
    top = Path(imae.__file__).parents[1]
    for line in evidence.COMMANDS[of].split(" && "):
        words = shlex.split(line)
        if words[0] == "imae":
            make_parser(words[1]).parse_args(words[2:])
        assert all((top / word).is_file() for word in words if word.startswith(("prototxt/", "tests/")))


def test_our_results_on_mars_are_judged() -> None:
    results = {"IMAE": {"mAP": 0.70}, "CCE": {"mAP": 0.58}, "MAE": {"mAP": 0.12}, "GCE": {"mAP": 0.3}}
    margin = one("IMAE is above CCE, MAE and GCE", "MARS, mAP")
    assert margin.ours(mars=results) == (HELD, "IMAE 70.00, CCE 58.00, MAE 12.00, GCE 30.00", False)
    assert margin.ours(mars=results | {"GCE": {"mAP": 0.66}}).verdict == NOT_HELD
    assert margin.ours(mars={"IMAE": {"mAP": 0.7}}).verdict == NO_DATA
    assert margin.ours().verdict == NO_DATA and margin.ours(clothing1m={"IMAE": 0.7}).verdict == NO_DATA
    cmc = one("MAE works much worse than CCE", "MARS, CMC-1")
    assert cmc.ours(mars=results).verdict == NO_DATA


def test_our_results_on_clothing1m_are_judged() -> None:
    worse, above_all = one("MAE works much worse", "Clothing1M"), one("IMAE's test accuracy", "Clothing1M")
    assert worse.ours(clothing1m={"CCE": 0.688, "MAE": 0.453}) == (HELD, "CCE 68.80, MAE 45.30", False)
    assert worse.ours(clothing1m={"CCE": 0.688, "MAE": 0.66}).verdict == NOT_HELD
    printed = {loss: value / 100 for loss, value in expected.LATER_TABLE_5.items()}
    assert above_all.ours(clothing1m=printed).verdict == HELD
    assert above_all.ours(clothing1m=printed | {"IMAE": 0.72}).verdict == NOT_HELD
    assert above_all.ours(clothing1m={"IMAE": 0.73}).verdict == NO_DATA


def test_results_on_clothing1m_are_read(tmp_path: Path) -> None:
    path = tmp_path / "clothing1m.json"
    path.write_text('{"IMAE": 0.732, "CCE": 0}')
    assert clothing1m_results(path) == {"IMAE": 0.732, "CCE": 0.0}
    for text in ("[]", '{"ABC": 0.5}', '{"IMAE": 73.2}', '{"IMAE": true}', '{"IMAE": NaN}', '{"IMAE": "1"}'):
        path.write_text(text)
        with pytest.raises(DataError, match=r"^[^\n]*': expected results on Clothing1M as \{\"IMAE\"[^\n]*$"):
            clothing1m_results(path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"clothing1m.json' is not JSON"):
        clothing1m_results(path)
    with pytest.raises(DataError, match=r"cannot read '.*none.json': No such file"):
        clothing1m_results(tmp_path / "none.json")


# -- the later version's table 2 -----------------------------------------------------------------------------


def test_the_printed_values_have_the_printed_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row.loss: row for row in exact.later_table_2_values()}
    assert list(rows) == [formula.loss for formula in expected.LATER_TABLE_2]
    assert rows["DM(0.5, 8)"] == ("DM(0.5, 8)", None, "no L(p) is printed")
    for loss in ("CCE", "MAE", "GCE-0.7", "MSE", "IMAE-8"):
        difference = rows[loss].difference
        assert difference is not None and difference <= exact.SAME_SLOPE and "NOT" not in rows[loss].words
    assert "infinite for every p" in rows["IMAE-8"].words
    monkeypatch.setitem(exact.VALUES, "MSE", lambda p: (1 - p) ** 2 / 2)
    assert "is NOT the printed" in {row.loss: row for row in exact.later_table_2_values()}["MSE"].words


def test_the_printed_integral_of_imae_diverges() -> None:
    """With x = log(u / (1 - u)) the integrand is exp(8 u (1 - u)) / 2, at least 1/2 for every x."""
    x = torch.linspace(0, 30, 30_001, dtype=torch.float64)
    u, rest = torch.sigmoid(x), torch.sigmoid(-x)
    integrand = torch.exp(8 * u * rest) / (2 * u * rest) * (u * rest)
    assert float(integrand.min()) >= 0.5
    assert float(torch.trapezoid(integrand[20_000:], x[20_000:])) >= 5.0


# -- the whole -----------------------------------------------------------------------------------------------


def test_every_claim_about_cifar100_has_a_number() -> None:
    assert all(e.printed.numbers or e.checked.numbers for e in EVIDENCE)
    logged = {(run.family, run.noise) for run in authors_runs()}
    assert {("CCE", 0.6), ("IMAE", 0.4), ("GCE", 0.2), ("MAE", 0.0)} <= logged
    assert evidence.count_evidence(EVIDENCE, CIFAR100) == {HELD: 16, NOT_HELD: 4}


def test_only_the_papers_claims_that_its_own_numbers_hold_are_counted() -> None:
    uncounted = [e for e in EVIDENCE if not e.counts]
    assert {e.printed.verdict for e in uncounted if not e.claim.source.startswith("ours")} == {NOT_HELD}
    item = one("IMAE's best test accuracy is above CCE's", "sym 0.4")
    assert evidence.count_evidence([item], CIFAR100) == {HELD: 1, NOT_HELD: 0}
    ours = replace(item, claim=replace(item.claim, source="ours, of the logs"))
    cce, imae = (Elsewhere(CIFAR100, loss, "sym 0.4") for loss in ("CCE", "IMAE"))
    fallen = replace(
        item, claim=replace(item.claim, printed=Printed({imae: {"best": 50.0}, cce: {"best": 53.2}}))
    )
    for uncounted_item in (ours, fallen):
        assert evidence.count_evidence([uncounted_item], CIFAR100) == {HELD: 0, NOT_HELD: 0}


def test_a_wrong_number_would_be_seen() -> None:
    imae, cce = (Elsewhere(CIFAR100, loss, "sym 0.4") for loss in ("IMAE", "CCE"))
    claim = Claim("", "", "", (), (Comparison(measured(imae, "best"), ">", 0, measured(cce, "best")),))
    right = Printed({imae: {"best": 54.68}, cce: {"best": 53.15}})
    assert Evidence(claim, right, CIFAR100).checked.verdict == HELD
    assert (
        Evidence(claim, Printed({imae: {"best": 53.0}, cce: {"best": 53.15}}), CIFAR100).checked.verdict
        == NOT_HELD
    )
    assert Evidence(claim, Printed({imae: {"best": 54.68}}), CIFAR100).checked.verdict == NO_DATA
    assert Evidence(replace(claim, printed=right), None, CIFAR100).printed.verdict == HELD


def test_the_table_says_what_each_number_is_and_names_a_data_set_once() -> None:
    table = tables.evidence_table()
    assert table is not None
    abouts, numbers = [row[1] for row in table.rows], [row[-1] for row in table.rows]
    assert {"MARS, mAP", "Clothing1M", "CIFAR-100, sym 0.4", "weights, p uniform on [0, 1]"} <= set(abouts)
    assert not [about for about in abouts if about.startswith(("MARS, MARS", "Clothing1M, "))]
    assert "MAE at p = 0.500, IMAE-8 at p = 0.500" in numbers
    assert "CCE's largest rise from a p to the next -0.010" in numbers


@pytest.mark.parametrize("name", ["figure1", "table3", "table4", "later-tables"])
def test_the_tables_print_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_table(name, [])
    text = capsys.readouterr().out
    shown = [e for e in EVIDENCE if name in e.claim.shown]
    assert shown
    assert all(e.claim.text in text for e in shown)


def test_a_claim_that_the_papers_own_numbers_do_not_hold_does_not_count() -> None:
    of_paper = [claim for claim in CLAIMS if not claim.counts and not claim.source.startswith("ours")]
    assert {claim.in_paper().verdict for claim in of_paper} == {NOT_HELD}
    uncounted = {(claim.text.partition(" (")[0], claim.where) for claim in of_paper}
    assert ("IMAE's final test accuracy is above CCE's and MAE's", "ResNet-20, 20 %") in uncounted


def test_the_page_opens_with_what_imae_is_and_one_picture() -> None:
    text = report.page([])
    begin = text[: text.index("<nav>")]
    assert begin.index("IMAE is a loss") < begin.index("<svg") < begin.index("9 of 9 numbers")
    assert "16 of 20 claims" in begin and begin.count("<svg") - begin.count('class="swatch"') == 1
    assert "s size has a record yet: what the paper says of CIFAR-10" in begin
    assert "max-width: 40rem" in text and "IMAE\N{NON-BREAKING HYPHEN}8" in text
