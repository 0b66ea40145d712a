"""The schema: Caffe's facts, our own pool, plugins' fields."""

import ast
import copy
import importlib
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

from imae.files import errors as errors_module
from imae.files.errors import DeviceError, ImaeError, LayerError, PrototxtError
from imae.prototxt import (
    TEST,
    TRAIN,
    LayerParameter,
    NetParameter,
    Phase,
    broken_plugins,
    caffe_pb2,
    parse_text,
    schema,
    to_text,
)
from imae.prototxt.fork_names import FORK_NUMBERS
from imae.prototxt.generate import generate
from imae.prototxt.schema import Plugin, build_pool, build_working_pool, installed_plugins, message_class

CAFFE = FileDescriptorProto.FromString(caffe_pb2.SERIALIZED)

# The losses that papers compare with.
COMPARED = {
    "SCE": "sce", "AUL": "aul", "AGCE": "agce", "AEL": "ael", "TCE": "tce", "NCE": "nce",
    "LabelSmoothing": "label_smoothing", "Bootstrapping": "bootstrapping", "Correction": "correction",
}  # fmt: skip
# What is ours: everything else is Caffe's.
OURS = {
    "IMAELossParameter", "MAELossParameter", "MSELossParameter", "GCELossParameter", "DMLossParameter",
    "WeightedSoftmaxLossParameter", "WeightNormalization",
    "LayerParameter.imae_loss_param", "LayerParameter.mae_loss_param", "LayerParameter.mse_loss_param",
    "LayerParameter.gce_loss_param", "LayerParameter.dm_loss_param",
    "LayerParameter.weighted_softmax_loss_param", "LossParameter.lamda_p", "LossParameter.scale",
    "SolverState.imae_run", "SolverState.minimum_loss", "SolverState.iter_last_event",
    "DataOrderParameter", "LayerParameter.data_order_param",
    "TransformationParameter.exclude_last_crop",
    *(f"{name}LossParameter" for name in COMPARED),
    *(f"LayerParameter.{field}_loss_param" for field in COMPARED.values()),
}  # fmt: skip


FORKS_PROTO = Path(schema.__file__).with_name("forks.proto").read_text(encoding="utf-8")
FORK_MESSAGES = set(re.findall(r"^message (\w+)", FORKS_PROTO, re.MULTILINE))


def is_forks(line: str) -> bool:
    """Whether a line describes a field, or a value of an enum of Caffe's, that forks added."""
    return int(re.findall(r" = (\d+)", line)[0]) in FORK_NUMBERS


def described(message: DescriptorProto, scope: str = "") -> Iterator[str]:
    """One line per field and enum value, in the form of cases/schema/caffe.txt."""
    name = scope + message.name
    for field in message.field:
        kind = (
            field.type_name.removeprefix(".caffe.") or FieldDescriptorProto.Type.Name(field.type)[5:].lower()
        )
        label = FieldDescriptorProto.Label.Name(field.label)[6:].lower()
        default = f" default {field.default_value!r}" if field.HasField("default_value") else ""
        packed = " packed" if field.options.packed else ""
        yield f"{name}.{field.name} = {field.number} {label} {kind}{default}{packed}"
    for enum in message.enum_type:
        yield from described_enum(enum, f"{name}.")
    for nested in message.nested_type:
        yield from described(nested, f"{name}.")


def described_enum(enum: EnumDescriptorProto, scope: str = "") -> Iterator[str]:
    for value in enum.value:
        yield f"{scope}{enum.name}: {value.name} = {value.number}"


def test_every_fact_is_caffes() -> None:
    lines = [line for message in CAFFE.message_type for line in described(message)]
    lines += [line for enum in CAFFE.enum_type for line in described_enum(enum)]
    forks = [line for line in lines if line.split(".")[0] in FORK_MESSAGES or is_forks(line)]
    assert len(forks) > 300
    lines = [line for line in lines if line not in forks]
    ours = [line for line in lines if line.split(".")[0] in OURS or line.split(" ")[0] in OURS]
    assert {name for name in OURS if any(line.startswith(name) for line in ours)} == OURS
    path = Path(__file__).parents[1] / "cases" / "schema" / "caffe.txt"
    caffes = path.read_text(encoding="utf-8").splitlines()
    assert len(caffes) > 500
    assert sorted(set(lines) - set(ours)) == caffes


def test_our_fields_keep_clear_of_caffes() -> None:
    layer = LayerParameter.DESCRIPTOR
    for name in (name.partition(".")[2] for name in OURS if name.startswith("LayerParameter.")):
        assert 1000 <= layer.fields_by_name[name].number < 10_000


def test_generated_files_are_up_to_date() -> None:
    """The stub is compared by its classes and fields: its form is up to protoc's version."""
    generated = generate()
    assert Path(caffe_pb2.__file__).read_text(encoding="utf-8") == generated["caffe_pb2.py"]
    stub = Path(caffe_pb2.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    assert fields_of_stub(stub) == fields_of_stub(generated["caffe_pb2.pyi"])
    assert len(fields_of_stub(stub)) > 80


def fields_of_stub(text: str) -> dict[str, list[str]]:
    classes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
    return {
        node.name: sorted(ast.unparse(line) for line in node.body if isinstance(line, ast.AnnAssign))
        for node in classes
    }


def test_defaults() -> None:
    layer = LayerParameter()
    assert (layer.imae_loss_param.t, layer.gce_loss_param.q, layer.dm_loss_param.beta) == (
        8,
        pytest.approx(0.7),
        8,
    )
    assert getattr(layer.dm_loss_param, "lambda") == 1
    by_sum, by_size = caffe_pb2.WeightNormalization.SUM_OF_WEIGHTS, caffe_pb2.WeightNormalization.BATCH_SIZE
    assert layer.imae_loss_param.normalizer == layer.dm_loss_param.normalizer == by_sum
    assert layer.mae_loss_param.normalizer == layer.gce_loss_param.normalizer == by_size
    assert layer.weighted_softmax_loss_param.variant == caffe_pb2.WeightedSoftmaxLossParameter.MAE
    assert (layer.loss_param.lamda_p, layer.loss_param.scale) == (1, 1)
    assert not layer.HasField("phase")


def test_caffe_pb2_works_as_caffes_module_does() -> None:
    assert caffe_pb2.NetParameter is NetParameter
    assert (caffe_pb2.TRAIN, caffe_pb2.TEST) == (TRAIN, TEST) == (0, 1)
    assert caffe_pb2.Phase.Name(1) == Phase.Name(TEST) == "TEST"
    assert caffe_pb2.PoolingParameter.AVE == caffe_pb2.PoolingParameter.PoolMethod.Value("AVE") == 1
    with pytest.raises(AttributeError, match=r"^caffe\.proto has no NetParametre$"):
        caffe_pb2.NetParametre  # noqa: B018


def test_every_exported_name_is_there() -> None:
    package = importlib.import_module("imae.prototxt")
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'read_nets'"):
        package.read_nets  # noqa: B018


def test_messages_can_be_copied_and_pickled() -> None:
    net = NetParameter(name="n", layer=[LayerParameter(name="a", blobs=[{"data": [1, 2]}])])
    assert copy.deepcopy(net) == net
    assert pickle.loads(pickle.dumps(net)) == net  # noqa: S301
    incomplete = LayerParameter()
    incomplete.clip_param.min = 1  # max is required
    assert pickle.loads(pickle.dumps(incomplete)) == incomplete  # noqa: S301


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_another_caffe_pb2_does_no_harm(first: str) -> None:
    """One whose LayerParameter is quite another, in protobuf's default pool."""
    theirs = """
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe")
file.message_type.add(name="LayerParameter").field.add(name="only_theirs", number=1, type=5, label=1)
pool = descriptor_pool.Default()
pool.AddSerializedFile(file.SerializeToString())
Theirs = message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.LayerParameter"))
"""
    ours = "from imae.prototxt import LayerParameter, parse_net\n"
    check = """
import pickle
import re
assert Theirs(only_theirs=3).only_theirs == 3
layer = parse_net('layer { name: "a" type: "ReLU" }').layer[0]
assert pickle.loads(pickle.dumps(layer)) == LayerParameter(name="a", type="ReLU")
print("both")
"""
    assert run((theirs + ours if first == "theirs" else ours + theirs) + check) == "both\n"


def test_nothing_is_added_to_the_default_pool() -> None:
    code = """
from google.protobuf import descriptor_pool
from imae.prototxt import LayerParameter
try:
    descriptor_pool.Default().FindMessageTypeByName("caffe.LayerParameter")
except KeyError:
    print("clean")
"""
    assert run(code) == "clean\n"


XYZ = Plugin("xyz = imae_xyz:xyz.proto", """
    syntax = "proto2";
    package imae_xyz;
    import "caffe.proto";
    enum Way { UP = 0; DOWN = 1; }
    message XyzParameter {
      message Part { optional string name = 1; }
      optional float scale = 1 [default = 2];
      optional caffe.FillerParameter filler = 2;
      optional Way way = 3 [default = DOWN];
      repeated Part part = 4;
      optional caffe.NetParameter inner = 5;
      optional XyzParameter deeper = 6;
    }
    extend caffe.LayerParameter { optional XyzParameter xyz_param = 20001; }
""")  # fmt: skip


def plugin(name: str, body: str, package: str = "package other;") -> Plugin:
    return Plugin(name, f'syntax = "proto2"; {package} import "caffe.proto"; {body}')


def layer_class(pool: DescriptorPool) -> type[Any]:
    return message_class(pool, "caffe.LayerParameter")


def parsed(pool: DescriptorPool, text: str) -> Any:
    return parse_text(text, layer_class(pool), "plugin")


def test_a_plugins_extension_is_a_real_field() -> None:
    pool = build_pool([XYZ])
    text = """\
name: "a"
type: "Xyz"
xyz_param {
  scale: 0.5
  filler {
    type: "xavier"
  }
  way: UP
  part {
    name: "p"
  }
  inner {
    layer {
      xyz_param {
        scale: 3
      }
    }
  }
}
"""
    layer = parsed(pool, text)
    assert layer.xyz_param.scale == 0.5
    assert layer.xyz_param.filler.type == "xavier"
    assert layer.xyz_param.DESCRIPTOR.full_name == "imae_xyz.XyzParameter"
    assert to_text(layer) == text
    assert layer_class(pool).FromString(layer.SerializeToString()) == layer
    empty = parsed(pool, 'type: "Xyz"')
    assert not empty.HasField("xyz_param")
    assert (empty.xyz_param.scale, empty.xyz_param.way) == (2, 1)
    assert message_class(pool, "caffe.NetParameter")(layer=[layer]).layer[0] == layer


def test_errors_inside_a_plugins_field() -> None:
    pool = build_pool([XYZ])
    with pytest.raises(PrototxtError) as error:
        parsed(pool, "xyz_param { scal: 1 }")
    assert str(error.value) == (
        'plugin:1:13: message "imae_xyz.XyzParameter" has no field "scal"; did you mean "scale"?'
    )
    with pytest.raises(
        PrototxtError, match=r'^plugin:1:18: enum "imae_xyz\.Way" has no value LEFT; known: UP, DOWN$'
    ):
        parsed(pool, "xyz_param { way: LEFT }")
    with pytest.raises(PrototxtError, match=r"^plugin: nested too deeply$"):
        parsed(pool, "xyz_param {" + "deeper {" * 10_000)


def test_several_plugins_of_all_forms() -> None:
    """Fields that are no messages, repeated ones, one declared inside a message, all sorts of packages."""
    pool = build_pool([
        XYZ,
        plugin("flag", f"{EXTEND} {{ optional bool flag = 20002; repeated int32 ways = 20003; }}"),
        plugin("inner", f"message P {{ {EXTEND} {{ repeated P p_param = 20004; }} optional int32 n = 1; }}"),
        plugin("bare", f"message Bare {{ optional int32 n = 1; }} {EXTEND} {{ optional Bare bare = 20005; }}",
               ""),
        plugin("dotted", f"message D {{ optional string s = 1; }} {EXTEND} {{ optional D d = 20006; }}",
               "package other.deep;"),
        plugin("empty", ""),
    ])  # fmt: skip
    layer = parsed(pool, "flag: true ways: [1, 2] p_param { n: 3 } bare { n: 4 } d { s: '5' }")
    printed = " ".join(to_text(layer).split())
    assert printed == 'flag: true ways: 1 ways: 2 p_param { n: 3 } bare { n: 4 } d { s: "5" }'
    assert layer.p_param[0].DESCRIPTOR.full_name == "other.P"
    assert layer.bare.DESCRIPTOR.full_name == "Bare"
    assert layer.d.DESCRIPTOR.full_name == "other.deep.D"


EXTEND = "extend caffe.LayerParameter"
ABC = plugin("abc", f"message P {{ }} {EXTEND} {{ optional P abc_param = 20001; }}")
CANNOT = "plugin 'p': its .proto cannot be compiled: plugin.proto:"
BROKEN = {
    "name of a field of Caffe's": (
        [plugin("p", f"{EXTEND} {{ optional bool relu_param = 20001; }}")],
        "plugin 'p': field relu_param = 20001 of LayerParameter: relu_param is also taken by caffe.proto; "
        "change one of them",
    ),
    "number of another plugin": (
        [XYZ, ABC],
        "plugin 'abc': field abc_param = 20001 of LayerParameter: 20001 is also taken by plugin "
        "'xyz = imae_xyz:xyz.proto'; change one of them",
    ),
    "name of a field of another plugin": (
        [ABC, plugin("p", f"{EXTEND} {{ optional bool abc_param = 20002; }}", package="")],
        "plugin 'p': field abc_param = 20002 of LayerParameter: abc_param is also taken by plugin 'abc'; "
        "change one of them",
    ),
    "message of another plugin": (
        [ABC, plugin("p", "message P { }")],
        "plugin 'p': other.P is also defined by plugin 'abc'; rename one",
    ),
    "enum value of another plugin": (
        [plugin("p", "enum A { X = 0; }"), plugin("q", "enum B { X = 0; }")],
        "the schemas of the plugins p, q do not go together: ",
    ),
    "message of Caffe's": (
        [plugin("p", "message FillerParameter { }", package="package caffe;")],
        f'{CANNOT}1:65: "caffe.FillerParameter" is already defined in file "caffe.proto".',
    ),
    "number below 20000": (
        [plugin("p", f"{EXTEND} {{ optional bool x = 1999; }}")],
        "plugin 'p': field number 1999 of LayerParameter is kept for Caffe and its forks; use 20000 or more",
    ),
    "number of R-FCN's": (
        [plugin("p", f"{EXTEND} {{ optional bool x = 10001; }}")],
        "plugin 'p': field number 10001 of LayerParameter is kept for Caffe and its forks; use 20000 or more",
    ),
    "number in Caffe's message that forks.proto may take": (
        [plugin("p", f"{EXTEND} {{ optional bool x = 9999; }}")],
        "plugin 'p': field number 9999 of LayerParameter is kept for Caffe and its forks; use 20000 or more",
    ),
    "number of a field of Caffe's": (
        [plugin("p", f"{EXTEND} {{ optional bool x = 143; }}")],
        "plugin 'p': field number 143 of LayerParameter is also taken by input_param of caffe.proto; "
        "use 20000 or more",
    ),
    "not a .proto": ([plugin("p", "message P { optional float }")], f"{CANNOT}1:84: Expected field name."),
    "import of another file": (
        [plugin("p", "", package='import "missing.proto";')],
        f'{CANNOT}1:20: Import "missing.proto" was not found or had errors.',
    ),
    "proto3": (
        [Plugin("p", 'syntax = "proto3"; message P { int32 a = 1; }')],
        "plugin 'p': its .proto must be proto2, got proto3",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_plugins(name: str) -> None:
    plugins, message = BROKEN[name]
    with pytest.raises(PrototxtError) as error:
        build_pool(plugins)
    assert str(error.value).startswith(message)


def install(folder: Path, value: str) -> None:
    """A package that must not be imported, as pip would leave it."""
    (folder / "imae_xyz").mkdir()
    (folder / "imae_xyz" / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    (folder / "imae_xyz" / "xyz.proto").write_text(str(XYZ.proto), encoding="utf-8")
    info = folder / "imae_xyz-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: imae-xyz\nVersion: 1\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[imae.protos]\nxyz = {value}\n", encoding="utf-8")


def test_installed_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = installed_plugins()
    install(tmp_path, "imae_xyz:xyz.proto")
    monkeypatch.syspath_prepend(tmp_path)
    assert sorted(installed_plugins()) == sorted([*before, XYZ._replace(distribution="imae-xyz")])


@pytest.mark.parametrize(
    "value", ["imae_xyz:zyx.proto", "no_package:xyz.proto", "no.package:xyz.proto", "imae_xyz", ":"]
)
def test_an_entry_point_to_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    before = installed_plugins()
    install(tmp_path, value)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(broken_plugins, "_broken", {})
    assert installed_plugins() == before == installed_plugins()
    assert [record.getMessage() for record in caplog.records] == [
        f"plugin imae-xyz is broken and left out: its entry point 'xyz' in imae.protos is '{value}', "
        "expected PACKAGE:FILE.proto, and there is no such file; "
        "is it listed in [tool.setuptools.package-data]?; mend it or pip uninstall imae-xyz"
    ]


def test_a_distribution_is_merged_whole_or_not_at_all() -> None:
    """Its second file is broken, so its first one's field is not there; other distributions' are."""
    whole, other = XYZ._replace(distribution="imae-xyz"), ABC._replace(distribution="imae-abc")
    bad = plugin("bad", f"{EXTEND} {{ optional bool bad = 20003; }} oops")._replace(distribution="imae-xyz")
    moved = other._replace(proto=other.proto.replace("20001", "20007"))
    pool, broken = build_working_pool([whole, moved, bad])
    fields = layer_class(pool).DESCRIPTOR.fields_by_name
    assert "abc_param" in fields and not {"xyz_param", "bad"} & set(fields)
    assert list(broken) == ["imae-xyz"] and "cannot be compiled" in broken["imae-xyz"]


def test_of_two_that_clash_the_later_is_left_out() -> None:
    """Also where only protobuf notices: an enum's value, which belongs to the whole package."""
    pool, broken = build_working_pool([XYZ, ABC])
    assert layer_class(pool).DESCRIPTOR.fields_by_number[20001].name == "xyz_param"
    assert list(broken) == ["abc"]
    a, b = (
        plugin("p", "enum A { X = 0; }"),
        plugin("q", f"enum B {{ X = 0; }} {EXTEND} {{ optional B b = 20009; }}"),
    )
    pool, broken = build_working_pool([a, b, ABC])
    assert list(broken) == ["q"] and "b" not in layer_class(pool).DESCRIPTOR.fields_by_name
    assert "abc_param" in layer_class(pool).DESCRIPTOR.fields_by_name
    assert message_class(pool, "caffe.LayerParameter")(name="a").name == "a"


USE_WITHOUT_GRPCIO_TOOLS = """
import sys
sys.path.insert(0, {folder!r})
sys.modules["grpc_tools"] = None  # as where it is not installed
import logging
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from imae.prototxt import LayerParameter
print(LayerParameter().xyz_param.scale if hasattr(LayerParameter(), "xyz_param") else "no field")
"""


def test_a_proto_needs_grpcio_tools(tmp_path: Path) -> None:
    install(tmp_path, "imae_xyz:xyz.proto")
    assert run(USE_WITHOUT_GRPCIO_TOOLS.format(folder=str(tmp_path))) == (
        "plugin imae-xyz is broken and left out: plugin 'xyz = imae_xyz:xyz.proto': its .proto must be "
        "compiled, and there is no grpcio-tools; pip install grpcio-tools, or imae with its extra: "
        "imae[plugins]; mend it or pip uninstall imae-xyz\nno field\n"
    )


def test_a_compiled_proto_needs_no_grpcio_tools(tmp_path: Path) -> None:
    """Compiled by the command in schema.py's docstring."""
    install(tmp_path, "imae_xyz:xyz.pb")
    (command,) = re.findall(r"(?m)^    python (-m grpc_tools.protoc .+)$", schema.__doc__ or "")
    words = command.replace("FOLDER", str(Path(schema.__file__).parent)).replace("FILE", "xyz").split()
    subprocess.run([sys.executable, *words], cwd=tmp_path / "imae_xyz", check=True)
    assert run(USE_WITHOUT_GRPCIO_TOOLS.format(folder=str(tmp_path))) == "2.0\n"


@pytest.mark.parametrize("content", [b"", b"\xff", XYZ.proto], ids=["empty", "no message", "text"])
def test_a_file_that_protoc_has_not_written(content: str | bytes) -> None:
    content = content.encode() if isinstance(content, str) else content
    with pytest.raises(PrototxtError) as error:
        build_pool([Plugin("p", content)])
    assert str(error.value) == (
        "plugin 'p': the file must hold one .proto that protoc has compiled (--descriptor_set_out, without "
        "--include_imports); it holds 0"
    )


def test_the_error_family() -> None:
    family = [
        value
        for value in vars(errors_module).values()
        if isinstance(value, type) and issubclass(value, ImaeError)
    ]
    assert len(family) == 11
    for kind in family:
        assert issubclass(kind, ValueError) or kind.__name__ in ("ImaeError", "FileError")
    assert str(DeviceError("no GPU 3")) == "no GPU 3"
    assert (
        str(LayerError(LayerParameter(name="conv1", type="Convolution"), "bad"))
        == "layer 'conv1' (Convolution): bad"
    )
    assert str(LayerError("conv1", "bad")) == "layer 'conv1': bad"
    assert str(LayerError("bad")) == "bad"


def test_all_messages_are_of_our_pool() -> None:
    assert issubclass(LayerParameter, Message)
    assert LayerParameter.DESCRIPTOR.file.pool is schema.POOL
