"""The forks' part of the tables in layer_cases.py and test_fields.py; one module per group of layers.

Each module may have the tables below. A key of CASES is a type, or TYPE:VARIANT where forks use one name for
different layers.

    CASES      key -> Case: a valid layer
    SHARED     keys, separated by blanks -> what they look at besides the parameter of their own name
    CHANGES    as CHANGES of test_fields.py
    ACCEPTED   fields that may do nothing -> why
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from case_types import Case, Change


def _joined_shared() -> dict[str, str]:
    """SHARED of all modules; where several have a key, it looks at what each says."""
    joined: dict[str, str] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for key, fields in getattr(module, "SHARED", {}).items():
            joined[key] = f"{joined.get(key, '')} {fields}".strip()
    return joined


def _merged(table: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for module in pkgutil.iter_modules(__path__):
        entries = getattr(importlib.import_module(f"{__name__}.{module.name}"), table, {})
        assert not merged.keys() & entries.keys(), f"{module.name}: {table}"
        merged |= entries
    return merged


CASES: dict[str, Case] = _merged("CASES")
SHARED = _joined_shared()
CHANGES: dict[str, Change] = _merged("CHANGES")
ACCEPTED: dict[str, str] = _merged("ACCEPTED")
