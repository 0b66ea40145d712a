"""A solver from its file, in one call; what `imae.Solver` is."""

from __future__ import annotations

from typing import Any

from imae.files.read import AnyPath
from imae.prototxt.dialects import read_solver_dialect
from imae.train import solver
from imae.train.options import Options


class Solver(solver.Solver):
    """A solver's prototxt, ready to train: `solve()`, or `step(iterations)`.

    path      the prototxt; paths in it are relative to the working directory, as in Caffe
    options   settings beside it: the device, bf16 ... (imae.train.options.Options)
    further   ranks, dtype and others, as for imae.train.solver.Solver

    solver_mode is not followed: options.device says where the nets compute. Snapshots are written as the
    prototxt says; `restore(state)` goes on from one, `net` is the train net, `test_nets` are those that test.
    An ImaeError where a file cannot be read or does not fit.

    >>> import imae
    >>> from pathlib import Path
    >>> _ = Path("train.prototxt").write_text('''
    ...     layer { name: "data" type: "DummyData" top: "x" top: "y"
    ...             dummy_data_param { shape { dim: 4 dim: 3 } shape { dim: 4 } data_filler { value: 1 } } }
    ...     layer { name: "fc" type: "InnerProduct" bottom: "x" top: "fc"
    ...             inner_product_param { num_output: 2 } }
    ...     layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "y" top: "loss" }
    ... ''')
    >>> _ = Path("solver.prototxt").write_text('''
    ...     net: "train.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 5 display: 1 snapshot_prefix: "s"
    ... ''')
    >>> solver = imae.Solver("solver.prototxt")
    >>> solver.step(1)
    >>> f"{solver.smoothed_loss:.4f}"
    '0.6931'
    >>> solver.solve()
    >>> solver.iteration, Path("s_iter_5.caffemodel").exists()
    (5, True)
    """

    def __init__(self, path: AnyPath, options: Options = Options(), **further: Any) -> None:  # noqa: B008
        super().__init__(read_solver_dialect(path, options.dialect), options, **further)
