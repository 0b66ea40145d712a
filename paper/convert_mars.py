"""Write the images of the MARS benchmark into an LMDB.

A training label is the person's index among the persons in ascending order, 0 to 624. A test label is the
person's number. Keys are %08d_PPPP/NAME with the index in the order. Raw Datums are BGR.
"""

from __future__ import annotations

import numpy as np

from imae.converters.convert_folder import check_stored_form, folder_records
from imae.converters.images import Picture, PictureForm, shuffled_order
from imae.converters.lmdb_writer import write_lmdb
from imae.files.errors import DataError
from imae.files.file_tree import open_tree
from imae.files.read import AnyPath
from imae.paper.mars import Part, find_images, order_images, read_part


def convert_mars(
    protocol: AnyPath,
    images: AnyPath,
    output: AnyPath,
    part: Part = "train",
    form: PictureForm = PictureForm(),  # noqa: B008  # a tuple
    *,
    shuffle: int | None = None,
) -> None:
    """Write the images of one part of the benchmark into an LMDB, labelled by person.

    protocol   folder of tracks_train_info.mat and, if there is one, train_name.txt (or the files for test)
    images     folder bbox_train (bbox_test), or a .tar archive of its contents
    form       how images are stored
    shuffle    seed of the order of the records; None: the protocol's order

    DataError for images that are not the protocol's, and for a form that contradicts itself.
    """
    check_stored_form(form)
    tracklets = read_part(protocol, part)
    labels = tracklets.person
    if part == "train":
        if labels.min() < 1:
            raise DataError(f"'{protocol}': the persons to train with must be 1 or more, got {labels.min()}")
        labels = np.unique(labels, return_inverse=True)[1]
    labels = np.repeat(labels, tracklets.end - tracklets.begin)
    with open_tree(images) as tree:
        paths = find_images(tree.names)
        names = order_images(paths, protocol, part, tracklets, f"'{images}'")
        order = shuffled_order(len(names), shuffle)
        pictures = [Picture(paths[names[i]], int(labels[i])) for i in order]
        write_lmdb(output, folder_records(tree, pictures, form), len(pictures))
