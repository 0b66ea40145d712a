"""The layers of a net that a state (phase, level, stages) includes.

A rule is met if all of its fields hold: the phase, min_level and max_level, every stage, no not_stage. A
layer with include rules is in the net if any of them is met, one with exclude rules if none is, one without
rules always.

Caffe: net.cpp, FilterNet and StateMeetsRule.
"""

from collections.abc import Iterable, Set

from imae.files.caffe_log import log_line
from imae.files.errors import LayerError, PrototxtError
from imae.prototxt.caffe_pb2 import NetParameter, NetState, NetStateRule, Phase
from imae.prototxt.python_layers import check_python_layers


def filter_net(param: NetParameter, phase: Phase, level: int = 0, stages: Iterable[str] = ()) -> NetParameter:
    """The layers of a net for a phase, level and stages, which become the net's state."""
    return filter_by_state(param, NetState(phase=phase, level=level, stage=stages))


def filter_by_state(param: NetParameter, state: NetState) -> NetParameter:
    """The layers of a net for a state, which becomes the net's; PrototxtError for a net of an old form.

    Every net passes through here, so Python layers, of any state, are refused here if they are forbidden.
    """
    if param.layers or param.input:
        raise PrototxtError(
            f"net '{param.name}' has fields of an old form (layers, input); call upgrade_net first"
        )
    check_python_layers(param.layer)
    fields = {
        field.name: value for field, value in param.ListFields() if field.name not in ("layer", "state")
    }
    filtered = NetParameter(**fields, state=state)
    stages = frozenset(state.stage)
    for layer in param.layer:
        if layer.include and layer.exclude:
            raise LayerError(layer, "Specify either include rules or exclude rules; not both.")
        if layer.include:
            included = any(meets_rule(state, stages, rule, layer.name) for rule in layer.include)
        else:
            included = not any(meets_rule(state, stages, rule, layer.name) for rule in layer.exclude)
        if included:
            filtered.layer.add().CopyFrom(layer)
    return filtered


def in_state(net: NetParameter, phase: Phase, wanted: NetState) -> NetParameter:
    """A copy of a net in the state `wanted`, completed by the net's own state, and then by `phase`.

    Stages add up. Caffe: Net::Net(param_file, phase, level, stages), Solver::InitTrainNet, InitTestNets.
    """
    copy = NetParameter()
    copy.CopyFrom(net)
    copy.state.CopyFrom(NetState(phase=phase))
    copy.state.MergeFrom(net.state)
    copy.state.MergeFrom(wanted)
    return copy


def meets_rule(state: NetState, stages: Set[str], rule: NetStateRule, layer: str) -> bool:
    """Whether a state with these stages meets a rule of the layer named `layer`; the log says why not."""
    if rule.HasField("phase") and rule.phase != state.phase:
        line, broken = 296, f"phase ({state.phase}) differed from the phase ({rule.phase})"
    elif rule.HasField("min_level") and state.level < rule.min_level:
        # Caffe's wording.
        line, broken = 306, f"level ({state.level}) is above the min_level ({rule.min_level})"
    elif rule.HasField("max_level") and state.level > rule.max_level:
        line, broken = 316, f"level ({state.level}) is above the max_level ({rule.max_level})"
    elif absent := [stage for stage in rule.stage if stage not in stages]:
        line, broken = 332, f"did not contain stage '{absent[0]}'"
    elif present := [stage for stage in rule.not_stage if stage in stages]:
        line, broken = 347, f"contained a not_stage '{present[0]}'"
    else:
        return True
    message = f"The NetState {broken} specified by a rule in layer {layer}"
    log_line(f"net.cpp:{line}", message)
    return False
