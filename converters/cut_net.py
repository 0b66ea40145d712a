"""A net cut behind some of its blobs: only the layers that these blobs need stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from imae.files.errors import ExportError
from imae.files.nearest import did_you_mean
from imae.layers.registry import class_of
from imae.net.net import Net
from imae.net.step import Step
from imae.prototxt import TEST, NetParameter, NetState
from imae.prototxt.state import filter_by_state, in_state


def cut_net(param: NetParameter, blobs: Sequence[str]) -> NetParameter:
    """The net of phase TEST with the layers that compute these blobs, in-place layers on them included.

    The types of the other layers are not looked at; they may be unknown.

    ExportError for a blob that the net lacks, or that is an input.
    """
    test = in_state(param, TEST, NetState(phase=TEST))
    filtered = filter_by_state(test, test.state)
    makers = {top: layer for layer in filtered.layer for top in layer.top}
    for blob in blobs:
        if blob not in makers:
            hint = did_you_mean(blob, makers, "'")
            raise ExportError(f"--until: net {filtered.name!r} has no blob {blob!r} in phase TEST{hint}")
        if class_of(makers[blob]).makes_input:
            raise ExportError(
                f"--until: blob {blob!r} is an input of the net; name one that a layer computes"
            )
    needed, kept = set(blobs), []
    for layer in reversed(filtered.layer):
        if needed.intersection(layer.top):
            needed.update(layer.bottom)
            kept.append(layer)
    result = NetParameter()
    result.CopyFrom(filtered)
    del result.layer[:]
    result.layer.extend(reversed(kept))
    return result


def cut_before(net: Net, step: Step) -> str:
    """How a user exports a net up to a layer that has no ONNX form, for the end of an error; "" if that is
    nothing.
    """
    sources: Mapping[str, str] = {
        top: other.bottoms[0] for other in net.steps if other.layer.type == "Split" for top in other.tops
    }
    blobs = dict.fromkeys(sources.get(bottom, bottom) for bottom in step.bottoms)
    options = " ".join(f"--until {blob}" for blob in blobs if blob not in net.inputs)
    if not options:
        return ""
    if not set(step.bottoms).isdisjoint(step.tops):
        return f"; or give its top a name of its own and cut the net before it with {options}"
    return f"; or cut the net before it with {options}"
