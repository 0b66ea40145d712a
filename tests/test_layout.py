"""The shape of the source tree: who imports whom, what files are called, where layer types live."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from imae.layers.registry import DRAWERS, layer_class, layer_types

ROOT = Path(__file__).parents[1]
PARTS = ("files", "prototxt", "layers", "net", "converters", "train", "paper", "cli", "pycaffe")
DEPENDENCIES = {
    "torch",
    "onnx",
    "onnxruntime",
    "numpy",
    "google",
    "lmdb",
    "cv2",
    "h5py",
    "tqdm",
    "grpc_tools",
}
# What the types of a drawer have in common; these files register nothing.
SHARED = {
    "data": {
        "lmdb_source",
        "leveldb_source",
        "datum",
        "record_order",
        "transformer",
        "base_data",
        "data_resources",
        "resident",
    },
    "loss": {"least_probability", "loss_normalizer"},
    "plugins": {"designed_loss", "example_weights"},
    "utility": {"synced_memory"},
}

STEP_CALLS = {"step.run", "step.layer", "self.step.run", "self.step.layer", "steps[index].layer"}

FILES = [path for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))]
assert FILES


def imports(path: Path) -> set[str]:
    """The modules that a file imports, as written; `if TYPE_CHECKING` blocks do not count."""
    found: set[str] = set()

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            found.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")

    Visitor().visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def imported_names(path: Path) -> set[str]:
    """What `from module import name` imports: module.name, which may be a module."""
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    imports_from = [node for node in tree if isinstance(node, ast.ImportFrom)]
    return {f"{node.module}.{alias.name}" for node in imports_from for alias in node.names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_folders_import_upwards_only(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    if name == "train/solve.py":
        return  # the script that Caffe users look for there; the command line without its first word
    part = path.relative_to(ROOT).parts[0]
    allowed = PARTS[: PARTS.index(part) + 1]
    for module in imports(path):
        if module.split(".")[0] == "imae":
            assert module.split(".")[1] in allowed, f"{path} imports {module}"
        else:
            assert module.split(".")[0] not in PARTS, f"{path} imports {module} under a second name"


def test_the_kernels_are_imported_through_their_package() -> None:
    kernels = ROOT / "net" / "kernels"
    modules = {f"imae.net.kernels.{path.stem}" for path in kernels.glob("*.py")}
    assert "imae.net.kernels.native" in modules
    for path in FILES:
        if kernels not in path.parents:
            assert not modules.intersection(imports(path) | imported_names(path)), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_commands_know_of_the_command_line(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] != "cli":
        assert "argparse" not in imports(path), f"{path} is a library, and declares options"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_bears_the_name_of_another_module(path: Path) -> None:
    if path.parent == ROOT / "train" or path.parent in {ROOT / part for part in PARTS}:
        assert path.stem not in sys.stdlib_module_names | DEPENDENCIES, path


def test_every_drawer_file_registers_a_type() -> None:
    homes = {layer_class(name).__module__ for name in layer_types()}
    for drawer in DRAWERS:
        for path in (ROOT / "layers" / drawer).glob("*.py"):
            if path.stem != "__init__" and path.stem not in SHARED.get(drawer, set()):
                assert f"imae.layers.{drawer}.{path.stem}" in homes, f"{path} registers no type"


def test_all_types_of_caffe_are_there() -> None:
    caffe = """
        AbsVal Accuracy ArgMax BNLL BatchNorm BatchReindex Bias Clip Concat ContrastiveLoss Convolution Crop
        Data Deconvolution Dropout DummyData ELU Eltwise Embed EuclideanLoss Exp Filter Flatten HDF5Data
        HDF5Output HingeLoss Im2col ImageData InfogainLoss InnerProduct Input LRN LSTM LSTMUnit Log MVN
        MemoryData MultinomialLogisticLoss PReLU Parameter Pooling Power Python RNN ReLU Reduction Reshape
        SPP Scale Sigmoid SigmoidCrossEntropyLoss Silence Slice Softmax SoftmaxWithLoss Split Swish TanH
        Threshold Tile WindowData"""
    assert len(caffe.split()) == 61
    assert set(caffe.split()) <= set(layer_types())


def test_every_type_has_a_case() -> None:
    cases = ROOT / "tests" / "cases"
    types = {path.name for path in (cases / "layers").iterdir()}
    prototxts = "".join(path.read_text(errors="replace") for path in cases.rglob("*.prototxt"))
    for name in layer_types():
        assert name in types or f'type: "{name}"' in prototxts, f"no case for {name}"


def test_net_asks_no_layer_for_its_type() -> None:
    """What it must know of a layer is an attribute of the layer's class."""
    types = set(layer_types())
    for path in sorted((ROOT / "net").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute):
                named = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
                assert node.left.attr != "type" or not named & types, f"{path}:{node.lineno}"


def test_steps_are_run_in_one_place() -> None:
    found = set()
    for part in ("net", "converters", "train", "paper", "cli", "pycaffe"):
        for path in sorted((ROOT / part).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in STEP_CALLS:
                    found.add(str(path.relative_to(ROOT)))
    assert found == {"net/step.py"}
