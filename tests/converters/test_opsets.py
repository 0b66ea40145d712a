"""Every layer type that has an ONNX form, in every operator set that `imae export` offers.

ONNX has changed operators between these sets: axes and splits became inputs, Resize and Pad got axes,
ReduceSum and ReduceMean moved their axes at different times.
"""

from __future__ import annotations

import pytest
import torch
from layer_cases import CASES, parsed
from single_layer import check_onnx, normal
from tolerances import tolerance

from imae.converters.deploy import deploy_net
from imae.converters.export_onnx import NEWEST_OPSET, OLDEST_OPSET, ExportOptions, export_net
from imae.files.errors import ExportError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.forks.roi_pooling import LAST_WITH_KERNELS
from imae.layers.layer import Layer
from imae.layers.registry import class_of
from imae.layers.run import Run
from imae.net.net import Net
from imae.prototxt.text import parse_net

OPSETS = range(OLDEST_OPSET, NEWEST_OPSET + 1)
EXPORTED = sorted(key for key in CASES if class_of(parsed(key)).to_onnx is not Layer.to_onnx)
X = normal(2, 4, 6, 5)
BLOBS = 'weight_filler { type: "gaussian" std: 0.5 }'
# Fields with which a type has other nodes than in CASES.
FORMS = [
    'type: "ArgMax" argmax_param { axis: 1 top_k: 2 out_max_val: true }',
    'type: "ArgMax" argmax_param { top_k: 2 out_max_val: true }',
    'type: "BN" top: "top" top: "mean" top: "variance" bn_param { bn_mode: LEARN }',
    f'type: "Convolution" convolution_param {{ num_output: 6 axis: 2 kernel_size: 2 {BLOBS} }}',
    f'type: "Convolution" convolution_param {{ num_output: 6 axis: 3 {BLOBS} }}',
    'type: "Eltwise" bottom: "a" eltwise_param { operation: MAX }',
    'type: "Exp" exp_param { base: 2 shift: 1 }',
    'type: "Flatten" flatten_param { axis: 0 end_axis: 1 }',
    f'type: "InnerProduct" inner_product_param {{ num_output: 3 axis: 2 bias_term: false {BLOBS} }}',
    f'type: "InnerProduct" inner_product_param {{ num_output: 3 transpose: true {BLOBS} }}',
    'type: "Interp" interp_param { height: 4 width: 9 pad_beg: -1 }',
    'type: "LRN" lrn_param { norm_region: WITHIN_CHANNEL local_size: 3 }',
    'type: "MVN" mvn_param { across_channels: true }',
    'type: "Normalize" norm_param { across_spatial: false channel_shared: false }',
    'type: "Pooling" top: "top" top: "mask" pooling_param { kernel_size: 3 stride: 2 pad: 1 }',
    'type: "Pooling" pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }',
    'type: "Pooling" pooling_param { kernel_size: 1 stride: 3 }',
    'type: "Power" power_param { power: 3 scale: 0.5 shift: 1 }',
    'type: "Power" power_param { scale: 0 shift: 1 }',
    *(f'type: "Reduction" reduction_param {{ axis: {axis} operation: {name} coeff: 2 }}'
      for name in ("SUM", "ASUM", "SUMSQ", "MEAN") for axis in (1, 3)),
    'type: "ReLU" relu_param { negative_slope: 0.1 }',
    'type: "ReLU6" relu_param { negative_slope: 0.1 }',
    'type: "Reorg" reorg_param { stride: 2 reverse: true }',
    'type: "Slice" top: "a" top: "b" top: "c" slice_param { slice_point: 1 slice_point: 3 }',
    'type: "SPP" spp_param { pyramid_height: 2 pool: AVE }',
    'type: "Softmax" softmax_param { axis: 2 }',
]  # fmt: skip


@pytest.mark.parametrize("key", EXPORTED)
def test_every_type(key: str) -> None:
    text = f'type: "{key.partition(":")[0]}" {CASES[key].text}'.replace("phase: TRAIN", "phase: TEST")
    for opset in OPSETS:  # in each a new layer: some go on from the states of the pass before
        if key == "ROIPooling" and opset > LAST_WITH_KERNELS:
            with pytest.raises(
                ExportError, match=f"no MaxRoiPool of operator set {opset}; export with opset 21"
            ):
                check_onnx(text, *CASES[key].bottoms, opsets=[opset])
        else:
            check_onnx(text, *CASES[key].bottoms, opsets=[opset], one_batch=True)


@pytest.mark.parametrize("text", FORMS)
def test_every_form_of_a_type(text: str) -> None:
    bottoms = [X] * (2 if "bottom:" in text else 1)
    check_onnx(
        text.replace('bottom: "a"', 'bottom: "x" bottom: "a"'), *bottoms, opsets=OPSETS, one_batch=True
    )


def layer(kind: str, bottom: str, top: str, fields: str = "") -> str:
    return f'layer {{ name: "{top}" type: "{kind}" bottom: "{bottom}" top: "{top}" {fields} }} '


NETS = {
    "segmentation": (
        layer("Convolution", "x", "conv",
              f"convolution_param {{ num_output: 4 kernel_size: 3 pad: 1 {BLOBS} }}")
        + layer("BatchNorm", "conv", "bn")
        + layer("Scale", "bn", "scale", "scale_param { bias_term: true }")
        + layer("Pooling", "scale", "pool", 'top: "mask" pooling_param { kernel_size: 2 stride: 2 }')
        + layer("Slice", "pool", "left", 'top: "right"')
        + layer("Concat", "right", "concat", 'bottom: "left"')
        + layer("MVN", "concat", "mvn")
        + layer("Upsample", "mvn", "up", 'bottom: "mask" upsample_param { scale: 2 }')
        + layer("Pooling", "up", "mean", "pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }")
        + layer("Interp", "mean", "zoomed", "interp_param { zoom_factor: 2 }")
        + layer("Deconvolution", "zoomed", "deconv",
                f"convolution_param {{ num_output: 2 kernel_size: 4 stride: 2 {BLOBS} }}")
        + layer("Crop", "deconv", "crop", 'bottom: "x" crop_param { axis: 2 offset: 1 }')
        + layer("Softmax", "crop", "p")
    ),
    "classes": (
        layer("Reorg", "x", "reorg", "reorg_param { stride: 2 }")
        + layer("ShuffleChannel", "reorg", "shuffled", "shuffle_channel_param { group: 4 }")
        + layer("LRN", "shuffled", "lrn", "lrn_param { norm_region: WITHIN_CHANNEL local_size: 3 }")
        + layer("Pooling", "lrn", "pool", "pooling_param { global_pooling: true }")
        + layer("InnerProduct", "pool", "fc", f"inner_product_param {{ num_output: 5 {BLOBS} }}")
    ),
}  # fmt: skip


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("dynamic_size", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_whole_nets(name: str, dynamic_size: bool, opset: int) -> None:
    data = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 dim: 8 dim: 12 } } }'
    net = Net(deploy_net(parse_net(data + NETS[name])), Run(CaffeRandom(1)))
    for blob in net.params.get("bn", []):
        torch.nn.init.ones_(blob)
    result = export_net(
        net, ExportOptions(opset=opset, fold=dynamic_size, dynamic_size="both" if dynamic_size else None)
    )
    assert result.largest > 0
    assert result.difference <= tolerance("onnx").rtol * max(result.largest, 1)
    assert {imported.version for imported in result.model.opset_import} == {opset}
