"""The claims that need no training of ours, checked by numbers worked out by hand from the authors' logs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from imae.paper import evidence, report, tables
from imae.paper.authors_logs import NOISE, authors_runs
from imae.paper.claims import CLAIMS, HELD, NO_DATA, NOT_HELD, Claim, Comparison, Elsewhere, Printed, measured
from imae.paper.evidence import CIFAR100, EVIDENCE, MARS, WEIGHTS, Evidence


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
    assert (
        one("IMAE's best test accuracy is above GCE's", "sym 0.4").checked.numbers == "IMAE 54.68, GCE 58.64"
    )
    assert one("IMAE's best test accuracy is above GCE's", "sym 0.4").checked.verdict == NOT_HELD
    assert one("IMAE's best test accuracy is above GCE's", "sym 0.6").printed.verdict == NOT_HELD
    # The introduction's sentence about CIFAR-10 does not hold on CIFAR-100: 2.98, 1.53, 1.81.
    lead = one("IMAE's lead over CCE grows", "sym 0.2 to 0.6")
    assert (lead.checked.verdict, lead.printed.verdict) == (NOT_HELD, NOT_HELD)


def test_the_two_printed_numbers_that_are_not_the_best_of_their_logs() -> None:
    same = {
        e.claim.where: e.checked.verdict for e in EVIDENCE if e.claim.text.startswith("The printed numbers")
    }
    assert same == {"CCE": NOT_HELD, "GCE": NOT_HELD, "MAE": HELD, "IMAE": HELD, "DM, λ = 0.5": HELD}


def test_formulas_and_printed_variances() -> None:
    assert [e.checked.verdict for e in EVIDENCE if e.of == WEIGHTS] == [HELD] * 5
    variance = one("IMAE-8 differentiates", "p uniform on [0, 1]")
    assert (variance.printed.numbers, variance.checked.numbers) == (
        "IMAE-8 4.546, MAE 0.090",
        "IMAE-8 4.546, MAE 0.089",
    )


def test_claims_of_which_only_printed_numbers_are_at_hand_name_the_command() -> None:
    mars = [e for e in EVIDENCE if e.of == MARS]
    assert [e.printed.verdict for e in mars] == [HELD] * 4
    assert {e.checked.verdict for e in mars} == {NO_DATA}
    assert all("imae paper table3 --mars" in e.command for e in mars)
    assert {e.of for e in EVIDENCE} == set(evidence.COMMANDS)


def test_every_claim_about_cifar100_has_a_number() -> None:
    assert all(e.printed.numbers or e.checked.numbers for e in EVIDENCE)
    logged = {(run.family, run.noise) for run in authors_runs()}
    assert {("CCE", 0.6), ("IMAE", 0.4), ("GCE", 0.2), ("MAE", 0.0)} <= logged
    assert evidence.count_evidence(EVIDENCE, CIFAR100) == {HELD: 21, NOT_HELD: 8}


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
    uncounted = {(claim.text.partition(" (")[0], claim.where) for claim in CLAIMS if not claim.counts}
    assert ("IMAE's final test accuracy is above CCE's and MAE's", "ResNet-20, 20 %") in uncounted
    assert {where for _, where in uncounted} == {"ResNet-20, 20 %"}


def test_the_page_opens_with_what_imae_is_and_one_picture() -> None:
    text = report.page([])
    begin = text[: text.index("<nav>")]
    assert begin.index("IMAE is a loss") < begin.index("<svg") < begin.index("9 of 9 numbers")
    assert "of the 8 others, 3 do not hold in the printed numbers either" in begin
    assert "21 of 29 claims" in begin and begin.count("<svg") - begin.count('class="swatch"') == 1
    assert "s size has a record yet: what the paper says of CIFAR-10" in begin
    assert "max-width: 40rem" in text and "IMAE\N{NON-BREAKING HYPHEN}8" in text
