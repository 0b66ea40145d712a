"""A Split layer after every blob that more than one consumer reads, so that its gradients are summed.

The split of blob B, top `i` of layer L, is named `B_L_i_split`; its tops are `B_L_i_split_0`, `B_L_i_split_1`
and so on, in the order of the consumers. A loss_weight of the blob counts as the first consumer and moves to
the split.

Caffe: insert_splits.cpp.
"""

from collections import Counter

from imae.files.errors import PrototxtError
from imae.files.nearest import did_you_mean
from imae.prototxt.caffe_pb2 import NetParameter


def insert_splits(param: NetParameter) -> NetParameter:
    """The net with its Split layers; PrototxtError for a bottom that no earlier layer makes."""
    source: dict[str, tuple[int, int]] = {}  # blob -> layer and top that made it last
    bottoms: dict[tuple[int, int], tuple[int, int]] = {}  # layer and bottom -> its source
    consumers: Counter[tuple[int, int]] = Counter()
    loss_weights: dict[tuple[int, int], float] = {}
    for i, layer in enumerate(param.layer):
        for j, blob in enumerate(layer.bottom):
            if blob not in source:
                near = did_you_mean(blob, source, "'")
                raise PrototxtError(
                    f"Unknown bottom blob '{blob}' (layer '{layer.name}', bottom index {j}){near}"
                )
            bottoms[i, j] = source[blob]
            consumers[source[blob]] += 1
        for j, blob in enumerate(layer.top):
            source[blob] = i, j
        for blob, weight in zip(layer.top, layer.loss_weight, strict=False):
            loss_weights[source[blob]] = weight
            consumers[source[blob]] += weight != 0
    split = NetParameter(
        **{field.name: value for field, value in param.ListFields() if field.name != "layer"}
    )
    taken: Counter[tuple[int, int]] = Counter()
    for i, old in enumerate(param.layer):
        layer = split.layer.add()
        layer.CopyFrom(old)
        for j, blob in enumerate(old.bottom):
            top = bottoms[i, j]
            if consumers[top] > 1:
                layer.bottom[j] = f"{_split_name(param.layer[top[0]].name, blob, top[1])}_{taken[top]}"
                taken[top] += 1
        for j, blob in enumerate(old.top):
            count, weight = consumers[i, j], loss_weights.get((i, j), 0.0)
            if count > 1:
                name = _split_name(old.name, blob, j)
                tops = [f"{name}_{k}" for k in range(count)]
                weights = [weight] + [0.0] * (count - 1) if weight else []
                split.layer.add(name=name, type="Split", bottom=[blob], top=tops, loss_weight=weights)
                if weight:
                    layer.ClearField("loss_weight")
                    taken[i, j] += 1
    return split


def _split_name(layer: str, blob: str, top: int) -> str:
    return f"{blob}_{layer}_{top}_split"
