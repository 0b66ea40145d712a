"""Fields that are set and do nothing, as in Caffe: a warning lists them, or under `--strict` an error.

Many nets have them: the loss_param of a loss that became a Softmax, the transform_param of a Data layer that
became an Input. Caffe ignores such a field, so by default it is no error here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_strict: ContextVar[bool] = ContextVar("strict", default=False)


@contextmanager
def strict_fields(wanted: bool = True) -> Iterator[None]:
    """Raise an error about such fields while the block runs, if that is `wanted`."""
    token = _strict.set(wanted or _strict.get())
    try:
        yield
    finally:
        _strict.reset(token)


def report_leftovers(
    logger: logging.Logger, where: str, leftovers: Sequence[str], error: type[Exception]
) -> None:
    """One warning about the fields of a net, or under `strict_fields` one `error`; nothing if there are none.

    where   the net, or its file
    """
    if not leftovers:
        return
    listed = "; ".join(leftovers)
    if _strict.get():
        raise error(f"{where}: these fields do nothing: {listed}; remove them, or leave --strict out")
    logger.warning("%s: these fields do nothing, as in Caffe: %s", where, listed)
