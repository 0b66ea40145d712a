"""Nets written in Python, and the coordinate maps between their tops."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import imae.pycaffe as caffe
from imae.files.errors import PrototxtError
from imae.prototxt.text import parse_net, to_text
from imae.pycaffe import coord_map
from imae.pycaffe import layers as L
from imae.pycaffe import params as P


def test_a_named_net_is_the_text_that_it_stands_for() -> None:
    net = caffe.NetSpec()
    net.data, net["label"] = L.DummyData(ntop=2, shape=[{"dim": [2, 3, 8, 8]}, {"dim": 2}])
    filler = {"type": "gaussian", "std": 0.5}
    net.conv = L.Convolution(
        net.data, num_output=4, kernel_size=3, pad=(1, 0), weight_filler=filler, param=[{"lr_mult": 0}, {}]
    )
    net.pool = L.Pooling(net.conv, pool=P.Pooling.AVE, pooling_param={"global_pooling": True})
    net.relu = L.ReLU(net.pool, in_place=True)
    net.flat = L.Reshape(net.relu, shape={"dim": [0, -1]})
    net.loss = L.SoftmaxWithLoss(net.flat, net["label"], loss_weight=2, include={"phase": caffe.TEST})
    net.quiet = L.Silence(net.data, ntop=0)
    want = parse_net("""
    layer { name: "data" type: "DummyData" top: "data" top: "label"
            dummy_data_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } shape { dim: 2 } } }
    layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 0 } param { }
            convolution_param { num_output: 4 kernel_size: 3 pad: 1 pad: 0
                                weight_filler { type: "gaussian" std: 0.5 } } }
    layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool"
            pooling_param { pool: AVE global_pooling: true } }
    layer { name: "relu" type: "ReLU" bottom: "pool" top: "pool" }
    layer { name: "flat" type: "Reshape" bottom: "pool" top: "flat"
            reshape_param { shape { dim: 0 dim: -1 } } }
    layer { name: "loss" type: "SoftmaxWithLoss" bottom: "flat" bottom: "label" top: "loss" loss_weight: 2
            include { phase: TEST } }
    layer { name: "quiet" type: "Silence" bottom: "data" }
    """)
    assert to_text(net.to_proto()) == to_text(want)


def test_what_has_no_name_is_numbered_by_type() -> None:
    data, label = L.DummyData(ntop=2)
    conv = L.Convolution(L.Convolution(data))
    relu = L.ReLU(conv, in_place=True)
    loss = L.SoftmaxWithLoss(L.InnerProduct(relu), label)
    names = [(layer.name, list(layer.bottom), list(layer.top)) for layer in caffe.to_proto(loss, conv).layer]
    assert names == [
        ("DummyData1", [], ["DummyData1", "DummyData2"]),
        ("Convolution1", ["DummyData1"], ["Convolution1"]),
        ("Convolution2", ["Convolution1"], ["Convolution2"]),
        ("ReLU1", ["Convolution2"], ["Convolution2"]),
        ("InnerProduct1", ["Convolution2"], ["InnerProduct1"]),
        ("SoftmaxWithLoss1", ["InnerProduct1", "DummyData2"], ["SoftmaxWithLoss1"]),
    ]
    assert relu.to_proto() == caffe.to_proto(relu)


def test_deep_nets_and_numpy_numbers_will_do() -> None:
    top = L.Input(shape={"dim": [1]})
    for _ in range(2000):
        top = L.Power(top, scale=np.float32(2), shift=np.int64(1))
    net = top.to_proto()
    assert len(net.layer) == 2001 and net.layer[-1].power_param.scale == 2


def test_types_of_plugins_have_their_parameters() -> None:
    layer = L.IMAELoss(L.Input(), L.Input(), t=4).to_proto().layer[-1]
    assert layer.imae_loss_param.t == 4


def test_a_net_can_be_asked_and_copied() -> None:
    net = caffe.NetSpec()
    net.data = L.Input()
    assert list(net.tops) == ["data"] and net.data is net["data"]
    assert not hasattr(net, "conv")
    assert copy.deepcopy(net).to_proto() == net.to_proto()
    with pytest.raises(KeyError):
        net["conv"]


def test_net_spec_refuses() -> None:
    pair: Any = L.DummyData(ntop=2)
    with pytest.raises(TypeError, match=r"Silence input 0 is not a Top \(type is <class 'tuple'>\)"):
        L.Silence(pair, ntop=0)
    with pytest.raises(TypeError, match="data is not a Top"):
        caffe.NetSpec().data = pair
    with pytest.raises(PrototxtError, match="neither pooling_param nor the layer has a field 'kernal'"):
        L.Pooling(pair[0], kernal=3).to_proto()
    with pytest.raises(PrototxtError, match=r"Deconvolution: the layer has no field 'num_output'.*a dict"):
        L.Deconvolution(pair[0], num_output=3).to_proto()
    with pytest.raises(PrototxtError, match="FillerParameter has no field 'kind'"):
        L.Convolution(pair[0], weight_filler={"kind": "xavier"}).to_proto()
    with pytest.raises(PrototxtError, match="ConvolutionParameter: field 'num_output' cannot be 'many'"):
        L.Convolution(pair[0], num_output="many").to_proto()


# -- coordinate maps -----------------------------------------------------------------------------------------


def test_maps_of_single_layers() -> None:
    data = L.Input()
    for top, want in (
        (L.Convolution(data, kernel_size=5, stride=2, pad=1, dilation=2), (1, 1 / 2, -3 / 2)),
        (L.Pooling(data, kernel_size=3, stride=3), (1, 1 / 3, -1 / 3)),
        (L.Pooling(data, pooling_param={"kernel_size": 3, "stride": 3}), (1, 1 / 3, -1 / 3)),
        (L.Deconvolution(data, convolution_param={"kernel_size": 4, "stride": 2, "pad": 1}), (1, 2, 1 / 2)),
        (L.Crop(data, data, axis=3, offset=5), (2, 1, -5)),
        (L.Swish(data), (None, 1, 0)),
    ):
        assert coord_map.coord_map(top.fn) == want, top.fn.type_name


def test_maps_lead_through_the_layers_between_two_tops() -> None:
    data = L.Input()
    pool = L.Pooling(L.ReLU(L.Convolution(data, kernel_size=3, pad=1)), kernel_size=2, stride=2)
    up = L.Deconvolution(pool, convolution_param={"kernel_size": 4, "stride": 2})
    axis, scale, shift = coord_map.coord_map_from_to(up, data)
    assert (axis, scale, shift) == (1, 1, -1)
    assert coord_map.coord_map_from_to(data, up) == (1, 1, 1)
    other = L.Pooling(data, kernel_size=2, stride=2)
    assert coord_map.coord_map_from_to(pool, other) == (1, 1, 0)
    layer = coord_map.crop(up, data).to_proto().layer[-1]
    assert layer.type == "Crop" and (layer.crop_param.axis, list(layer.crop_param.offset)) == (2, [1])
    assert list(layer.bottom) == ["Deconvolution1", "Input1"]


def test_axes_may_differ() -> None:
    data = L.Input()
    down = L.Convolution(data, kernel_size=[1, 3], stride=[1, 2])
    up = L.Deconvolution(down, convolution_param={"kernel_size": [3, 5], "stride": [1, 2]})
    axis, scale, shift = coord_map.coord_map_from_to(up, data)
    assert axis == 1 and scale.tolist() == [1, 1] and shift.tolist() == [-1, -1]
    assert list(coord_map.crop(up, data).to_proto().layer[-1].crop_param.offset) == [1, 1]


def test_only_the_first_bottom_of_a_crop_is_mapped() -> None:
    big, small = L.Input(), L.Input()
    crop = L.Crop(big, small, offset=3)
    assert coord_map.coord_map_from_to(crop, big) == (1, 1, 3)
    with pytest.raises(RuntimeError, match="are they connected by spatial layers"):
        coord_map.coord_map_from_to(crop, small)


def test_coord_map_refuses() -> None:
    data = L.Input()
    with pytest.raises(RuntimeError):
        coord_map.coord_map_from_to(L.InnerProduct(data), data)
    with pytest.raises(coord_map.UndefinedMapException, match="Pooling without kernel_size"):
        coord_map.coord_map(L.Pooling(data, global_pooling=True).fn)
    with pytest.raises(AssertionError, match="does not support kernel_h"):
        coord_map.coord_map(L.Convolution(data, kernel_h=3, kernel_w=1).fn)
    with pytest.raises(AssertionError, match="scale mismatch on crop"):
        coord_map.crop(L.Pooling(data, kernel_size=2, stride=2), data)
    with pytest.raises(AssertionError, match="cannot crop negative offset"):
        coord_map.crop(L.Convolution(data, kernel_size=3), data)
    with pytest.raises(AssertionError, match="cannot crop noninteger offset"):
        coord_map.crop(L.Convolution(data, kernel_size=2, pad=1), data)
    with pytest.raises(coord_map.AxisMismatchException):
        coord_map.compose((1, 1, 0), (2, 1, 0))
