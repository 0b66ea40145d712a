"""A number for each living module, by which a program that torch.compile traces finds it again."""

from __future__ import annotations

from itertools import count
from weakref import WeakValueDictionary

from torch import nn

_numbers = count()
_modules: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()


def number_of(module: nn.Module) -> int:
    """A new number for a module."""
    number = next(_numbers)
    _modules[number] = module
    return number


def module_of(number: int) -> nn.Module:
    """The module that got this number."""
    return _modules[number]
