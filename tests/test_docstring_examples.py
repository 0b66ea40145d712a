"""The examples in the docstrings of the public names run, and print what they say."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest

import imae
from imae import losses
from imae.converters.lmdb_writer import write_lmdb
from imae.layers.data.datum import datum_from_array

PUBLIC = [name for name in imae.__all__ if callable(getattr(imae, name))]
EXAMPLES = {f"imae.{name}": getattr(imae, name) for name in PUBLIC} | {
    f"imae.losses.{name}": getattr(losses, name) for name in losses.__all__
}
assert len(EXAMPLES) >= 20


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_public_name_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an empty folder but for the database of digits; nothing is imported for it."""
    monkeypatch.chdir(tmp_path)
    digits_lmdb()
    parsed = doctest.DocTestParser().get_doctest(EXAMPLES[name].__doc__ or "", {}, name, None, 0)
    assert parsed.examples, f"{name} has no example"
    report: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(parsed, out=report.append)
    assert (result.failed, result.attempted) == (0, len(parsed.examples)), "".join(report)


def digits_lmdb() -> None:
    """Three images of 8 by 8 pixels, with the labels 0, 1 and 2."""
    images = np.arange(3 * 64, dtype=np.uint8).reshape(3, 1, 8, 8)
    write_lmdb(
        "digits_lmdb", ((f"{i}".encode(), datum_from_array(image, i)) for i, image in enumerate(images))
    )
