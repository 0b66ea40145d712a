"""The tolerances of all tests, with their reasons: (what, dtype) -> rtol, atol.

atol is relative to the largest expected value. torch and its libraries sum in an order that depends on the
processor and the number of threads. So their results in single precision are compared with double precision,
to within `sum_rounding`, which holds for any order.
"""

import math
from typing import NamedTuple

# Half the distance from 1 to the next number in single precision: the largest relative error of one rounding.
UNIT = 2**-24


class Tolerance(NamedTuple):
    rtol: float
    atol: float
    reason: str


TOLERANCES = {
    ("golden", "float32"): Tolerance(
        1e-4, 1e-5, "recorded by Caffe in single precision with another summation order"
    ),
    ("moved", "float32"): Tolerance(0, 0, "values are only moved"),
    ("stream", "float32"): Tolerance(0, 2e-7, "the recording build fused the last multiply and add"),
    ("same arithmetic", "float32"): Tolerance(1e-5, 1e-6, "the same sums in another order"),
    ("gradient", "float64"): Tolerance(1e-5, 1e-7, "central differences of step 1e-6"),
    ("formula", "float32"): Tolerance(1e-6, 1e-6, "about ten roundings"),
    ("formula", "float64"): Tolerance(1e-12, 1e-12, "about ten roundings and the cancellation of 1 - p"),
    ("example weight", "float32"): Tolerance(1e-6, 0, "an exponential; the exponent is at most 4"),
    ("authors' layer", "float32"): Tolerance(1e-6, 0, "1e-6 as a field is off by 3e-8; T is exact"),
    ("integral", "float64"): Tolerance(1e-12, 0, "a quadrature rule that converges far beyond this"),
    ("drawn share", "float32"): Tolerance(0, 0.015, "four standard deviations of a share of 20,000 draws"),
    ("onnx", "float32"): Tolerance(1e-4, 1e-5, "ONNX Runtime's kernels sum in another order"),
    ("resized", "float32"): Tolerance(
        0, 0.01, "one of eight of some hundred pixels is a grey level of 255 away; twice what was measured"
    ),
    ("grey level", "uint8"): Tolerance(
        0, 1 / 255, "one of 255 levels: OpenCV rounds a resized pixel as it was built for the processor"
    ),
    ("runtimes", "float32"): Tolerance(
        0, 1e-4, "other programs' kernels, of Winograd's algorithm among them; measured up to 8e-6"
    ),
    ("quantized in another runtime", "float32"): Tolerance(
        0.5, 1e-4, "of the distance from the net in ONNX Runtime: each program rounds in other places"
    ),
    ("accuracy when quantized", "float32"): Tolerance(
        0, 0.01, "a point is what a quantized model may lose; measured 0"
    ),
    ("fused", "float32"): Tolerance(
        1e-3, 1e-4, "as for Caffe's nets with BatchNorm in a small batch: small differences"
    ),
    ("weights in bfloat16", "float32"): Tolerance(
        2e-3, 0, "L2 distance by L2 norm, after two updates; 8 bits of mantissa in each blob between layers"
    ),
    ("history in bfloat16", "float32"): Tolerance(
        0.2,
        0,
        "the same for diffs of 8 images, which nearly cancel: 0.12 ± 0.015 over 10 seeds, plus 5 of these",
    ),
    ("loss in bfloat16", "float32"): Tolerance(0.01, 0, "the logits have 8 bits of mantissa"),
    ("rounded once", "bfloat16"): Tolerance(
        2**-8, 0, "half the distance from 1 to the next of 8 bits: the largest relative error of one rounding"
    ),
    ("fast way", "float64"): Tolerance(0, 1e-11, "the same sums in another order"),
    ("statistics", "float32"): Tolerance(
        0,
        16 * UNIT,
        "19 layers that each round four numbers of a channel: twice sqrt(4 * 19) roundings",
    ),
    ("kernel", "float32"): Tolerance(
        0,
        1e-6,
        "our kernels sum at most some hundred numbers in single precision, in one order on any processor",
    ),
    ("kernel", "float64"): Tolerance(0, 1e-12, "the same sums in another order"),
    ("near-tie", "float32"): Tolerance(0, 1e-5, "a ReLU's bottom whose values are only rounding errors"),
    ("trajectory", "float32"): Tolerance(1e-4, 1e-5, "seven updates in single precision against double"),
    ("printed", "float32"): Tolerance(1e-5, 0, "printed with 6 digits"),
    ("logged", "float32"): Tolerance(1e-4, 1e-6, "two updates, printed with 6 digits"),
    ("same decisions", "float32"): Tolerance(
        1e-3, 0, "a run, while every near-tie of a max pooling or a ReLU is decided as in Caffe"
    ),
    ("before a near-tie", "float32"): Tolerance(
        1e-4, 0, "rounding adds up to 2e-5 in 200 updates; a near-tie that is decided differently moves 1e-3"
    ),
    ("run", "float32"): Tolerance(
        0, 5e-3, "hundreds of updates; with other BLAS kernels Caffe's own run moves by 3e-3"
    ),
    ("weights after a run", "float32"): Tolerance(0, 2e-2, "as for a run"),
    ("history after a run", "float32"): Tolerance(
        0, 0.13, "the same; a run that decides near-ties like Caffe with other BLAS kernels ends 0.126 away"
    ),
    ("weights on a GPU", "float32"): Tolerance(1e-4, 0, "L2 distance after one update; other sums"),
    ("history on a GPU", "float32"): Tolerance(1e-2, 0, "the same of diffs, which nearly cancel"),
    ("weights recorded", "float32"): Tolerance(1e-6, 0, "the same kernels; some add in no fixed order"),
    ("history recorded", "float32"): Tolerance(1e-4, 0, "the same of diffs"),
    ("notebook", "float32"): Tolerance(1e-3, 0, "sums in another order, printed with few digits"),
    ("trained in a notebook", "float32"): Tolerance(
        0, 0.1, "an accuracy on 297 digits after hundreds of updates: another processor, another near-tie"
    ),
}


def tolerance(what: str, dtype: str = "float32") -> Tolerance:
    return TOLERANCES[what, dtype]


def sum_rounding(terms: int, layers: int = 1) -> float:
    """The allowed relative error of a sum of products in single precision: 2 u sqrt(n).

    If the products are added one after another, each of the n partial sums is rounded by up to u = UNIT of
    itself, up or down at random. The errors form a random walk of 0.4 u sqrt(n) on average; five times that
    occurs once in a million sums. Several layers in sequence add their errors: 2 u sqrt(n layers).
    """
    return 2 * UNIT * math.sqrt(terms * layers)
