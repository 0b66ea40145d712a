"""Results on MARS (table 3) and Clothing1M (the later version's table 5), which are measured elsewhere.

They come in JSON files: shares, 0 to 1, by loss.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from imae.files.errors import DataError
from imae.files.read import AnyPath
from imae.paper.expected import LATER_TABLE_5, TABLE_3

MARS_LOSSES = frozenset(loss for row in TABLE_3.values() for loss in row)
MARS_FORMAT = '{"IMAE": {"mAP": 0.709, "CMC-1": 0.835}, ...}, with any of CCE, MAE, GCE and IMAE'
CLOTHING1M_FORMAT = f'{{"IMAE": 0.732, ...}}, with any of {", ".join(LATER_TABLE_5)}'


def mars_results(path: AnyPath) -> dict[str, dict[str, float]]:
    """Read results of `imae retrieve`, in the form of MARS_FORMAT; DataError for anything else."""
    content = _content(path)
    is_valid = isinstance(content, dict) and all(
        loss in MARS_LOSSES
        and isinstance(metrics, dict)
        and all(name in TABLE_3 and _is_share(value) for name, value in metrics.items())
        for loss, metrics in content.items()
    )
    if not is_valid:
        raise DataError(f"'{path}': expected results on MARS as {MARS_FORMAT}")
    return {loss: dict(metrics) for loss, metrics in content.items()}


def clothing1m_results(path: AnyPath) -> dict[str, float]:
    """Read test accuracies in the form of CLOTHING1M_FORMAT; DataError for anything else."""
    content = _content(path)
    is_valid = isinstance(content, dict) and all(
        loss in LATER_TABLE_5 and _is_share(value) for loss, value in content.items()
    )
    if not is_valid:
        raise DataError(f"'{path}': expected results on Clothing1M as {CLOTHING1M_FORMAT}")
    return {loss: float(value) for loss, value in content.items()}


def _content(path: AnyPath) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise DataError(f"'{path}' is not JSON: {reason}") from None


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
