"""One net for every loss, and for deployment, by Caffe's stages; and the solver that chooses one.

A layer with `include { stage: "imae" }` is in the net only in a state that has this stage.

Caffe: NetState and NetStateRule in caffe.proto, net.cpp FilterNet; here imae.prototxt.state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from google.protobuf.message import Message

from imae.prototxt import LayerParameter, NetParameter, SolverParameter
from imae.prototxt.models.net_parts import deploy

DEPLOY = "deploy"


def net_and_solver(
    model: str,
    about: str,
    net: NetParameter,
    solver: SolverParameter,
    losses: Mapping[str, LayerParameter],
    image: tuple[int, int, int],
) -> Iterator[tuple[str, str, Message]]:
    """(path below prototxt/models without suffix, header, message) of both files.

    model    the net's path below prototxt/models without suffix
    about    what the net is, for the headers
    net      with its data layers, and with these losses by stage
    solver   to which the stage of the last loss is added
    image    (channels, height, width) of the input of stage `deploy`
    """
    yield model, _net_header(model, about, losses), with_deploy(net, *image)
    yield f"{model}_solver", _solver_header(model, about, losses), choose_stage(solver, [*losses][-1])


def with_deploy(net: NetParameter, *shape: int) -> NetParameter:
    """`net`, which has data layers, with a stage `deploy`, in which it is the net that `deploy` makes."""

    def key(layer: LayerParameter) -> tuple[str, str]:
        return layer.name, layer.type

    deployed = deploy(net, *shape).layer
    shared = {key(layer) for layer in net.layer} & {key(layer) for layer in deployed}
    input_layer, *tail = (_only_in_deploy(layer) for layer in deployed if key(layer) not in shared)
    layers = [layer if key(layer) in shared else _not_in_deploy(layer) for layer in net.layer]
    data = [layer for layer in layers if not layer.bottom]
    layers[len(data) : len(data)] = [input_layer]
    return NetParameter(name=net.name, layer=[*layers, *tail])


def _only_in_deploy(layer: LayerParameter) -> LayerParameter:
    result = LayerParameter(include=[{"stage": [DEPLOY]}])
    result.MergeFrom(layer)
    return result


def _not_in_deploy(layer: LayerParameter) -> LayerParameter:
    """A copy that is not in stage `deploy`. A loss keeps its rule: its own stage leaves it out already."""
    result = LayerParameter()
    result.CopyFrom(layer)
    for rule in result.include:
        if not rule.stage:
            rule.not_stage.append(DEPLOY)
    if not result.include:
        result.exclude.add(stage=[DEPLOY])
    return result


def choose_stage(param: SolverParameter, stage: str) -> SolverParameter:
    """The solver that trains with the loss of this stage and shows it in its tests.

    The stage ends train_state, a test_state for each test net, and snapshot_prefix, so that
    `sed 's/STAGE"/OTHER"/'` makes the solver of another loss.
    """
    result = SolverParameter()
    result.CopyFrom(param)
    result.train_state.stage.append(stage)
    for _ in param.test_iter:
        result.test_state.add(stage=[stage])
    result.snapshot_prefix += f"_{stage}"
    return result


def _net_header(model: str, about: str, losses: Mapping[str, LayerParameter]) -> str:
    file, last = f"prototxt/models/{model}.prototxt", [*losses][-1]
    return f"""{about}

This is one net for all losses: a loss layer is in it only if its stage is chosen, one of
    {", ".join(losses)}
A solver chooses by train_state and, for its test nets, test_state; a command by --stage:
    imae train prototxt/models/{model}_solver.prototxt
    imae test --model {file} --weights W --stage {last}
    imae time --model {file} --stage {last}
Without a stage there is no loss: a test shows only the accuracy; a training learns nothing, as in Caffe,
but imae warns. In stage {DEPLOY} the input is one image without label, the output its class probabilities."""


def _solver_header(model: str, about: str, losses: Mapping[str, LayerParameter]) -> str:
    *others, own = losses
    return f"""{about}

Trains {model}.prototxt with the loss of stage {own}. Its other losses have the stages
    {", ".join(others)}
To train with one of them, replace {own} by its stage in train_state, test_state and snapshot_prefix:
    sed 's/{own}"/{others[0]}"/' prototxt/models/{model}_solver.prototxt > solver.prototxt
    imae train solver.prototxt"""
