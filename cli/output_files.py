"""The files that a command writes, checked before it computes: none is another one, or one that it reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from imae.files.errors import FileError
from imae.files.read import AnyPath


def check_output_files(outputs: Mapping[str, AnyPath | None], inputs: Iterable[AnyPath | None]) -> None:
    """FileError where a file cannot be what an option says.

    outputs   option -> the file that it names; None and "-" name none
    inputs    the files that the command reads
    """
    read = {os.path.realpath(path) for path in inputs if path is not None and "\0" not in os.fsdecode(path)}
    options: dict[str, str] = {}
    for option, path in outputs.items():
        if path is None or path == "-" or "\0" in os.fsdecode(path):
            continue
        name, target = os.fsdecode(path), os.path.realpath(path)
        if os.path.isdir(target):
            raise FileError(f"cannot write '{name}': it is a folder; give {option} the name of a file")
        if target in read:
            raise FileError(
                f"cannot write '{name}': {option} would replace a file that is read; give another name"
            )
        if target in options:
            raise FileError(f"{option} and {options[target]} are both '{name}'; give each a file of its own")
        if not Path(target).parent.is_dir():
            raise FileError(f"cannot write '{name}': there is no folder '{Path(name).parent}'")
        options[target] = option
