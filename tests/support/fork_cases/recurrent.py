"""Lstm of caffe-lstm."""

import torch
from case_types import Case, Change, within
from single_layer import normal

CASES = {
    "Lstm": Case(
        'lstm_param { num_output: 3 batch_size: 2 weight_filler { type: "uniform" } }',
        (normal(6, 5), torch.tensor([0.0, 1, 1, 0, 1, 1])),
    )
}
CHANGES = within("lstm_param", {"batch_size": Change([1, 3]), "clipping_threshold": Change([0.01])})
