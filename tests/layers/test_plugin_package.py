"""A third party's package adds a layer type with parameters of its own, without touching this repository."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tolerances import tolerance

from imae.cli.main import main
from imae.converters.new_plugin import plugin_files, plugin_names

PACKAGE = Path(__file__).parents[1] / "plugin_xyz"

NET = """
name: "with a plugin"
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: [2, 3, 5] } } }
layer { name: "xyz" type: "Xyz" bottom: "x" top: "y" xyz_param { scale: 0.5 filler { value: 0.25 } } }
layer { name: "default" type: "Xyz" bottom: "y" top: "z" }
"""

BUILD = f"""
import torch
from imae.net.net import Net
from imae.prototxt import LayerParameter, parse_net, to_text
net = Net(parse_net({NET!r}))
x = torch.arange(30.0).reshape(2, 3, 5)
outputs = net({{"x": x}})
assert torch.equal(outputs["z"], 2 * (0.5 * x + 0.25)), outputs
outputs["z"].sum().backward()
assert net.params["xyz"][0].grad.tolist() == [20, 20, 20]
assert parse_net(to_text(net.param)).layer[1].xyz_param.scale == 0.5
assert LayerParameter.FromString(net.param.layer[1].SerializeToString()).xyz_param.filler.value == 0.25
print("ran")
"""

EXPORT = f"""
from imae.converters.export_onnx import ExportOptions, export_net
from imae.converters.deploy import deploy_net
from imae.net.net import Net
from imae.prototxt import parse_net
for opset in 13, 17, 22:
    result = export_net(Net(deploy_net(parse_net({NET!r}))), ExportOptions(opset=opset))
    assert [node.op_type for node in result.model.graph.node].count("Add") == 2, result.model.graph.node
    assert not result.not_compared and result.batch_sizes == (1, 3), result
    print(f"{{result.difference / result.largest:.2e}}")
"""

READ = """
from imae.files.errors import ImaeError
from imae.prototxt import parse_net
try:
    parse_net('layer { type: "Xyz" xyz_param { scaling: 3 } }', "net")
except ImaeError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip has installed the package that `imae new-plugin Xyz` writes."""
    folder = tmp_path_factory.mktemp("plugin")
    assert main(["new-plugin", "Xyz", "--folder", str(folder / "source")]) == 0
    command = [
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--target",
        "site",
        "./source",
    ]
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *command], cwd=folder, check=True
    )
    return folder / "site"


def run(code: str, *paths: Path) -> str:
    """What the code prints in a process that sees these folders besides the usual ones."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_net_with_the_plugins_layer(installed: Path) -> None:
    assert run(BUILD, installed) == "ran\n"


def test_the_plugins_net_exports(installed: Path) -> None:
    """Its layer adds its nodes; ONNX Runtime computes what the net does, with batches of 1 and 3."""
    differences = [float(line) for line in run(EXPORT, installed).split()]
    assert len(differences) == 3
    assert max(differences) <= tolerance("onnx").rtol


def test_its_own_tests_pass(installed: Path) -> None:
    """Gradients, ONNX, a training. They run where the source is, and find the package where pip put it."""
    source = installed.with_name("source")
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout


def test_what_the_command_writes_is_the_package_here() -> None:
    written = plugin_files(plugin_names("Xyz"))
    paths = [path for name in ("*", "imae_xyz/*", "tests/*.py", "example/*") for path in PACKAGE.glob(name)]
    here = {str(path.relative_to(PACKAGE)): path.read_text() for path in paths if path.is_file()}
    assert here == written and len(written) == 9


def test_a_misspelt_field_of_the_plugin(installed: Path) -> None:
    assert run(READ, installed) == (
        'net:1:33: message "imae_xyz.XyzParameter" has no field "scaling"; did you mean "scale"?\n'
    )


def test_without_the_package_the_field_is_unknown() -> None:
    assert run(READ).startswith('net:1:21: message "caffe.LayerParameter" has no field "xyz_param"')
