"""What the tests' tables of layers are made of: a valid layer, and values that show what a field does."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor


class Case(NamedTuple):
    """A valid layer: fields of its prototxt, its bottoms, and the indices of bottoms that get a gradient."""

    text: str = ""
    bottoms: tuple[Tensor, ...] = ()
    learn: tuple[int, ...] = (0,)


class Change(NamedTuple):
    """Values that show that a field is looked at: the layer does something else.

    given     other fields that must be set for that; None takes one out
    refusal   what the error says where the layer looks at the field only to refuse it, or these values of it
    leftover  Caffe passes over the field, of a message that the layer reads otherwise: it does nothing, and
              the layer says so
    """

    values: list[Any]
    given: Mapping[str, Any] = MappingProxyType({})
    refusal: str | None = None
    leftover: bool = False


def within(name: str, changes: dict[str, Change]) -> dict[str, Change]:
    """The changes of the fields of a message, as those of the field `name` that is such a message."""
    return {
        f"{name}.{field}": change._replace(given={f"{name}.{key}": v for key, v in change.given.items()})
        for field, change in changes.items()
    }
