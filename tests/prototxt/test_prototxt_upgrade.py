"""Upgrades of V0 and V1 nets, old headers and old solvers, against what Caffe's tools wrote and logged."""

import re
from pathlib import Path

import pytest

from imae.files.errors import PrototxtError
from imae.net.net import Net
from imae.prototxt import (
    BlobProto,
    NetParameter,
    SolverParameter,
    V0LayerParameter,
    V1LayerParameter,
    parse_net,
    parse_solver,
    read_net_binary,
    to_text,
    upgrade_net,
    upgrade_solver,
)
from imae.prototxt.leftovers import strict_fields
from imae.prototxt.upgrade import V0_FIELDS, V0_TRANSFORM, V0_TYPES, upgrade_v1

CASES = sorted((Path(__file__).parents[1] / "cases").glob("upgrade/*.in.prototxt"))

V1_TYPES = {
    "NONE": "", "ABSVAL": "AbsVal", "ACCURACY": "Accuracy", "ARGMAX": "ArgMax", "BNLL": "BNLL",
    "CONCAT": "Concat", "CONTRASTIVE_LOSS": "ContrastiveLoss", "CONVOLUTION": "Convolution", "DATA": "Data",
    "DECONVOLUTION": "Deconvolution", "DROPOUT": "Dropout", "DUMMY_DATA": "DummyData",
    "EUCLIDEAN_LOSS": "EuclideanLoss", "ELTWISE": "Eltwise", "EXP": "Exp", "FLATTEN": "Flatten",
    "HDF5_DATA": "HDF5Data", "HDF5_OUTPUT": "HDF5Output", "HINGE_LOSS": "HingeLoss", "IM2COL": "Im2col",
    "IMAGE_DATA": "ImageData", "INFOGAIN_LOSS": "InfogainLoss", "INNER_PRODUCT": "InnerProduct",
    "LRN": "LRN", "MEMORY_DATA": "MemoryData", "MULTINOMIAL_LOGISTIC_LOSS": "MultinomialLogisticLoss",
    "MVN": "MVN", "POOLING": "Pooling", "POWER": "Power", "RELU": "ReLU", "SIGMOID": "Sigmoid",
    "SIGMOID_CROSS_ENTROPY_LOSS": "SigmoidCrossEntropyLoss", "SILENCE": "Silence", "SOFTMAX": "Softmax",
    "SOFTMAX_LOSS": "SoftmaxWithLoss", "SPLIT": "Split", "SLICE": "Slice", "TANH": "TanH",
    "WINDOW_DATA": "WindowData", "THRESHOLD": "Threshold", "INTERP": "Interp", "BN": "BN",
    "IMAGE_SEG_DATA": "ImageSegData",
}  # fmt: skip


def test_cases_are_there() -> None:
    assert len(CASES) == 6


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name.split(".")[0])
def test_as_caffe(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    name = path.name.removesuffix(".in.prototxt")
    parse = parse_solver if name.startswith("solver") else parse_net
    upgraded = parse(path.read_text(encoding="utf-8"), path.name)
    assert to_text(upgraded) == path.with_name(f"{name}.out.prototxt").read_text(encoding="utf-8")
    log = path.with_name(f"{name}.log").read_text(encoding="utf-8")
    recorded = re.findall(r"^([IWE])\d{4} \S+ +\d+ (upgrade_proto\.cpp:\d+)\] (.*)$", log, re.MULTILINE)
    ours = [(record.levelname[0], vars(record)["caffe"], record.getMessage()) for record in caplog.records]
    assert ours == recorded


def test_a_net_of_today_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    net = parse_net('name: "n" layer { name: "b" type: "BatchNorm" param { lr_mult: 0 } }')
    assert upgrade_net(net) is net
    assert not caplog.messages


def test_every_v1_type() -> None:
    assert set(V1_TYPES) == set(V1LayerParameter.LayerType.keys())
    for old, new in V1_TYPES.items():
        (layer,) = parse_net(f'layers {{ name: "a" type: {old} }}').layer
        assert layer.type == new
        assert layer.HasField("type")
    (layer,) = parse_net('layers { name: "a" }').layer
    assert not layer.HasField("type")


def test_every_v1_field_arrives() -> None:
    """Whatever V1LayerParameter can hold is in the upgraded layer, under its own name or in `param`."""
    old = V1LayerParameter()
    for field in V1LayerParameter.DESCRIPTOR.fields:
        value = getattr(old, field.name)
        if field.name in ("layer", "type"):
            continue
        if field.message_type is None:
            value.append("w" if field.type == field.TYPE_STRING else 1) if hasattr(
                value, "append"
            ) else setattr(old, field.name, "n")
        elif hasattr(value, "add"):
            value.add()
        else:
            value.SetInParent()
    (new,) = upgrade_v1(NetParameter(layers=[old])).layer
    renamed = {"param", "blob_share_mode", "blobs_lr", "weight_decay"}
    assert {f.name for f, _ in old.ListFields()} - renamed == {f.name for f, _ in new.ListFields()} - {
        "param"
    }
    assert to_text(new.param[0]) == 'name: "w"\nshare_mode: PERMISSIVE\nlr_mult: 1\ndecay_mult: 1\n'


def test_layers_of_forks_in_v1_nets() -> None:
    """Their parameters arrive, and the layers are those of today's nets."""
    interp, bn = parse_net(
        """layers { name: "i" type: INTERP bottom: "x" top: "y" interp_param { zoom_factor: 8 } }
        layers { name: "b" type: BN bottom: "y" top: "y" blobs_lr: 1 blobs_lr: 0
                 bn_param { bn_mode: INFERENCE scale_filler { value: 1 } } }"""
    ).layer
    assert (interp.type, interp.interp_param.zoom_factor) == ("Interp", 8)
    assert (bn.type, bn.bn_param.bn_mode, bn.bn_param.scale_filler.value) == ("BN", bn.bn_param.INFERENCE, 1)
    assert [spec.lr_mult for spec in bn.param] == [1, 0]
    net = Net(
        parse_net("""input: "x" input_dim: 1 input_dim: 2 input_dim: 3 input_dim: 3
        layers { name: "i" type: INTERP bottom: "x" top: "y" interp_param { zoom_factor: 8 } }""")
    )
    assert net.blob_shapes["y"] == (1, 2, 17, 17)


def test_param_lists_of_several_lengths() -> None:
    (layer,) = parse_net('layers { param: "a" blobs_lr: [1, 2] weight_decay: [3, 4, 5] }').layer
    assert [to_text(spec).split() for spec in layer.param] == [
        ["name:", '"a"', "lr_mult:", "1", "decay_mult:", "3"],
        ["lr_mult:", "2", "decay_mult:", "4"],
        ["decay_mult:", "5"],
    ]


def test_every_v0_field_has_a_place() -> None:
    """A field is either upgraded for some type or known to have been lost."""
    placed = {
        *V0_FIELDS,
        *V0_TRANSFORM,
        "name",
        "type",
        "blobs",
        "blobs_lr",
        "weight_decay",
        "hdf5_output_param",
    }
    assert {field.name for field in V0LayerParameter.DESCRIPTOR.fields} - placed == {
        "new_num",
        "new_channels",
    }


@pytest.mark.parametrize(
    ("field", "kind"), [(field, kind) for field, (_, kinds) in V0_FIELDS.items() for kind in kinds]
)
def test_v0_fields(field: str, kind: str) -> None:
    """Each field of each type arrives in that type's parameter, with its value."""
    new_field, param = V0_FIELDS[field][0], V0_TYPES[kind][1]
    descriptor = V0LayerParameter.DESCRIPTOR.fields_by_name[field]
    if descriptor.message_type is not None:
        value = '{ type: "xavier" }'
    elif descriptor.enum_type is not None:
        value = ": AVE"
    else:
        value = {descriptor.TYPE_STRING: ': "s"', descriptor.TYPE_BOOL: ": true"}.get(descriptor.type, ": 3")
    (layer,) = parse_net(f'layers {{ layer {{ name: "a" type: "{kind}" {field} {value} }} }}').layer
    assert to_text(layer) == to_text(
        parse_net(
            f'layer {{ name: "a" type: "{V1_TYPES[V0_TYPES[kind][0]]}" {param} {{ {new_field} {value} }} }}'
        ).layer[0]
    )


def test_v0_without_its_field_and_its_output() -> None:
    (layer,) = parse_net(
        'layers { layer { name: "a" type: "hdf5_output" hdf5_output_param { file_name: "f" } } }'
    ).layer
    assert layer.hdf5_output_param.file_name == "f"


def test_v0_problems_can_be_collected(caplog: pytest.LogCaptureFixture) -> None:
    """As Caffe's tools: they are logged, the rest is upgraded."""
    net = NetParameter(state={"level": 1})
    net.layers.add(layer={"name": "r", "type": "relu", "num_output": 3, "pad": 1}, top=["y"])
    problems: list[str] = []
    upgraded = upgrade_net(net, "old.prototxt", problems)
    assert problems == [
        "Unknown field state in a V0 net",
        "Unknown parameter num_output for layer type relu (layer 'r')",
        "Unknown parameter pad for layer type relu (layer 'r')",
    ]
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == [
        *problems,
        "Warning: had one or more problems upgrading V0NetParameter to NetParameter (see above); "
        "continuing anyway.",
    ]
    assert upgraded == parse_net('layer { name: "r" type: "ReLU" top: "y" }')


V0_LEFTOVERS = """
    layers { layer { name: "d" type: "data" new_channels: 3 } include { phase: TEST } top: "x" }
    layers { layer { name: "r" type: "relu" num_output: 3 kernelsize: 2 } bottom: "x" top: "y" }
"""
V0_DROPPED = [
    "Unknown field include beside V0 layer 'd'",
    "Unknown parameter new_channels for layer type data (layer 'd')",
    "Unknown parameter num_output for layer type relu (layer 'r')",
    "Unknown parameter kernelsize for layer type relu (layer 'r')",
]


def test_what_a_v0_net_says_in_vain_is_dropped_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """As Caffe, which goes on after its messages."""
    upgraded = parse_net(V0_LEFTOVERS, "old.prototxt")
    assert to_text(upgraded) == to_text(
        parse_net("""
        layer { name: "d" type: "Data" top: "x" } layer { name: "r" type: "ReLU" bottom: "x" top: "y" }
    """)
    )
    warnings = [record.getMessage() for record in caplog.records if "nothing" in record.getMessage()]
    assert warnings == [f"old.prototxt: these fields do nothing, as in Caffe: {'; '.join(V0_DROPPED)}"]


def test_what_a_v0_net_says_in_vain_is_an_error_where_that_is_wanted() -> None:
    listed = "; ".join(V0_DROPPED)
    want = f"old.prototxt: these fields do nothing: {listed}; remove them, or leave --strict out"
    with strict_fields(), pytest.raises(PrototxtError, match=f"^{re.escape(want)}$"):
        parse_net(V0_LEFTOVERS, "old.prototxt")


def test_v0_padding_of_a_pooling_and_from_an_input() -> None:
    net = parse_net("""
        input: "x" input_dim: 1 input_dim: 2 input_dim: 3 input_dim: 4
        layers { layer { name: "p" type: "padding" pad: 2 } bottom: "x" top: "xp" }
        layers { layer { name: "a" type: "pool" pad: 1 kernelsize: 3 } bottom: "xp" top: "y" }
        layers { layer { name: "b" type: "conv" } bottom: "xp" top: "z" }
        layers { layer { name: "c" type: "conv" } bottom: "x" top: "w" }
    """)
    assert [(layer.name, list(layer.bottom)) for layer in net.layer] == [
        ("input", []), ("a", ["x"]), ("b", ["x"]), ("c", ["x"])
    ]  # fmt: skip
    assert net.layer[1].pooling_param.pad == 2
    assert list(net.layer[2].convolution_param.pad) == [2]
    assert not net.layer[3].convolution_param.pad


def test_v0_negative_new_height() -> None:
    with pytest.raises(PrototxtError, match=r"^<text>: new_height: Value out of range: -1$"):
        parse_net('layers { layer { type: "images" new_height: -1 } }')


def test_input_dim() -> None:
    dims = " ".join(f"input_dim: {dim}" for dim in (256, 3, 32, 32, 256, 1, 1, 1))
    net = parse_net(f'input: "data" input: "label" {dims} layer {{ name: "a" bottom: "data" }}')
    assert to_text(net) == to_text(
        parse_net("""
            layer { name: "input" type: "Input" top: "data" top: "label"
              input_param { shape { dim: [256, 3, 32, 32] } shape { dim: [256, 1, 1, 1] } } }
            layer { name: "a" bottom: "data" }
        """)
    )


def test_inputs_without_shape_are_dropped() -> None:
    """As old caffemodels have them."""
    assert to_text(parse_net('input: "data" layer { name: "a" }')) == 'layer {\n  name: "a"\n}\n'


def test_batch_norm() -> None:
    three = "param { lr_mult: 1 } param { } param { decay_mult: 1 name: 's' }"
    scale = f"layer {{ type: 'Scale' {three} }}"
    net = parse_net(f"layer {{ type: 'BatchNorm' {three} }} {scale} layer {{ type: 'BatchNorm' }}")
    assert [(spec.lr_mult, spec.decay_mult, spec.name) for spec in net.layer[0].param] == [
        (0, 0, ""), (0, 0, ""), (0, 0, "s")
    ]  # fmt: skip
    assert [spec.lr_mult for spec in net.layer[1].param] == [1, 1, 1]
    assert not net.layer[2].param


def test_data_transform_of_every_data_layer() -> None:
    old = 'scale: 0.5 mean_file: "m" crop_size: 7 mirror: true'
    net = parse_net(f"""
        layers {{ type: DATA data_param {{ source: "s" {old} }} }}
        layers {{ type: IMAGE_DATA image_data_param {{ source: "s" {old} }}
                  transform_param {{ scale: 2 mean_value: 1 }} }}
        layers {{ type: WINDOW_DATA window_data_param {{ source: "s" {old} }} }}
        layers {{ type: RELU data_param {{ source: "s" {old} }} }}
    """)
    for layer, param in zip(net.layer, ("data_param", "image_data_param", "window_data_param"), strict=False):
        assert to_text(getattr(layer, param)) == 'source: "s"\n'
        transform = layer.transform_param
        assert (transform.scale, transform.mean_file, transform.crop_size, transform.mirror) == (
            0.5,
            "m",
            7,
            True,
        )
    assert list(net.layer[1].transform_param.mean_value) == [1]
    assert net.layer[3].data_param.HasField("scale")
    assert not net.layer[3].HasField("transform_param")


@pytest.mark.parametrize("version", ["V0", "V1"])
def test_old_caffemodels_keep_their_blobs(tmp_path: Path, version: str) -> None:
    blobs = [BlobProto(num=1, channels=1, height=1, width=2, data=[1, 2]), BlobProto(data=[3])]
    net = NetParameter(name="n", input=["x"])
    if version == "V0":
        net.layers.add(layer={"name": "ip", "type": "innerproduct", "blobs": blobs}, bottom=["x"], top=["y"])
    else:
        net.layers.add(name="ip", type=V1LayerParameter.INNER_PRODUCT, blobs=blobs, bottom=["x"], top=["y"])
    path = tmp_path / "old.caffemodel"
    path.write_bytes(net.SerializeToString())
    new = NetParameter(name="n")
    new.layer.add(name="ip", type="InnerProduct", blobs=blobs, bottom=["x"], top=["y"])
    assert read_net_binary(path) == new


def test_upgrades_do_not_touch_what_they_are_given() -> None:
    net = NetParameter(input=["x"], input_dim=[1, 2, 3, 4])
    net.layers.add(layer={"name": "d", "type": "data", "scale": 2}, top=["d"])
    before = net.SerializeToString()
    upgrade_net(net)
    assert net.SerializeToString() == before
    solver = SolverParameter(solver_type=SolverParameter.ADAM, net_param=net)
    before = solver.SerializeToString()
    upgrade_solver(solver)
    assert solver.SerializeToString() == before


@pytest.mark.parametrize(
    ("old", "new"),
    [("SGD", "SGD"), ("NESTEROV", "Nesterov"), ("ADAGRAD", "AdaGrad"), ("RMSPROP", "RMSProp"),
     ("ADADELTA", "AdaDelta"), ("ADAM", "Adam")],
)  # fmt: skip
def test_solver_types(old: str, new: str) -> None:
    assert to_text(parse_solver(f"solver_type: {old}")) == f'type: "{new}"\n'


def test_nets_inside_a_solver_are_upgraded() -> None:
    net = '{ layers { name: "r" type: RELU } }'
    solver = parse_solver(f"net_param {net} train_net_param {net} test_net_param {net} test_net_param {net}")
    for inside in (solver.net_param, solver.train_net_param, *solver.test_net_param):
        assert to_text(inside) == 'layer {\n  name: "r"\n  type: "ReLU"\n}\n'
