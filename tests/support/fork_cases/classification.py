"""Axpy, DepthwiseConvolution, ReLU6 and other small layers of classification nets."""

from case_types import Case
from single_layer import normal

X = normal(2, 3, 4, 6)

CASES = {
    "Axpy": Case("", (normal(2, 3, seed=1), X, normal(2, 3, 4, 6, seed=2)), (0, 1, 2)),
}
