"""A broken plugin breaks no other net: one warning names it, and it is an error only where it is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROTO = """syntax = "proto2";
package imae_xyz;
import "caffe.proto";
message XyzParameter { optional float scale = 1; }
extend caffe.LayerParameter { optional XyzParameter xyz_param = 20001; }
"""
LAYERS = """
from imae.layers.layer import Layer
from imae.layers.registry import register_layer
@register_layer("Xyz")
class Xyz(Layer):
    num_bottoms = num_tops = 1
    def forward(self, x):
        return self.param.xyz_param.scale * x
"""
INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 } } }\n'
NETS = {
    "other": 'layer { name: "r" type: "ReLU" bottom: "x" top: "y" }',
    "type": 'layer { name: "y" type: "Xyz" bottom: "x" top: "y" }',
    "field": 'layer { name: "y" type: "Xyz" bottom: "x" top: "y" xyz_param { scale: 2 } }',
    "unknown": 'layer { name: "y" type: "Abc" bottom: "x" top: "y" abc_param { } }',
}
# What each net gives: its layer's type or the error; then the log.
PROGRAM = f"""
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
from imae.files.errors import ImaeError
from imae.net.net import Net
from imae.prototxt import parse_net
for name, text in {NETS!r}.items():
    try:
        print(name, Net(parse_net({INPUT!r} + text)).layers[1].type)
    except ImaeError as error:
        print(name, error)
"""


def install(folder: Path, name: str, proto: str | None, layers: str) -> None:
    """A plugin imae-NAME as pip would leave it; without a .proto if that is None."""
    files = {f"imae_{name}/__init__.py": "", f"imae_{name}/layers.py": layers}
    if proto is not None:
        files[f"imae_{name}/{name}.proto"] = proto
    info = f"imae_{name}-1.dist-info"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: imae-{name}\nVersion: 1\n"
    files[f"{info}/entry_points.txt"] = (
        f"[imae.protos]\n{name} = imae_{name}:{name}.proto\n[imae.layers]\n{name} = imae_{name}.layers\n"
    )
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in files)
    for file, text in files.items():
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def results(folder: Path) -> tuple[dict[str, str], list[str]]:
    """What each of NETS gives, and the log's lines."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    log = [line for line in lines if line.startswith("WARNING")]
    return dict(line.split(" ", 1) for line in lines if line not in log), log


BROKEN = {
    "no module": (PROTO, "import no_such_module\n" + LAYERS, "ModuleNotFoundError: No module named 'no_such"),
    "our type": (
        PROTO,
        LAYERS + '\n@register_layer("ReLU")\nclass Mine(Xyz):\n    pass\n',
        "layer type 'ReLU' is registered twice: by imae.layers.activation.relu.ReLU and by imae_xyz.",
    ),
    "no .proto": (None, LAYERS, "is it listed in [tool.setuptools.package-data]?"),
    "not compiled": (
        PROTO + "message {",
        LAYERS,
        "its .proto cannot be compiled: plugin.proto:6:9: Expected",
    ),
    "a field of Caffe's": (
        PROTO.replace(
            "}\nextend", "}\nextend caffe.LayerParameter { optional bool relu_param = 20003; }\nextend"
        ),
        LAYERS,
        "relu_param is also taken by caffe.proto",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_an_error_only_where_it_is_needed(tmp_path: Path, case: str) -> None:
    proto, layers, reason = BROKEN[case]
    install(tmp_path, "xyz", proto, layers)
    of_net, log = results(tmp_path)
    assert of_net["other"] == "ReLU"
    remedy = "mend it or pip uninstall imae-xyz"
    assert len(log) == 1 and log[0].startswith("WARNING plugin imae-xyz is broken and left out: ")
    assert reason in log[0] and log[0].endswith(f"; {remedy}")
    words = "the plugin imae-xyz that has it is broken: "
    assert f"type Xyz: {words}" in of_net["type"]
    for net in ("type", "field"):
        assert reason in of_net[net] and of_net[net].endswith(remedy)
    assert "; a broken plugin may have it: imae-xyz: " in of_net["unknown"] and reason in of_net["unknown"]


def test_two_plugins_with_one_type(tmp_path: Path) -> None:
    """The first by name has it; of the other one nothing is left, neither this type nor its others."""
    install(tmp_path, "xyz", PROTO, LAYERS)
    proto = PROTO.replace("xyz", "zzz").replace("20001", "20002")
    layers = LAYERS.replace('"Xyz"', '"Abc"') + LAYERS.replace("class Xyz", "class Again")
    install(tmp_path, "zzz", proto, layers)
    of_net, log = results(tmp_path)
    assert (of_net["other"], of_net["type"], of_net["field"]) == ("ReLU", "Xyz", "Xyz")
    assert len(log) == 1 and "layer type 'Xyz' is registered twice" in log[0] and "imae-zzz" in log[0]
    assert of_net["unknown"].startswith(
        '<text>:2:52: message "caffe.LayerParameter" has no field "abc_param"'
    )
