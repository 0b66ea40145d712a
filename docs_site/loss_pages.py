"""The weight curves of the losses, as drawings, and the fields of their parameters."""

from __future__ import annotations

from functools import cache
from typing import cast

from google.protobuf.descriptor import Descriptor

from benchmarks.losses import of_name, weight_curve
from docs_site.schema_tables import field_table
from imae import losses
from imae.layers.registry import layer_class
from imae.prototxt import LayerParameter

CAPTION = (
    "The L1 norm of an example's gradient against p, the softmax probability of its label, with the default "
    "parameters; of 10 classes, the other nine share 1 - p equally. [All losses](../../losses.md)."
)
# The layer of each module of imae.losses that has one of another name.
LAYERS = {
    "CCE": "SoftmaxWithLoss",
    "ForwardCorrection": "CorrectionLoss",
    "BackwardCorrection": "CorrectionLoss",
}
WIDTH, HEIGHT, LEFT, BOTTOM = 360, 150, 40, 34


def layer_of_loss(name: str) -> str:
    """The layer type of a module of imae.losses."""
    return LAYERS.get(name, f"{name}Loss")


def curve_of_layer(type_name: str) -> str:
    """The weight curve of a layer type, both of CorrectionLoss's; "" where it is no such loss."""
    names = [name for name in losses.__all__ if layer_of_loss(name) == type_name]
    return "\n".join(weight_drawing(name) for name in names)


@cache
def weight_drawing(name: str) -> str:
    """The weight of a loss against p, as SVG in the colours of the page."""
    p, weight = weight_curve(of_name(name), 101)
    top = max(weight)
    right, height = WIDTH - 8, HEIGHT - BOTTOM

    def x(value: float) -> float:
        return LEFT + value * (right - LEFT)

    def y(value: float) -> float:
        return height - value / top * (height - 12)

    points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(p, weight, strict=True))
    ticks = "".join(
        f'<text x="{x(tick):.0f}" y="{height + 14}" text-anchor="middle">{tick:g}</text>'
        f'<path class="grid" d="M{x(tick):.0f} {height} V12"/>'
        for tick in (0, 0.25, 0.5, 0.75, 1)
    )
    return (
        f'<figure class="weight-curve"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="weight of {name} against p">{ticks}'
        f'<text x="{LEFT - 6}" y="16" text-anchor="end">{top:.2f}</text>'
        f'<text x="{LEFT - 6}" y="{height}" text-anchor="end">0</text>'
        f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">'
        "p, probability of the annotated label</text>"
        f'<path class="axis" d="M{LEFT} 12 V{height} H{right}"/><polyline points="{points}"/></svg>'
        f"<figcaption>{name}</figcaption></figure>"
    )


def appendix() -> str:
    """What the site adds to docs/losses.md: a curve of each loss, and the fields of the parameters."""
    curves = "\n".join(weight_drawing(name) for name in losses.__all__)
    text = [
        "## Weight curves",
        "The L1 norm of an example's gradient against p, with the default parameters; of 10 classes, the "
        "other nine share 1 - p equally. The corrections are for 60 % wrong labels.",
        f'<div class="weight-curves">\n{curves}\n</div>',
        "## Fields of the parameters",
    ]
    for name in dict.fromkeys(layer_of_loss(name) for name in losses.__all__):
        cls = layer_class(name)
        drawer = cls.__module__.split(".")[2]
        field = getattr(cls, "field", "loss_param")
        message = LayerParameter.DESCRIPTOR.fields_by_name[field].message_type
        text += [f"### {name}", f"`{field}`; [the page of this layer](layers/{drawer}/{name}.md)"]
        text.append(field_table(cast(Descriptor, message), (), "layers/messages.md"))
    return "\n\n".join(text) + "\n"
