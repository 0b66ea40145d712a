"""CorrectionLoss: cross entropy corrected by a transition matrix T of the labels (Patrini et al. 2017).

    FORWARD   top = sum_i -log sum_k q_k T[k, y] / S               q: the softmax
    BACKWARD  top = sum_i -sum_k inverse(T)[y, k] log q_k / S

T[i, j] is the probability that an example of class i is labelled j. Its C * C numbers stand row by row in
`transition`, or in the text file `source`: a line for each row, with blanks or commas between the numbers; a
line that begins with # is a comment. arXiv 1609.03683; see ForwardCorrection and BackwardCorrection in
losses/of_all_classes.py. Bottoms, top and S: see label_loss.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from imae.files.errors import LossError
from imae.files.read import read_bytes
from imae.layers.plugins.label_loss import LabelLoss
from imae.layers.registry import register_layer
from imae.losses import BackwardCorrection, ForwardCorrection
from imae.prototxt.caffe_pb2 import CorrectionLossParameter


@register_layer("CorrectionLoss")
class CorrectionLoss(LabelLoss):
    field = "correction_loss_param"

    def make_loss(self) -> ForwardCorrection | BackwardCorrection:
        param = self.param.correction_loss_param
        if bool(param.source) == bool(param.transition):
            raise LossError("transition must be given, or source, the file that has it; not both")
        matrix = rows_of_file(param.source) if param.source else rows_of_numbers(param.transition)
        backward = param.direction == CorrectionLossParameter.BACKWARD
        return BackwardCorrection(matrix) if backward else ForwardCorrection(matrix)


def rows_of_numbers(numbers: Sequence[float]) -> list[Sequence[float]]:
    """The rows of a square matrix; LossError if the numbers make none."""
    size = math.isqrt(len(numbers))
    if size * size != len(numbers):
        raise LossError(f"transition must have C * C numbers, row by row, got {len(numbers)}")
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def rows_of_file(path: str) -> list[list[float]]:
    """The rows of a text file; LossError where it cannot be read or has something else than numbers."""
    try:
        lines = read_bytes(path).decode().splitlines()
    except OSError as error:
        raise LossError(f"source: cannot read '{path}': {error.strerror}") from None
    except UnicodeDecodeError:
        raise LossError(f"source: '{path}' is no text") from None
    rows: list[list[float]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            rows.append([float(word) for word in line.replace(",", " ").split()])
        except ValueError:
            raise LossError(f"source: '{path}', line {number}: expected numbers, got {line[:60]!r}") from None
    for row in rows:
        if len(row) != len(rows):
            raise LossError(
                f"source: '{path}' must have as many numbers in each row as rows; it has {len(rows)} rows, "
                f"one with {len(row)} numbers"
            )
    return rows
