"""Label noise that depends on the image: which labels are wrong, and how, follows from the pixels.

    q        ~ normal(rate, 0.1 ^ 2), cut off at 0 and 1     how likely an image's label is wrong
    p        = softmax over the other classes of x W[y]      which wrong label it then gets
    W[y]     (D, C), normal(0, 1)                            one for each class y
    x        (D,)                                            the pixels

This is how Xia et al. make instance-dependent noise for their experiments (Part-dependent Label Noise,
NeurIPS 2020, arXiv 2006.07836). Images are standardised before: the mean of each channel is subtracted, and
the values are divided by its standard deviation; both are those of the LMDB here. Because of the cut-off the
mean of q is not quite the rate: 0.129 for 0.1, 0.206 for 0.2, 0.400 for 0.4.

Differs: all random numbers are drawn whatever the rate is, and q and the labels are drawn through inverse
distribution functions. So a label that is wrong at a low rate is wrong, in the same way, at a higher one.
With rate 0 no label is wrong. A seed and a class give the same W[y], whatever the records.
"""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from imae.converters.label_file import Labels
from imae.files.errors import DataError
from imae.layers.data.datum import array_from_datum
from imae.layers.data.lmdb_source import LmdbSource

DEVIATION = 0.1  # of the rates of single images, as in the paper
LARGEST_WEIGHTS = 1 << 27  # numbers in the W of one class: 1 GiB
READ_AT_ONCE = 1024  # images

Pixels = NDArray[np.float64]
# The pixels of these records, (n, D), standardised.
ReadPixels = Callable[[NDArray[np.int64]], Pixels]


def instance_dependent(
    labels: Labels, classes: int, rate: float, random: np.random.RandomState, pixels: ReadPixels
) -> Labels:
    """Wrong labels that depend on the pixels; `pixels` reads those of some records."""
    # Drawn first: the weights depend on the seed, not on how many records there are.
    word = int(random.randint(0, 1 << 32, dtype=np.uint32))
    count = len(labels)
    wrong = random.random_sample(count)
    rates = image_rates(random.random_sample(count), rate)
    place = random.random_sample(count)
    noisy = labels.copy()
    for label in range(classes):
        rows = np.flatnonzero(labels == label)
        weights: Pixels | None = None
        for part in np.split(rows, range(READ_AT_ONCE, len(rows), READ_AT_ONCE)):
            if not len(part):
                continue
            x = pixels(part)
            if weights is None:
                if x.shape[1] * classes > LARGEST_WEIGHTS:
                    raise DataError(
                        f"instance noise needs {x.shape[1]} x {classes} weights for each class (values of an "
                        f"image x classes), {LARGEST_WEIGHTS} at most; use smaller images"
                    )
                # A stream for each class, so that a class without records changes nothing for the others.
                stream = np.random.RandomState([word, label])
                weights = stream.standard_normal((x.shape[1], classes))
            hit = wrong[part] < rates[part]
            noisy[part[hit]] = wrong_labels(x[hit] @ weights, label, place[part[hit]])
    return noisy


def image_rates(places: Pixels, rate: float) -> Pixels:
    """The probability that each image's label is wrong, from uniform numbers 0 to 1."""
    if rate == 0:
        return np.zeros(len(places))
    normal = NormalDist(rate, DEVIATION)
    low, high = normal.cdf(0), normal.cdf(1)
    # inv_cdf is for numbers between 0 and 1, without the ends.
    inside = np.clip(low + places * (high - low), 1e-300, 1 - 2**-53)
    return np.clip([normal.inv_cdf(place) for place in inside.tolist()], 0, 1)


def wrong_labels(scores: Pixels, label: int, places: Pixels) -> Labels:
    """Another label for each row of scores (n, C), by softmax; from uniform numbers 0 to 1."""
    scores = scores.copy()
    scores[:, label] = -np.inf
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    upto = np.cumsum(p, axis=1)
    chosen = (upto <= places[:, None] * upto[:, -1:]).sum(axis=1)
    # A place that rounding puts beyond the end takes the most likely class, which is never the label.
    drawn: Labels = np.where(chosen < scores.shape[1], chosen, scores.argmax(axis=1)).astype(np.int64)
    return drawn


def standardised_pixels(lmdb: LmdbSource) -> ReadPixels:
    """A reader of the pixels of records, each channel with mean 0 and standard deviation 1 over the LMDB.

    DataError for images of several sizes.
    """
    first = _image(lmdb, 0)
    count, total, squares = 0, np.zeros(len(first)), np.zeros(len(first))
    for row in range(len(lmdb)):
        image = _image(lmdb, row)
        if image.shape != first.shape:
            raise DataError(
                f"instance noise needs images of one size; {lmdb.record_name(lmdb.key(row))} has the shape "
                f"{image.shape}, the first one {first.shape}; make the LMDB with --resize_height and "
                "--resize_width"
            )
        values = image.reshape(len(first), -1).astype(np.float64)
        total += values.sum(axis=1)
        squares += (values**2).sum(axis=1)
        count += values.shape[1]
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    deviation[deviation == 0] = 1  # a channel of one value says nothing, and stays 0

    def read(rows: NDArray[np.int64]) -> Pixels:
        images = np.stack([_image(lmdb, row) for row in rows.tolist()]).astype(np.float64)
        images -= mean[:, None, None]
        images /= deviation[:, None, None]
        return images.reshape(len(rows), -1)

    return read


def _image(lmdb: LmdbSource, row: int) -> NDArray[np.generic]:
    """The image of a record, (C, H, W)."""
    return array_from_datum(lmdb.datum(row), lmdb.record_name(lmdb.key(row)))
