"""A folder of class folders, or a .tar archive of one, into an LMDB.

Images are SOURCE/CLASS/IMAGE. Classes are labelled in the order of their names, or in a given order. The
records are sorted by class, then by name, and have the keys %08d_CLASS/IMAGE. Channels are BGR.

Labels that were collected for the images in another order, such as human labels, need that order again: a
class sequence gives the class of each record, and the images of a class follow by name. Where the order
within a class is not that of the names, an .npz gives it: an array for each class, whose number k is the
place of the k-th image among the sorted names of the class.
"""

import logging
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from imae.converters.images import (
    Picture,
    PictureForm,
    encoded_datum,
    raw_datum,
    shuffled_order,
)
from imae.converters.label_file import (
    Labels,
    check_range,
    clean_labels_file,
    read_label_arrays,
    read_labels,
)
from imae.converters.lmdb_writer import Record, write_lmdb
from imae.files.errors import DataError
from imae.files.file_tree import FileTree, open_tree
from imae.files.read import AnyPath

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp")
LARGEST_PICTURE = 256 << 20  # bytes of a file

logger = logging.getLogger(__name__)


def convert_folder(
    source: AnyPath,
    output: AnyPath,
    form: PictureForm = PictureForm(),  # noqa: B008  # a tuple
    *,
    subfolder: str = "",
    classes: Sequence[str] = (),
    class_sequence: str = "",
    within_class: str = "",
    labels: str = "",
    shuffle: int | None = None,
) -> None:
    """Write the images of a folder or archive into an LMDB.

    form             how images are decoded and stored
    subfolder        where in the source the class folders are
    classes          the class folders in the order of their labels; empty: sorted by name
    class_sequence   label file with the class of each record; it gives the order of the images
    within_class     .npz with the order of the images of each class
    labels           label file: other labels, in the order of the unshuffled records; the clean ones are
                     then kept beside the LMDB
    shuffle          seed of the order of the records; None: not shuffled

    DataError for a file that is no image, for classes, orders or labels that do not fit the images, and for a
    form that contradicts itself.
    """
    check_stored_form(form)
    with open_tree(source, subfolder) as tree:
        pictures = find_pictures(tree.names, classes)
        if within_class:
            pictures = arrange_within(pictures, read_label_arrays(within_class))
        if class_sequence:
            pictures = arrange(pictures, read_labels(class_sequence).labels)
        clean = np.array([picture.label for picture in pictures])
        new_labels = _other_labels(labels, clean) if labels else clean
        order = shuffled_order(len(pictures), shuffle)
        chosen = [Picture(pictures[i].name, int(new_labels[i])) for i in order]
        keep_clean: AbstractContextManager[None] = nullcontext()
        if labels:
            keys = [record_key(place, picture) for place, picture in enumerate(chosen)]
            keep_clean = clean_labels_file(output, keys, clean[order], new_labels[order], {"labels": labels})
        with keep_clean:
            write_lmdb(output, folder_records(tree, chosen, form), len(chosen))


def find_pictures(names: Iterable[str], classes: Sequence[str] = ()) -> list[Picture]:
    """The images among these files, by class and name. Without `classes`, the classes are the sorted folders.

    DataError if there are none, if one is not in a class folder, or if the folders are not the `classes`.
    """
    image_names, others = [], 0
    for name in names:
        if not name.lower().endswith(EXTENSIONS):
            others += 1
        elif name.count("/") != 1:
            raise DataError(
                f"the image '{name}' does not lie in a class folder (CLASS/IMAGE); is a subfolder meant?"
            )
        else:
            image_names.append(name)
    if not image_names:
        raise DataError(f"there are no images ({', '.join(EXTENSIONS)}) among the {others} files")
    if others:
        logger.info("Ignoring %d files that are no images.", others)
    folders = sorted({name.partition("/")[0] for name in image_names})
    if classes and (
        unlike := set(classes) ^ set(folders) or [c for c, n in Counter(classes).items() if n > 1]
    ):
        raise DataError(
            f"the classes must be the folders with images, each once; "
            f"these are not: {', '.join(sorted(unlike))}"
        )
    labels = {name: label for label, name in enumerate(classes or folders)}
    logger.info("A total of %d images in %d classes.", len(image_names), len(labels))
    return sorted(
        (Picture(name, labels[name.partition("/")[0]]) for name in image_names),
        key=lambda p: (p.label, p.name),
    )


def arrange_within(pictures: Sequence[Picture], places: Mapping[str, Labels]) -> list[Picture]:
    """The images of each class reordered: number k of `places[CLASS]` is the place of the k-th image."""
    of_class: dict[str, list[Picture]] = {}
    for picture in pictures:
        of_class.setdefault(picture.name.partition("/")[0], []).append(picture)
    arranged = []
    for name, there in of_class.items():
        order = places.get(name)
        if order is None:
            raise DataError(f"--within-class has no array '{name}'; it has {', '.join(places) or 'none'}")
        if sorted(order.tolist()) != list(range(len(there))):
            raise DataError(
                f"--within-class: the array '{name}' must hold the places 0 to {len(there) - 1} of the "
                f"{len(there)} images of that class, each once; it has {len(order)} numbers"
            )
        arranged += [there[place] for place in order.tolist()]
    return arranged


def arrange(pictures: Sequence[Picture], sequence: Labels) -> list[Picture]:
    """The images ordered so that their labels are `sequence`; those of a class keep their order."""
    wanted, there = Counter(sequence.tolist()), Counter(picture.label for picture in pictures)
    for label in sorted(wanted | there):
        if wanted[label] != there[label]:
            raise DataError(
                f"the class sequence has label {label} {wanted[label]} times; "
                f"there are {there[label]} such images"
            )
    of_class: dict[int, deque[Picture]] = {}
    for picture in pictures:
        of_class.setdefault(picture.label, deque()).append(picture)
    return [of_class[label].popleft() for label in sequence.tolist()]


def folder_records(tree: FileTree, pictures: Sequence[Picture], form: PictureForm) -> Iterator[Record]:
    """The images as raw Datums, or as the files are if encoded; DataError for a file that is no image."""
    for place, picture in enumerate(pictures):
        data = tree.read(picture.name, LARGEST_PICTURE)
        pixels = form.pixels(data, f"'{picture.name}'")
        datum = (
            encoded_datum(data, picture.label) if form.encoded else raw_datum(pixels, picture.label, form.pad)
        )
        yield record_key(place, picture), datum


def check_stored_form(form: PictureForm) -> None:
    """DataError where the form contradicts itself for `folder_records`."""
    form.check()
    if form.encoded and any(form._replace(encoded=False)):
        raise DataError("--encoded stores the files as they are; leave out --gray, --resize-... and --pad")
    if bool(form.height) != bool(form.width):
        raise DataError("resizing needs both --resize-height and --resize-width")


def record_key(place: int, picture: Picture) -> bytes:
    return b"%08d_%s" % (place, os.fsencode(picture.name))


def _other_labels(source: str, clean: Labels) -> Labels:
    labels = read_labels(source).labels
    if len(labels) != len(clean):
        raise DataError(f"'{source}' has {len(labels)} labels; there are {len(clean)} images")
    check_range(labels, int(clean.max()) + 1, f"'{source}'")
    logger.info("%d of %d labels differ from the images' classes.", np.sum(labels != clean), len(clean))
    return labels
