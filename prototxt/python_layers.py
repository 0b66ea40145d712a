"""Whether a prototxt may name Python layers, which make the process import and run code.

It may, as in Caffe, unless the environment variable IMAE_NO_PYTHON_LAYERS is set to something other than 0.
The variable counts for commands, for pycaffe, and for the processes that they start. `--no-python-layers`
sets it while a command runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from imae.files.errors import LayerError

if TYPE_CHECKING:  # not at run time: the command line needs no schema
    from imae.prototxt.caffe_pb2 import LayerParameter

# Python layers of well-known projects that are built in, by module and class: none of the user's code is
# imported for them. The values are the types in whose files they are.
BUILT_IN = {("rpn.proposal_layer", "ProposalLayer"): "Proposal"}

VARIABLE = "IMAE_NO_PYTHON_LAYERS"


@contextmanager
def no_python_layers() -> Iterator[None]:
    """Refuse Python layers while the block runs."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def check_python_layers(layers: Iterable[LayerParameter]) -> None:
    """LayerError for the first Python layer that is not built in, if they are refused."""
    if os.environ.get(VARIABLE, "") in ("", "0"):
        return
    for layer in layers:
        if layer.type == "Python" and (layer.python_param.module, layer.python_param.layer) in BUILT_IN:
            continue
        if layer.type == "Python" or layer.HasField("python_param"):
            raise LayerError(
                layer,
                f"it makes this process import and run the module {layer.python_param.module!r}, which "
                f"--no-python-layers or {VARIABLE} forbids; read that code before you allow it",
            )
