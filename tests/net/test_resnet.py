"""The generator of CIFAR ResNets: depths, shortcuts, losses, and the nets of the IMAE authors' runs."""

from __future__ import annotations

from collections import Counter

import pytest
from fed_nets import fed, feed, learned, unfilled

from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.net.net import Net
from imae.prototxt import LayerParameter, NetParameter
from imae.prototxt.caffe_pb2 import WeightedSoftmaxLossParameter, WeightNormalization
from imae.prototxt.models.net_parts import loss_layer
from imae.prototxt.models.resnet import authors_loss, authors_resnet, resnet

IMAGE = (2, 3, 32, 32)
# (loss, lambda, beta) of the logged runs.
LOGGED = [
    *((loss + suffix, 1, 1) for loss in ("CCE", "MAE", "GCE", "MSE") for suffix in ("", "_sumW")),
    *(("DM", 0, beta) for beta in (1, 2)),
    *(("DM", 0.5, beta) for beta in (6, 8)),
    *(("DM", 1, beta) for beta in (0, 2, 6, 8)),
]


def test_classes() -> None:
    """64 weights and a bias for each."""
    nets = [Net(unfilled(fed(resnet(8, classes), *IMAGE)), Run(CaffeRandom(1))) for classes in (10, 100)]
    sizes = [learned(net) for net in nets]
    assert sizes[1] - sizes[0] == 90 * 65


@pytest.mark.parametrize("depth", [7, 19, 21])
def test_other_depths_are_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="depth must be 6n"):
        resnet(depth)


def test_other_shortcuts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shortcut must be 'A' .* got 'C'"):
        resnet(8, shortcut="C")


def test_projection_shortcuts() -> None:
    """A 1x1 convolution from 16 to 32 and from 32 to 64 channels, with Scale's two numbers a channel."""
    identity, projection = (
        Net(unfilled(fed(resnet(8, shortcut=shortcut), *IMAGE)), Run(CaffeRandom(1))) for shortcut in "AB"
    )
    assert learned(projection) - learned(identity) == 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert projection.blob_shapes["res2_1_proj"] == identity.blob_shapes["res2_1_pad"] == (2, 32, 16, 16)


def tail(net: NetParameter) -> LayerParameter:
    (loss,) = (layer for layer in net.layer if layer.name == "loss")
    return loss


def test_a_loss_is_a_type_or_a_layer_to_copy() -> None:
    expected = LayerParameter(name="loss", type="IMAELoss", bottom=["fc", "label"], top=["loss"])
    assert tail(resnet(8, loss="IMAELoss")) == expected
    expected.imae_loss_param.t = 0.5
    prototype = loss_layer("IMAELoss", t=0.5)
    assert tail(resnet(8, loss=prototype)) == tail(resnet(8, loss=prototype)) == expected


def test_parameters_of_losses() -> None:
    assert loss_layer("GCELoss", q=0.7) == LayerParameter(type="GCELoss", gce_loss_param={"q": 0.7})
    assert loss_layer("SoftmaxWithLoss", ignore_label=3).loss_param.ignore_label == 3
    dm = loss_layer("DMLoss", **{"lambda": 0.5, "normalizer": "SUM_OF_WEIGHTS"}).dm_loss_param
    assert (getattr(dm, "lambda"), dm.normalizer) == (0.5, WeightNormalization.SUM_OF_WEIGHTS)
    variant = loss_layer("WeightedSoftmaxWithLoss", variant="GCE").weighted_softmax_loss_param.variant
    assert variant == WeightedSoftmaxLossParameter.GCE
    with pytest.raises(ValueError, match='IMAELossParameter has no "q" field'):
        loss_layer("IMAELoss", q=0.7)


def test_authors_net_has_the_layers_of_theirs() -> None:
    net = authors_resnet(authors_loss("DM", 1, 8))
    counts = Counter(layer.type for layer in net.layer)
    assert counts == {
        "Convolution": 45, "BatchNorm": 45, "Scale": 45, "ReLU": 43, "Eltwise": 21, "Pooling": 1,
        "InnerProduct": 1, "Softmax": 1, "ExtractProb": 1, "UnifiedWeightLoss": 1, "Accuracy": 1,
    }  # fmt: skip
    for layer in net.layer:
        specs = [(spec.lr_mult, spec.decay_mult) for spec in layer.param]
        if layer.type == "Convolution":
            assert specs == [(1, 1), (2, 0)]
            assert layer.convolution_param.bias_term
            assert layer.convolution_param.weight_filler.type == "msra"
        elif layer.type == "BatchNorm":
            assert specs == [(0, 0)] * 3
        elif layer.type == "InnerProduct":
            assert specs == [(1, 1), (2, 1)]
    assert list(tail(net).propagate_down) == [True, False, False]


@pytest.mark.parametrize(("loss", "lambda_", "beta"), LOGGED)
def test_every_loss_of_the_authors_logs_trains(loss: str, lambda_: float, beta: float) -> None:
    param = fed(authors_resnet(authors_loss(loss, lambda_, beta), depth=8), *IMAGE)
    net = Net(param, Run(CaffeRandom(3)))
    net.loss(net(feed(*IMAGE, classes=100))).backward()
    gradient = net.params["conv1"][0].grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.any()


@pytest.mark.parametrize("loss", ["IMAE", "cce", ""])
def test_other_losses_are_not_in_the_logs(loss: str) -> None:
    with pytest.raises(ValueError, match="unknown enum label"):
        authors_loss(loss)
