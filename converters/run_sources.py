"""The images that a person names: files, folders, globs, lists; and their labels, where these are known.

    cat.jpg        an image file
    img            a folder: all images in it and its subfolders, sorted by path
    'img/*.jpg'    a pattern that the shell has left as it is; ** matches folders of any depth
    val.txt        a list (.txt, .lst, .list), lines of a path and perhaps a label, as Caffe's ImageData reads
                   it. Paths are relative to the list's folder, or to --root-folder

An image in a subfolder of a named folder, img/cat/1.jpg, has the label of its class folder (cat), if that is
known: see `folder_labels`.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from imae.files.errors import DataError
from imae.files.file_kinds import mistaken_for
from imae.files.nearest import did_you_mean
from imae.files.read import AnyPath, file_size, open_to_read

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
LISTS = (".txt", ".lst", ".list")
LARGEST_LIST = 1 << 28  # bytes: several million images
WILDCARD = re.compile(r"[*?[]")
SYNSET = re.compile(r"(n\d{8})\s+(.*)", re.DOTALL)


class ImageFile(NamedTuple):
    """An image file.

    path    as it is opened, and named in results
    label   the number of its class; None: not known
    inside  its path inside the folder, or the list, that was named
    """

    path: str
    label: int | None = None
    inside: str = ""


@dataclass
class ImageFiles:
    """images, in their order; notes, lines for the user."""

    images: list[ImageFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_images(
    arguments: Sequence[AnyPath],
    names: Mapping[int, str] | None = None,
    num_classes: int | None = None,
    root_folder: AnyPath | None = None,
    *,
    class_folders: bool = True,
    skip_bad: bool = False,
) -> ImageFiles:
    """All images that these files, folders, patterns and lists name; DataError where one does not exist.

    names        of the model's classes, for class folders
    num_classes  of the model; None: not known
    root_folder  of the paths in lists; None: the list's own folder
    class_folders
                 whether the folders of images are taken for their classes
    skip_bad     an argument that does not exist is no error here, but is no image later
    """
    found = ImageFiles()
    folders: set[str] = set()
    for argument in _expanded(arguments, skip_bad):
        if os.path.isdir(argument):
            inner = sorted(_images_in(argument))
            if not inner:
                raise DataError(f"there are no images ({', '.join(SUFFIXES)}) in the folder '{argument}'")
            folders.update(path.partition("/")[0] for path in inner if "/" in path)
            found.images += [ImageFile(os.path.join(argument, path), None, path) for path in inner]
        elif argument.lower().endswith(LISTS):
            found.images += _listed(argument, root_folder)
        else:
            found.images.append(ImageFile(argument))
    if not folders or not class_folders:
        return found
    labels, note = folder_labels(sorted(folders), names or {}, num_classes)
    found.notes.append(note)
    found.images = [
        image if "/" not in image.inside or image.label is not None
        else image._replace(label=labels.get(image.inside.partition("/")[0]))
        for image in found.images
    ]  # fmt: skip
    return found


def _expanded(arguments: Iterable[AnyPath], skip_bad: bool) -> Iterable[str]:
    """The arguments, with patterns replaced by what they match; DataError for what does not exist."""
    for argument in map(os.fsdecode, arguments):
        if os.path.exists(argument) or (skip_bad and not WILDCARD.search(argument)):
            yield argument
        elif WILDCARD.search(argument):
            matches = sorted(glob.glob(argument, recursive=True))
            if not matches:
                raise DataError(f"no file matches '{argument}'")
            yield from matches
        else:
            raise DataError(f"there is no image, folder or list '{argument}'{_nearest(argument)}")


def _nearest(path: str) -> str:
    folder, name = os.path.split(path)
    try:
        return did_you_mean(name, os.listdir(folder or "."))
    except (OSError, ValueError):
        return f"; there is no folder '{folder}'"


def _images_in(folder: str) -> Iterable[str]:
    """The paths of the images in a folder and its subfolders, relative to it; links to folders are left out.

    DataError where a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read the folder '{error.filename}': {error.strerror}") from None

    for place, _, files in os.walk(folder, onerror=refuse):
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(os.path.relpath(os.path.join(place, name), folder)).as_posix()


def _listed(path: str, root_folder: AnyPath | None) -> list[ImageFile]:
    """The images of a list; DataError where it cannot be read, or is empty."""
    try:
        with open_to_read(path) as file:
            if (size := file_size(file)) > LARGEST_LIST:
                raise DataError(f"the list '{path}' has {size} bytes; at most {LARGEST_LIST} are read")
            data = file.read(size)
    except OSError as error:
        raise DataError(f"cannot read the list '{path}': {error.strerror or error}") from None
    if mistaken := mistaken_for(data):
        raise DataError(f"the list '{path}': expected lines of a path and a label{mistaken}")
    root = os.path.dirname(path) if root_folder is None else os.fsdecode(root_folder)
    images = []
    for number, line in enumerate(data.split(b"\n"), 1):
        text = line.strip().decode(errors="surrogateescape")
        if not text:
            continue
        name, _, word = text.rpartition(" ")
        label = int(word) if name and re.fullmatch(r"[+-]?\d{1,10}", word, re.ASCII) else None
        name = text if label is None else name.strip()
        if "\0" in name:
            raise DataError(f"{path}:{number}: there is a zero byte in the path")
        images.append(ImageFile(os.path.join(root, name), label, Path(name).as_posix()))
    if not images:
        raise DataError(f"the list '{path}' is empty; it must have lines of a path and a label")
    missing = [image.path for image in images if not os.path.exists(image.path)]
    if len(missing) == len(images):
        raise DataError(
            f"the list '{path}': there is no '{missing[0]}', nor another of its {len(images)} images; give "
            "--root-folder, the folder to which its paths are relative"
        )
    return images


def folder_labels(
    folders: Sequence[str], names: Mapping[int, str], num_classes: int | None
) -> tuple[dict[str, int], str]:
    """The labels of class folders, sorted by name, and a line that says how they were found.

    By the names of the model's classes: the whole name, a synset (n02123045), or one of several names with
    commas between them. Where no folder is a name: if the folders are numbers, by these; if there are as many
    folders as classes, in the order of their names, as convert-folder labels them. Else there are no labels.

    DataError where numbers and order of the names say different labels.
    """
    by_name = _labels_by_name(names)
    known = {name: by_name[key] for name in folders if (key := _key(name)) in by_name}
    if known:
        unknown = [name for name in folders if name not in known]
        line = f"labels: by the names of {len(known)} class folders"
        if unknown:
            line += f"; no class is called {_some(unknown)}: these images have no label"
        return known, line
    in_order = {name: label for label, name in enumerate(folders)}
    if all(re.fullmatch(r"\d{1,9}", name, re.ASCII) for name in folders):
        numbers = {name: int(name) for name in folders}
        if len(folders) != num_classes or numbers == in_order:
            return numbers, f"labels: the class folders' numbers, {_some(folders)}"
        raise DataError(
            f"the class folders {_some(folders)} are numbers, and their order by name gives other labels; "
            "give --labels with the folders' names, one a line in the order of the labels"
        )
    if num_classes is None or len(folders) == num_classes:
        order = _some([f"{label} {name}" for name, label in in_order.items()])
        return in_order, f"labels: by the sorted names of the {len(folders)} class folders: {order}"
    return {}, (
        f"no labels: the folders {_some(folders)} are no names of classes, and the model has {num_classes} "
        f"classes, not {len(folders)}; give --labels for the accuracy"
    )


def _labels_by_name(names: Mapping[int, str]) -> dict[str, int]:
    """The label of each name and each part of a name, without those that several classes have."""
    labels: dict[str, set[int]] = {}
    for label, name in names.items():
        synset = SYNSET.fullmatch(name)
        words = synset[2] if synset else name
        parts = [name, words, *words.split(","), *([synset[1]] if synset else [])]
        for part in parts:
            labels.setdefault(_key(part), set()).add(label)
    return {key: min(several) for key, several in labels.items() if len(several) == 1 and key}


def _key(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def _some(words: Sequence[str], most: int = 5) -> str:
    """The first words of many."""
    return ", ".join(words[:most]) + (f", ... ({len(words)})" if len(words) > most else "")
