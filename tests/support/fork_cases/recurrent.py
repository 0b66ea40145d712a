"""Lstm of caffe-lstm."""

from case_types import Case, Change, within
from single_layer import normal

CASES = {
    # Without flags, so that no pass goes on from the one before.
    "Lstm": Case(
        'lstm_param { num_output: 3 batch_size: 2 weight_filler { type: "uniform" } }', (normal(6, 5),)
    )
}
CHANGES = within("lstm_param", {"batch_size": Change([1, 3]), "clipping_threshold": Change([0.01])})
