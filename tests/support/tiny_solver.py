"""A solver that ends within moments: a net on random data, and prototxts of both in the working directory."""

from __future__ import annotations

from pathlib import Path

DATA = """
layer { name: "data" type: "DummyData" top: "data" top: "label"
        dummy_data_param { shape { dim: 4 dim: 3 } shape { dim: 4 }
                           data_filler { type: "gaussian" } data_filler { type: "constant" value: 1 } } }
"""
FIVE_OUTPUTS = """
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
"""
LOSS = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "a" bottom: "label" top: "loss" }\n'
TINY_NET = DATA + FIVE_OUTPUTS + LOSS
# The solver of `net.prototxt`, without max_iter.
TINY_SOLVER = """
net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 random_seed: 1 snapshot_prefix: "s"
display: 1 snapshot: 2
"""
FILES = {"net.prototxt", "solver.prototxt"}


def write_solver(solver: str, net: str = TINY_NET) -> None:
    """Write both prototxts into the working directory."""
    Path("net.prototxt").write_text(net)
    Path("solver.prototxt").write_text(solver)


def made_files(folder: Path) -> set[str]:
    """The names in a folder, apart from those two prototxts."""
    return {path.name for path in folder.iterdir()} - FILES
