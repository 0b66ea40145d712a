"""A folder of class folders, or a .tar archive of one, into an LMDB.

    imae convert-folder cifar10.tar.xz train_lmdb --subfolder train --pad 4 --shuffle 1

Pictures are SOURCE/CLASS/PICTURE. Classes are labelled in the order of their names, or as --classes says; the
records follow by class, then by name, under the keys %08d_CLASS/PICTURE. Channels are BGR.

Labels that were collected for the pictures in another order, human ones for instance, need that order again:
--class-sequence gives the class of each record, and the pictures of a class are taken by name. Where names do
not have that order, --within-class gives it: an .npz with an array for each class, whose number k is the
place, among the sorted names of the class, of the picture that comes k-th.
"""

import argparse
import logging
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from imae.converters.file_tree import FileTree, open_tree
from imae.converters.images import (
    Picture,
    PictureForm,
    add_image_options,
    add_picture_options,
    encoded_datum,
    raw_datum,
    shuffled_order,
)
from imae.converters.label_file import (
    FORMS,
    Labels,
    check_range,
    clean_labels_file,
    read_label_arrays,
    read_labels,
)
from imae.converters.lmdb_writer import Record, write_lmdb
from imae.prototxt.errors import DataError
from imae.prototxt.files import is_own_pipe, read_bytes

COMMAND = "convert-folder"
HELP = "a folder (or .tar archive) of class folders with pictures to an LMDB"

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp")
LARGEST_PICTURE = 256 << 20  # bytes of a file

logger = logging.getLogger(__name__)


def find_pictures(names: Iterable[str], classes: Sequence[str] = ()) -> list[Picture]:
    """The pictures among these files, by class and name. Without `classes`, these are the folders by name.

    DataError if there are none, if one is not in a class folder, or if the folders are not the `classes`.
    """
    found, others = [], 0
    for name in names:
        if not name.lower().endswith(EXTENSIONS):
            others += 1
        elif name.count("/") != 1:
            raise DataError(
                f"the picture '{name}' does not lie in a class folder (CLASS/PICTURE); is a subfolder meant?"
            )
        else:
            found.append(name)
    if not found:
        raise DataError(f"there are no pictures ({', '.join(EXTENSIONS)}) among the {others} files")
    if others:
        logger.info("Ignoring %d files that are no pictures.", others)
    folders = sorted({name.partition("/")[0] for name in found})
    if classes and (
        unlike := set(classes) ^ set(folders) or [c for c, n in Counter(classes).items() if n > 1]
    ):
        raise DataError(
            f"the classes must be the folders with pictures, each once; "
            f"these are not: {', '.join(sorted(unlike))}"
        )
    labels = {name: label for label, name in enumerate(classes or folders)}
    logger.info("A total of %d images in %d classes.", len(found), len(labels))
    return sorted(
        (Picture(name, labels[name.partition("/")[0]]) for name in found), key=lambda p: (p.label, p.name)
    )


def arrange_within(pictures: Sequence[Picture], places: Mapping[str, Labels]) -> list[Picture]:
    """The pictures of each class in the order of `places`, by class folder: place k is that of the k-th."""
    of_class: dict[str, list[Picture]] = {}
    for picture in pictures:
        of_class.setdefault(picture.name.partition("/")[0], []).append(picture)
    found = []
    for name, there in of_class.items():
        order = places.get(name)
        if order is None:
            raise DataError(f"--within-class has no array '{name}'; it has {', '.join(places) or 'none'}")
        if sorted(order.tolist()) != list(range(len(there))):
            raise DataError(
                f"--within-class: the array '{name}' must hold the places 0 to {len(there) - 1} of the "
                f"{len(there)} pictures of that class, each once; it has {len(order)} numbers"
            )
        found += [there[place] for place in order.tolist()]
    return found


def arrange(pictures: Sequence[Picture], sequence: Labels) -> list[Picture]:
    """The pictures so that their labels are `sequence`, those of a class in their old order."""
    wanted, there = Counter(sequence.tolist()), Counter(picture.label for picture in pictures)
    for label in sorted(wanted | there):
        if wanted[label] != there[label]:
            raise DataError(
                f"the class sequence has label {label} {wanted[label]} times; "
                f"there are {there[label]} such pictures"
            )
    of_class: dict[int, deque[Picture]] = {}
    for picture in pictures:
        of_class.setdefault(picture.label, deque()).append(picture)
    return [of_class[label].popleft() for label in sequence.tolist()]


def folder_records(tree: FileTree, pictures: Sequence[Picture], form: PictureForm) -> Iterator[Record]:
    """The pictures as raw Datums, or as the files are if encoded; DataError for what is no picture."""
    for place, picture in enumerate(pictures):
        data = tree.read(picture.name, LARGEST_PICTURE)
        pixels = form.pixels(data, f"'{picture.name}'")
        datum = (
            encoded_datum(data, picture.label) if form.encoded else raw_datum(pixels, picture.label, form.pad)
        )
        yield record_key(place, picture), datum


def record_form(args: argparse.Namespace) -> PictureForm:
    """The form of `folder_records`; DataError where the options contradict each other."""
    form = PictureForm.chosen(args)
    if form.encoded and any(form._replace(encoded=False)):
        raise DataError("--encoded stores the files as they are; leave out --gray, --resize-... and --pad")
    if bool(form.height) != bool(form.width):
        raise DataError("resizing needs both --resize-height and --resize-width")
    return form


def record_key(place: int, picture: Picture) -> bytes:
    return b"%08d_%s" % (place, os.fsencode(picture.name))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="folder, or .tar, .tar.gz, .tar.bz2, .tar.xz archive")
    parser.add_argument("output", help="LMDB to write")
    parser.add_argument(
        "--subfolder", default="", metavar="PATH", help="where in SOURCE the class folders are"
    )
    parser.add_argument(
        "--classes",
        default="",
        metavar="A,B,..|FILE",
        help="class folders in the order of their labels, or a file of it",
    )
    parser.add_argument(
        "--class-sequence", metavar="FILE", help=f"order by the class of each record: {FORMS}"
    )
    parser.add_argument(
        "--within-class", metavar="FILE.npz", help="order of the pictures of each class, an array for each"
    )
    parser.add_argument(
        "--labels", metavar="FILE", help=f"other labels, in the order of the unshuffled records: {FORMS}"
    )
    add_picture_options(parser)
    add_image_options(parser, "the images")


def run(args: argparse.Namespace) -> None:
    form = record_form(args)
    with open_tree(args.source, args.subfolder) as tree:
        pictures = find_pictures(tree.names, read_classes(args.classes))
        if args.within_class:
            pictures = arrange_within(pictures, read_label_arrays(args.within_class))
        if args.class_sequence:
            pictures = arrange(pictures, read_labels(args.class_sequence).labels)
        clean = np.array([picture.label for picture in pictures])
        labels = _other_labels(args.labels, clean) if args.labels else clean
        order = shuffled_order(len(pictures), args.shuffle)
        chosen = [Picture(pictures[i].name, int(labels[i])) for i in order]
        keep_clean: AbstractContextManager[None] = nullcontext()
        if args.labels:
            keys = [record_key(place, picture) for place, picture in enumerate(chosen)]
            keep_clean = clean_labels_file(
                args.output, keys, clean[order], labels[order], {"labels": args.labels}
            )
        with keep_clean:
            write_lmdb(args.output, folder_records(tree, chosen, form), len(chosen))


def read_classes(text: str) -> list[str]:
    """The classes in a text A,B,.. or, if that names a file, in its lines."""
    if not os.path.isfile(text) and not is_own_pipe(text):
        return [name for name in text.split(",") if name]
    try:
        lines = read_bytes(text).decode().replace("\r", "\n").split("\n")
        return [line.strip() for line in lines if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the classes '{text}': {error}") from error


def _other_labels(source: str, clean: Labels) -> Labels:
    labels = read_labels(source).labels
    if len(labels) != len(clean):
        raise DataError(f"'{source}' has {len(labels)} labels; there are {len(clean)} pictures")
    check_range(labels, int(clean.max()) + 1, f"'{source}'")
    logger.info("%d of %d labels differ from the pictures' classes.", np.sum(labels != clean), len(clean))
    return labels
