"""The warning for a net without a loss: often its losses are in stages, and none of these was chosen.

Caffe does not warn: a training shows the loss 0 and learns nothing; only weight decay changes the weights.
"""

from __future__ import annotations

from imae.files.errors import LayerError
from imae.layers.layer import LossLayer
from imae.layers.registry import class_of
from imae.net.net import Net
from imae.prototxt import LayerParameter, NetParameter


def no_loss_message(net: Net, param: NetParameter) -> str:
    """What is missing and how to choose it; "" where the net has a loss.

    param   the net before its layers were filtered by its state
    """
    if any(net.loss_weights.values()):
        return ""
    stages = stages_of_losses(param)
    if not stages:
        return f"net '{net.name}' has no loss"
    choose = f'--stage {stages[-1]}, or in a solver train_state {{ stage: "{stages[-1]}" }}'
    return (
        f"net '{net.name}' has no loss, since its losses are in the stages {', '.join(stages)} and none of "
        f"these is chosen (choose one: {choose})"
    )


def stages_of_losses(param: NetParameter) -> list[str]:
    """The stages that the losses of an unfiltered net ask for, in their order."""
    stages = [
        stage for layer in param.layer if _is_loss(layer) for rule in layer.include for stage in rule.stage
    ]
    return list(dict.fromkeys(stages))


def _is_loss(layer: LayerParameter) -> bool:
    """Whether the layer adds to the loss; False for an unknown type, as the layer may be filtered out."""
    if layer.loss_weight:
        return any(layer.loss_weight)
    try:
        return issubclass(class_of(layer), LossLayer)
    except LayerError:
        return False
