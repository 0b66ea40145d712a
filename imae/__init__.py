"""Caffe prototxts, solvers and caffemodels made to live again on PyTorch.

    import imae
    net = imae.load("deploy.prototxt", "w.caffemodel")    # a torch.nn.Module that computes what Caffe did
    scores = net(images)

    imae.load       a net and its weights as a torch.nn.Module
    imae.Net        a net as Caffe runs it, with data layers and losses: imae.Net("net.prototxt")
    imae.Solver     trains what a solver's prototxt says: imae.Solver("solver.prototxt").solve()
    imae.Dataset    a Datum LMDB as a dataset of torch: imae.Dataset("train_lmdb")[0]
    imae.losses     the losses of label noise as torch modules: imae.losses.IMAE(t=8)(logits, labels)
    imae.pycaffe    Caffe's Python interface, with no Caffe (`import imae.pycaffe as caffe`)

The command `imae` trains, tests, exports and converts. The parts of the package (files, prototxt, losses,
layers, net, converters, train, paper, cli, pycaffe) are imported by their names:
`from imae.net.net import Net`.

`import imae` alone imports neither torch nor any part; the names above do, when they are first used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imae import losses as losses
    from imae.converters.datum_dataset import Dataset as Dataset
    from imae.converters.torch_module import load as load
    from imae.net.net_of_file import Net as Net
    from imae.train.solver_of_file import Solver as Solver

__version__ = "0.1.0"  # pyproject.toml has it from here
__all__ = ["load", "Net", "Solver", "Dataset", "losses", "__version__"]

# The modules of the names that are imported when they are first used.
_HOMES = {
    "load": "imae.converters.torch_module",
    "Net": "imae.net.net_of_file",
    "Solver": "imae.train.solver_of_file",
    "Dataset": "imae.converters.datum_dataset",
}

# In a checkout the parts lie beside this folder, in an installed package inside it. So a Python that is
# started in a checkout finds them, too.
if not Path(__file__).with_name("files").is_dir():
    __path__.append(str(Path(__file__).parents[1]))


def __getattr__(name: str) -> object:
    """What is imported when it is first used."""
    if home := _HOMES.get(name):
        globals()[name] = value = getattr(importlib.import_module(home), name)
        return value
    if name == "losses":
        return importlib.import_module("imae.losses")
    raise AttributeError(f"module 'imae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
