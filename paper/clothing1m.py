"""Results on Clothing1M, beside the later version's table 5.

`imae train prototxt/models/clothing1m/resnet50_solver.prototxt` logs the test accuracy; a JSON file keeps the
last one of each loss.
"""

from __future__ import annotations

import json
from pathlib import Path

from imae.files.errors import DataError
from imae.files.read import AnyPath
from imae.paper.expected import LATER_TABLE_5

CLOTHING1M_FORMAT = f'{{"IMAE": 0.732, ...}}, with any of {", ".join(LATER_TABLE_5)}'


def clothing1m_results(path: AnyPath) -> dict[str, float]:
    """Read test accuracies, 0 to 1, in the form of CLOTHING1M_FORMAT; DataError for anything else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"'{path}' is not JSON: {error}") from None
    is_valid = isinstance(content, dict) and all(
        loss in LATER_TABLE_5
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 <= value <= 1
        for loss, value in content.items()
    )
    if not is_valid:
        raise DataError(f"'{path}': expected results on Clothing1M as {CLOTHING1M_FORMAT}")
    return {loss: float(value) for loss, value in content.items()}
