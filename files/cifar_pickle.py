"""The batches of CIFAR's Python version, which are pickles, read without unpickling.

A pickle is a program: it may import and call anything. These files need few of its operations, and only those
are interpreted: dicts, lists, tuples, numbers, strings, and numpy's steps to an array of bytes. Nothing is
imported or called; any other operation is a DataError.

Strings and bytes both become str, bytes as Latin-1: Python 2, which wrote these files, has one type for both.
"""

import pickletools
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imae.files.errors import DataError

CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Global(str):
    """The name in a GLOBAL. Its type is separate, so that no string of the file can pass for one."""


RECONSTRUCT = {_Global(f"numpy.{core}.multiarray _reconstruct") for core in ("core", "_core")}
NDARRAY, DTYPE, ENCODE = _Global("numpy ndarray"), _Global("numpy dtype"), _Global("_codecs encode")
GLOBALS = {*RECONSTRUCT, NDARRAY, DTYPE, ENCODE}


class _Array:
    """An array whose content comes later."""

    values: NDArray[np.uint8]


class _Dtype:
    """numpy's dtype u1, the only one that is allowed."""


def read_pickled_batch(data: bytes, name: str) -> dict[str, Any]:
    """The dict in a pickle of protocol 2; its values are lists, numbers, strings and arrays of bytes.

    DataError, with the file's `name`, if the pickle is broken or needs anything else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickletools warns about strange escapes in a string
            batch = _interpret(data)
        if not isinstance(batch, dict):
            raise ValueError("it holds no dict")
        return {key: value.values if isinstance(value, _Array) else value for key, value in batch.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = error if isinstance(error, ValueError) else "it is garbled"
        raise DataError(f"'{name}' is no batch of CIFAR's Python version: {reason}") from error


def _interpret(data: bytes) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop(count: int) -> list[Any]:
        items = stack[len(stack) - count :]
        if len(items) != count:
            raise ValueError("it takes more than it has")
        del stack[len(stack) - count :]
        return items

    def pop_to_mark() -> list[Any]:
        return pop(len(stack) - marks.pop())

    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        match opcode.name:
            case "PROTO" if argument == 2:
                pass
            case "BININT" | "BININT1" | "BININT2" | "SHORT_BINSTRING" | "BINSTRING" | "BINUNICODE":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
                stack.append(CONSTANTS[opcode.name])
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop(TUPLES[opcode.name])))
            case "APPEND":
                _extend(stack, pop(1))
            case "APPENDS":
                _extend(stack, pop_to_mark())
            case "SETITEM":
                _update(stack, pop(2))
            case "SETITEMS":
                _update(stack, pop_to_mark())
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL" if argument in GLOBALS:
                stack.append(_Global(argument))
            case "GLOBAL":
                raise ValueError(f"it asks for {argument[:60]!r}, which no such batch needs")
            case "REDUCE":
                stack.append(_call(*pop(2)))
            case "BUILD":
                _build(stack[-2], pop(1)[0])
            case "STOP":
                (result,) = stack
                return result
            case "PROTO":
                raise ValueError(f"its pickle protocol is {argument}, not 2")
            case _:
                raise ValueError(f"it uses the pickle operation {opcode.name}")
    raise ValueError("it has no end")


def _extend(stack: list[Any], items: list[Any]) -> None:
    if not isinstance(stack[-1], list):
        raise ValueError("it appends to what is no list")
    stack[-1].extend(items)


def _update(stack: list[Any], items: list[Any]) -> None:
    if not isinstance(stack[-1], dict) or not all(isinstance(key, str) for key in items[::2]):
        raise ValueError("it has something else than strings as names")
    stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _call(function: Any, arguments: Any) -> Any:
    """The result of `function(*arguments)`, for the three functions that are allowed."""
    match function, arguments:
        case _Global(), (_Global(), (0,), "b") if function in RECONSTRUCT and arguments[0] == NDARRAY:
            return _Array()
        case _Global(), ("u1", _, _) if function == DTYPE:
            return _Dtype()
        case _Global(), (str() as text, "latin1") if function == ENCODE:
            return text
    raise ValueError("it makes something else than arrays of bytes")


def _build(target: Any, state: Any) -> None:
    """Give an array its shape and bytes; the state of a dtype u1 holds nothing new."""
    match target, state:
        case _Array(), (1, (int(), int()) as shape, _Dtype(), False, str() as values):
            target.values = np.frombuffer(values.encode("latin-1"), np.uint8).reshape(shape)
        case _Dtype(), tuple():
            pass
        case _:
            raise ValueError("it holds something else than arrays of bytes")
