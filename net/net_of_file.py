"""A net and its weights from their files, in one call; what `imae.Net` is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

from imae.files.errors import DataError
from imae.files.read import AnyPath
from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.net import net
from imae.net.weights import load_to_use
from imae.prototxt import TEST, TRAIN, NetState
from imae.prototxt.dialects import read_net_text
from imae.prototxt.state import in_state


class Net(net.Net):
    """The layers of a prototxt as Caffe runs them, data layers and losses included.

    model          the prototxt
    weights        a .caffemodel or .caffemodel.h5; None: the fillers' values
    phase          TEST or TRAIN
    level, stages  of the net's state
    dialect        the fork that wrote the files; None: Caffe
    random_seed    of fillers, crops, masks; None: another one each time
    dtype          of blobs and parameters

    `net(blobs)` runs all layers: inputs by name in, outputs by name out; blobs of the data layers come from
    them. `imae.load` is for the use of a net within PyTorch: tensors in, tensors out. An ImaeError where a
    file cannot be read or does not fit.

    >>> import imae, torch
    >>> from pathlib import Path
    >>> _ = Path("net.prototxt").write_text('''
    ...     layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
    ...     layer { name: "fc" type: "InnerProduct" bottom: "x" top: "fc"
    ...             inner_product_param { num_output: 4 } }
    ...     layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
    ... ''')
    >>> net = imae.Net("net.prototxt")
    >>> net.blob_shapes
    {'x': (2, 3), 'fc': (2, 4), 'prob': (2, 4)}
    >>> net({"x": torch.ones(2, 3)}, keep=["fc"])["prob"][0]
    tensor([0.2500, 0.2500, 0.2500, 0.2500], grad_fn=<SelectBackward0>)
    """

    def __init__(
        self,
        model: AnyPath,
        weights: AnyPath | None = None,
        phase: Literal["TRAIN", "TEST"] = "TEST",
        *,
        level: int = 0,
        stages: Iterable[str] = (),
        dialect: str | None = None,
        random_seed: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if phase not in ("TRAIN", "TEST"):
            raise DataError(f"phase must be TRAIN or TEST, got {phase!r}")
        number = TRAIN if phase == "TRAIN" else TEST
        state = NetState(phase=number, level=level, stage=stages)
        param = in_state(read_net_text(model, dialect, [] if weights is None else [weights]), number, state)
        super().__init__(param, Run(CaffeRandom(random_seed), dtype=dtype))
        if weights is not None:
            load_to_use(self, weights, dialect)
