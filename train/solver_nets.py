"""The nets of a solver: the train net and the test nets.

Caffe: solver.cpp, InitTrainNet, InitTestNets.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from imae.files.caffe_log import log_line
from imae.files.errors import PrototxtError
from imae.layers.ranks import ALONE
from imae.layers.run import Run
from imae.net.net import Net
from imae.net.no_loss import no_loss_message
from imae.net.weights import load_caffemodel
from imae.prototxt import TEST, TRAIN, NetState, SolverParameter
from imae.prototxt.dialects import read_net_text
from imae.prototxt.state import in_state

logger = logging.getLogger(__name__)

TRAIN_FIELDS = ("net", "net_param", "train_net", "train_net_param")


def build_train_net(param: SolverParameter, run: Run, dialect: str | None = None) -> Net:
    """The net of the one field of TRAIN_FIELDS that is set, with the weights that the solver names.

    dialect   the fork that wrote the files of nets and weights; None: Caffe
    """
    specified = [name for name in TRAIN_FIELDS if param.HasField(name)]
    fields = ", ".join(TRAIN_FIELDS)
    if not specified:
        raise PrototxtError(f"SolverParameter must specify a train net using one of these fields: {fields}")
    if len(specified) > 1:
        raise PrototxtError(
            "SolverParameter must not contain more than one of these fields specifying a train_net: "
            f"{fields}; got {', '.join(specified)}"
        )
    if param.HasField("train_net_param"):
        log_line("solver.cpp:88", "Creating training net specified in train_net_param.")
        net_param = param.train_net_param
    elif param.HasField("train_net"):
        log_line("solver.cpp:92", f"Creating training net from train_net file: {param.train_net}")
        net_param = read_net_text(param.train_net, dialect, _weights(param))
    elif param.HasField("net_param"):
        log_line("solver.cpp:97", "Creating training net specified in net_param.")
        net_param = param.net_param
    else:
        log_line("solver.cpp:102", f"Creating training net from net file: {param.net}")
        net_param = read_net_text(param.net, dialect, _weights(param))
    state = in_state(net_param, TRAIN, param.train_state)
    net = Net(state, run)
    if run.ranks.rank == 0 and (message := no_loss_message(net, net_param)):
        logger.warning("%s, and the training learns nothing, as in Caffe", message)
    _load_weights(net, param, dialect)
    return net


def build_test_nets(param: SolverParameter, train_net: Net, dialect: str | None = None) -> list[Net]:
    """The nets of test_net_param and test_net; `net` or `net_param` for each further test_iter.

    They share the parameters of the train net's layers of the same names. They share its run except the
    ranks: only one rank tests.
    """
    weights = _weights(param)
    sources = [("test_net_param", net_param) for net_param in param.test_net_param]
    sources += [(f"test_net file: {path}", read_net_text(path, dialect, weights)) for path in param.test_net]
    left = len(param.test_iter) - len(sources)
    generic = param.HasField("net") or param.HasField("net_param")
    if left < 0 or (left and not generic):
        raise PrototxtError(
            f"test_iter must be specified for each test network; got {len(param.test_iter)} test_iter for "
            f"{len(sources)} test nets"
        )
    if left and param.HasField("net"):
        sources += [(f"net file: {param.net}", read_net_text(param.net, dialect, weights))] * left
    elif left:
        sources += [("net_param", param.net_param)] * left
    if param.test_state and len(param.test_state) != len(sources):
        raise PrototxtError(
            f"test_state must be unspecified or specified once per test net; got {len(param.test_state)} "
            f"for {len(sources)} test nets"
        )
    if sources and param.test_interval <= 0:
        raise PrototxtError(f"test_iter needs a test_interval greater than 0, got {param.test_interval}")
    run, nets = replace(train_net.run, ranks=ALONE), []
    for index, (source, net_param) in enumerate(sources):
        state = param.test_state[index] if param.test_state else NetState()
        log_line("solver.cpp:190", f"Creating test net (#{index}) specified by {source}")
        nets.append(Net(in_state(net_param, TEST, state), run, train_net))
        _load_weights(nets[-1], param, dialect)
    return nets


def _weights(param: SolverParameter) -> list[str]:
    """The weight files that the solver names, in order."""
    return [name.strip() for names in param.weights for name in names.split(",")]


def _load_weights(net: Net, param: SolverParameter, dialect: str | None) -> None:
    for name in _weights(param):
        log_line("solver.cpp:72", f"Finetuning from {name}")
        load_caffemodel(net, name, dialect)
