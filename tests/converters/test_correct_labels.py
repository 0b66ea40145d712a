"""`imae correct-labels`: what another program has found of wrong labels, in the forms of cleanlab's answers.

cleanlab itself is not needed. Its `filter.find_label_issues` returns a mask of N truth values or, with
return_indices_ranked_by, an array of places, the worst first. Its `CleanLearning.find_label_issues` returns a
table with the columns is_label_issue, label_quality, given_label and predicted_label; in its to_csv the index
is the first column.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from imae.cli.main import main
from imae.converters.corrupt_labels import corrupt_labels
from imae.converters.label_file import read_labels
from imae.layers.data.lmdb_source import open_lmdb

Labels = NDArray[np.int64]


def find_issues(labels: Labels, pred_probs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """A stand-in for cleanlab: labels whose class has less than its mean probability, another one more."""
    mean = np.array([pred_probs[labels == c, c].mean() for c in range(pred_probs.shape[1])])
    above = np.where(pred_probs >= mean, pred_probs, 0)
    return (above.max(1) > 0) & (above.argmax(1) != labels)


@pytest.fixture(autouse=True)
def _noisy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert-digits", "data"]) == 0
    corrupt_labels("data/digits_test_lmdb", "noisy_lmdb", "symmetric-exclusive", rate=0.4, seed=1)


def labels_of(path: str) -> tuple[list[bytes], Labels]:
    with open_lmdb(path) as source:
        return source.keys(), np.array([source.datum(i).label for i in range(len(source))])


def probabilities() -> NDArray[np.float64]:
    """Of a net that knows nine of ten true labels."""
    true = read_labels("noisy_lmdb.clean_labels.npz:clean").labels
    draw = np.random.default_rng(1)
    known = np.where(draw.random(len(true)) < 0.9, true, draw.integers(0, 10, len(true)))
    values = draw.random((len(true), 10)) + 9 * np.eye(10)[known]
    return values / values.sum(1, keepdims=True)


def run(*arguments: str) -> None:
    assert main(["correct-labels", "noisy_lmdb", *arguments]) == 0


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    capfd.readouterr()
    assert main(["correct-labels", "noisy_lmdb", *arguments]) == 2
    assert not Path("out_lmdb").exists()
    return capfd.readouterr().err.splitlines()[-1]


def test_issues_are_dropped_in_every_form() -> None:
    """A mask, ranked indices and a table name the same records; what is left keeps keys, order and labels."""
    keys, labels = labels_of("noisy_lmdb")
    pred_probs = probabilities()
    mask = find_issues(labels, pred_probs)
    np.save("mask.npy", mask)
    np.save("ones.npy", mask.astype(np.int64))
    ranked = np.flatnonzero(mask)
    ranked = ranked[np.argsort(pred_probs[ranked, labels[ranked]])]
    assert (np.diff(ranked) < 0).any()
    np.save("ranked.npy", ranked)
    np.savez("both.npz", mask=mask, ranked=ranked)
    lines = [
        f"{i},{bool(m)},0.5,{g},{p}" for i, (m, g, p) in enumerate(zip(mask, labels, labels, strict=True))
    ]
    head = ",is_label_issue,label_quality,given_label,predicted_label"
    Path("table.csv").write_text("\n".join([head, *lines]) + "\n")
    kept = [key for key, issue in zip(keys, mask, strict=True) if not issue]
    for number, form in enumerate(["mask.npy", "ones.npy", "ranked.npy", "both.npz:ranked", "table.csv"]):
        run(f"out{number}_lmdb", "--issues", form)
        new_keys, new_labels = labels_of(f"out{number}_lmdb")
        assert new_keys == kept and (new_labels == labels[~mask]).all()
    true = read_labels("noisy_lmdb.clean_labels.npz:clean").labels
    new = read_labels("out0_lmdb.clean_labels.npz:clean")
    assert new.keys == kept and (new.labels == true[~mask]).all()
    assert np.mean(labels[~mask] == true[~mask]) > 0.9 > np.mean(labels == true)


def test_the_issues_as_an_lmdb_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    keys, labels = labels_of("noisy_lmdb")
    true = read_labels("noisy_lmdb.clean_labels.npz:clean").labels
    mask = labels != true
    mask[:3] = ~mask[:3]
    np.save("mask.npy", mask)
    with caplog.at_level(logging.INFO):
        run("out_lmdb", "rest_lmdb", "--issues", "mask.npy")
    assert labels_of("rest_lmdb")[0] == [key for key, issue in zip(keys, mask, strict=True) if issue]
    wrong, missed = int(np.sum(labels != true)), int(np.sum((labels != true) & ~mask))
    found = int(np.sum(mask & (labels == true)))
    assert (
        f"By the clean labels {wrong} labels were wrong: {wrong - missed} of them are among the issues, as "
        f"are {found} right ones. {missed} of {int(np.sum(~mask))} labels are wrong now." in caplog.text
    )


def test_issues_get_other_labels() -> None:
    """From the .npz of `imae out-of-fold`, whose keys are looked at, or from a table."""
    keys, labels = labels_of("noisy_lmdb")
    predicted = probabilities().argmax(1)
    mask = find_issues(labels, probabilities())
    np.save("mask.npy", mask)
    order = np.arange(len(keys))[::-1]
    np.savez("probs.npz", key=np.array(keys)[order], predicted=predicted[order].astype(np.int32))
    lines = [f"{bool(m)},{p}" for m, p in zip(mask, predicted, strict=True)]
    Path("t.csv").write_text("\n".join(["is_label_issue,predicted_label", *lines]))
    run("a_lmdb", "--issues", "mask.npy", "--relabel", "probs.npz:predicted")
    run("b_lmdb", "--issues", "t.csv", "--relabel", "t.csv")
    for path in ("a_lmdb", "b_lmdb"):
        assert labels_of(path)[0] == keys
        assert (labels_of(path)[1] == np.where(mask, predicted, labels)).all()
    noisy = read_labels("a_lmdb.clean_labels.npz:noisy").labels
    assert (noisy == np.where(mask, predicted, labels)).all()
    assert (
        read_labels("a_lmdb.clean_labels.npz:clean").labels
        == read_labels("noisy_lmdb.clean_labels.npz:clean").labels
    ).all()


def test_no_issue_and_an_lmdb_without_clean_labels() -> None:
    np.save("none.npy", np.zeros(0, np.int64))
    assert main(["correct-labels", "data/digits_test_lmdb", "out_lmdb", "--issues", "none.npy"]) == 0
    assert len(labels_of("out_lmdb")[0]) == 297 and not Path("out_lmdb.clean_labels.npz").exists()


def test_what_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    np.save("short.npy", np.zeros(5, np.bool_))
    np.save("far.npy", np.array([3, 297]))
    np.save("twice.npy", np.array([3, 5, 3]))
    np.save("float.npy", np.zeros(297))
    np.save("all.npy", np.ones(297, np.bool_))
    np.save("one.npy", np.array([4]))
    np.savez("two.npz", a=np.zeros(3), b=np.zeros(3))
    Path("other.csv").write_text("a,b\n1,2\n")
    Path("odd.csv").write_text("is_label_issue\nmaybe\n")
    Path("words.csv").write_text("predicted_label\n" + "cat\n" * 297)
    for form, message in {
        "short.npy": "'short.npy' is for 5 records; the LMDB has 297",
        "far.npy": "'far.npy', whose numbers are places of the 297 records: number 297 at place 1 is out of",
        "twice.npy": "'twice.npy': the place 3 is there 2 times",
        "float.npy": "'float.npy' must be a mask or a list of indices, got an array of float64 with shape",
        "all.npy": "nothing to write into 'out_lmdb': 297 of 297 records are issues",
        "none.npy": "cannot read the array 'none.npy': No such file or directory",
        "two.npz": "'two.npz' has the arrays a, b; name one of them, as in two.npz:a",
        "other.csv": "'other.csv' has no column is_label_issue; there is a, b",
        "odd.csv": "'odd.csv': is_label_issue must be True or False, got 'maybe'",
    }.items():
        assert message in refused(capfd, "out_lmdb", "--issues", form), form
    issues = ("out_lmdb", "--issues", "one.npy")
    assert "predicted_label must be whole numbers" in refused(capfd, *issues, "--relabel", "words.csv")
    assert "--relabel keeps all records" in refused(
        capfd, "out_lmdb", "rest_lmdb", "--issues", "one.npy", "--relabel", "words.csv"
    )
    assert "both parts cannot be written into" in refused(
        capfd, "out_lmdb", "./out_lmdb", "--issues", "one.npy"
    )
    assert "correct-labels needs --issues FILE" in refused(capfd, "out_lmdb")


def test_objects_are_not_unpickled(capfd: pytest.CaptureFixture[str]) -> None:
    np.save("objects.npy", np.array([print], object), allow_pickle=True)
    assert "Python objects, which are not unpickled" in refused(capfd, "out_lmdb", "--issues", "objects.npy")
