"""The shape of the source tree: who imports whom, what files are called, where layer types live."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import source_tree
from packaging.requirements import Requirement
from slow_tests import SLOW, is_slow
from source_tree import PARTS, ROOT_PACKAGE

import imae
from imae.layers.registry import DRAWERS, layer_class, layer_types

ROOT = Path(__file__).parents[1]
# What the types of a drawer have in common; these files register nothing.
SHARED = {
    "data": {
        "lmdb_source",
        "leveldb_source",
        "datum",
        "pixels",
        "record_order",
        "transformer",
        "base_data",
        "saved_state",
        "data_resources",
        "resident",
        "c_rand",
        "list_order",
        "random_resize",
        "image_transform",
        "drawn_ahead",
    },
    "loss": {"least_probability", "loss_normalizer"},
    "forks": {
        "annotations",
        "batch_sampler",
        "bn_caffemex",
        "bn_segnet",
        "bn_tsn",
        "boxes",
        "channel_norm",
        "detection_files",
        "distortion",
        "image_pairs",
        "normalize_normface",
        "rois",
        "smooth_l1_loss_rcnn",
        "upsample_mask",
        "upsample_nearest",
        "yolo_boxes",
        "yolo_truths",
    },
    "plugins": {"designed_loss", "label_loss"},
    "utility": {"python_blobs", "synced_memory"},
}

# Types of forks whose code was not run: the reference of their tests is a slow implementation.
NOT_RECORDED = {
    "AnnotatedData",
    "DenseImageData",
    "DetectionEvaluate",
    "EvalDetection",
    "ImageSegData",
    "InnerDistance",
    "Lstm",
    "PriorBoxClustered",
    "Proposal",
    "RegionLoss",
    "TripletLoss",
    "YoloDetectionOutput",
    "Yolov3",
    "Yolov3DetectionOutput",
}

STEP_CALLS = {"step.run", "step.layer", "self.step.run", "self.step.layer", "steps[index].layer"}
FILES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for part in (*PARTS, ROOT_PACKAGE, "benchmarks", "docs_site", "tests")
    for path in sorted((ROOT / part).rglob("*.py"))
}
OF_PARTS = [path for path in FILES if path.split("/")[0] in PARTS]
assert len(OF_PARTS) > 200

# The script that Caffe users look for in train/: the command line without its first word.
SCRIPT = "train/solve.py"
# Written by generate.py. schema.py takes the schema's bytes from it, and it takes the message classes from
# schema.py when they are first used.
GENERATED = "prototxt/caffe_pb2.py"


@pytest.mark.parametrize("path", OF_PARTS)
def test_parts_import_from_those_before_them(path: str) -> None:
    problems = [] if path == SCRIPT else source_tree.wrong_imports(path, FILES[path])
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", OF_PARTS)
def test_folders_of_a_part_import_in_their_order(path: str) -> None:
    problems = source_tree.wrong_imports_between_folders(path, FILES[path], DRAWERS)
    assert not problems, "\n".join(problems)


def test_the_package_itself_imports_parts_only_when_they_are_used() -> None:
    """So `import imae` loads neither torch nor numpy, and a Python in a checkout needs no installation."""
    names = {path for path in FILES if path.split("/")[0] == ROOT_PACKAGE}
    assert names == {"imae/__init__.py"} and (ROOT / "imae" / "py.typed").exists()
    program = "import sys, imae; print(*sys.modules); import imae.files.errors as e; print(e.__file__)"
    command = [sys.executable, "-S", "-c", program]  # -S: without what is installed
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    own = {name for name in done[0].split() if name.split(".")[0] not in sys.stdlib_module_names}
    assert own == {"__main__", "imae"} and done[1] == str(ROOT / "files" / "errors.py")


def test_the_package_has_what_it_lists() -> None:
    assert imae.__version__ == version("imae")
    assert set(imae.__all__) <= set(dir(imae)) and all(getattr(imae, name) for name in imae.__all__)
    with pytest.raises(AttributeError, match="module 'imae' has no attribute 'lod'"):
        imae.lod  # type: ignore[attr-defined]  # noqa: B018


def test_nothing_imports_in_circles() -> None:
    files = {path: FILES[path] for path in OF_PARTS if path not in {SCRIPT, GENERATED}}
    assert source_tree.circles(files) == []


def test_running_a_net_asks_no_layer_for_its_type() -> None:
    found = {path: source_tree.type_tests(path, FILES[path]) for path in OF_PARTS if path.startswith("net/")}
    problems = [problem for several in found.values() for problem in several]
    assert not problems, "\n".join(problems)


def test_the_kernels_are_imported_through_their_package() -> None:
    inside = [path for path in OF_PARTS if path.startswith("net/kernels/")]
    modules = {f"imae.{path.removesuffix('.py').replace('/', '.')}" for path in inside}
    assert "imae.net.kernels.native" in modules
    for path in set(OF_PARTS) - set(inside):
        names = {found.name for found in source_tree.imports(FILES[path])}
        assert not modules & names and not modules & {name.rpartition(".")[0] for name in names}, path


@pytest.mark.parametrize("path", OF_PARTS)
def test_only_commands_know_of_the_command_line(path: str) -> None:
    if not path.startswith("cli/"):
        assert "argparse" not in FILES[path], f"{path} is a library, and declares options"


@pytest.mark.parametrize("path", FILES)
def test_no_file_bears_the_name_of_another_module(path: str) -> None:
    assert source_tree.name_clash(path) == []


def test_the_names_of_all_dependencies_are_known() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {Requirement(text).name for group in groups for text in group}
    assert names == source_tree.DEPENDENCIES.keys()


def test_the_lists_of_this_file_name_files() -> None:
    assert {*source_tree.NAMES_MADE, SCRIPT, GENERATED} <= FILES.keys()
    for drawer, names in SHARED.items():
        assert {f"layers/{drawer}/{name}.py" for name in names} <= FILES.keys()


def test_the_slow_tests_are_tests() -> None:
    for name in SLOW:
        file, _, test = name.partition("::")
        assert f"def {test or 'test_'}" in FILES[f"tests/{file}"], f"there is no {name}"
        assert is_slow(f"tests/{file}::{test}[a-b]") and is_slow(f"/path/tests/{file}::{test}")
    assert not is_slow("tests/test_layout.py::test_x") and not is_slow(
        "tests/net/test_x.py::test_killed_twenty"
    )


def test_the_drawers_are_the_folders_of_layers() -> None:
    assert {path.split("/")[1] for path in OF_PARTS if re.match("layers/[^/]+/", path)} == set(DRAWERS)


WRONG = {
    "a later part": ("layers/vision/conv.py", "import imae.net.net", "layers/ imports imae.net.net"),
    "of it": ("prototxt/text.py", "from imae import layers", "prototxt/ imports imae.layers"),
    "by importlib": ("layers/layer.py", "import_module('imae.pycaffe')", "layers/ imports imae.pycaffe"),
    "in a function": ("files/read.py", "def f():\n    import imae.cli.main", ":2: files/ imports imae.cli"),
    "where not checked": (
        "net/net.py",
        "if TYPE_CHECKING: pass\nelse: import imae.train.solver",
        "imae.train",
    ),
    "find_spec": (
        "net/net.py",
        "importlib.util.find_spec('imae.paper.grid')",
        "net/ imports imae.paper.grid",
    ),
    "__import__": ("net/net.py", "__import__('imae.converters')", "net/ imports imae.converters"),
    "a process": ("paper/grid.py", "run([python, '-m', 'imae.cli.main'])", "paper/ imports imae.cli.main"),
    "a shell": ("paper/grid.py", "run('python -m imae.cli.main ' + words)", "paper/ imports imae.cli.main"),
    "code": (
        "train/launched_ranks.py",
        "CODE = 'import imae.pycaffe as caffe'",
        "train/ imports imae.pycaffe",
    ),
    "a table": (
        "train/launched_ranks.py",
        "TABLE = {'train': 'imae.cli.command_train'}",
        "imae.cli.command_train",
    ),
    "an entry point": (
        "net/net.py",
        "EntryPoint('a', 'imae.cli.main:main', 'g')",
        "net/ imports imae.cli.main",
    ),
    "a sum": ("layers/layer.py", "import_module('imae.' + 'pycaffe')", "layers/ imports imae.pycaffe"),
    "an f-string": ("layers/layer.py", "find(f'imae.net.{name}')", "layers/ imports imae.net"),
    "a part not known": ("layers/layer.py", "find(f'imae.{part}.net')", "puts a module's name together"),
    "a name not written": ("layers/layer.py", "import_module(name)", "that is not written here"),
    "a part of a name": ("layers/layer.py", "import_module('..net', 'imae.layers')", "not written here"),
    "a relative import": ("layers/layer.py", "from ..net import net", "relative import"),
    "a second name": ("layers/layer.py", "from importlib import import_module as load", "another name"),
    "another package": ("layers/layer.py", "from net.net import Net", "under a second name"),
    "tests": ("layers/layer.py", "import benchmarks.data", "imports benchmarks.data"),
    "all": ("layers/layer.py", "import imae", "write the module's whole name"),
    "pycaffe by cli": ("cli/main.py", "import imae.pycaffe", "cli/ imports imae.pycaffe"),
    "pycaffe by paper": ("paper/demo.py", "from imae.pycaffe import Net", "paper/ imports imae.pycaffe"),
}
WRONG_BETWEEN_FOLDERS = {
    "contract, drawer": ("layers/blob.py", "import imae.layers.vision.conv", "imports no drawer"),
    "a later drawer": (
        "layers/vision/conv.py",
        "from imae.layers.loss import accuracy",
        "vision/ comes before",
    ),
    "kernels, net": ("net/kernels/norm.py", "from imae.net.net import Net", "nothing else of net/"),
    "the language, models": ("prototxt/text.py", "import imae.prototxt.models.resnet", "before its models/"),
}
RIGHT = {
    "before": (
        "layers/vision/conv.py",
        "import imae.layers.layer, imae.prototxt.text, imae.layers.data.datum",
    ),
    "types": ("layers/layer.py", "if TYPE_CHECKING:\n    from imae.net.net import Net"),
    "docstring": ("layers/layer.py", '"""\nimae.net.net\n"""\ndef f():\n    """imae.net.net"""'),
    "a logger": ("files/caffe_log.py", "getLogger('imae.caffe'), entry_points(group='imae.python_layers')"),
    "an error": ("layers/layer.py", "raise ImportError('is no caffe.Layer of imae.pycaffe; see train')"),
    "models": ("prototxt/models/resnet.py", "import imae.prototxt.text, imae.prototxt.models.net_parts"),
    "kernels": ("net/fuse.py", "import imae.net.kernels.norm"),
    "kernels' own": ("net/kernels/norm.py", "import imae.net.kernels.native, imae.layers.layer"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_import_is_noticed(name: str) -> None:
    path, text, problem = WRONG[name]
    assert problem in "\n".join(source_tree.wrong_imports(path, text))
    assert source_tree.wrong_imports(path, f"{FILES[path]}\n{text}") != source_tree.wrong_imports(
        path, FILES[path]
    )


@pytest.mark.parametrize("name", WRONG_BETWEEN_FOLDERS)
def test_a_wrong_import_between_folders_is_noticed(name: str) -> None:
    path, text, problem = WRONG_BETWEEN_FOLDERS[name]
    assert problem in "\n".join(source_tree.wrong_imports_between_folders(path, text, DRAWERS))
    assert source_tree.wrong_imports_between_folders(path, f"{FILES[path]}\n{text}", DRAWERS)


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_import_is_none(name: str) -> None:
    path, text = RIGHT[name]
    assert source_tree.wrong_imports(path, text) == []
    assert source_tree.wrong_imports_between_folders(path, text, DRAWERS) == []


def test_circles_are_noticed() -> None:
    plain = {"files/a.py": "", "files/b.py": "import imae.files.a", "net/c.py": "import imae.files.b"}
    assert source_tree.circles(plain) == []
    in_part = plain | {"files/a.py": "def f():\n    from imae.files.b import g"}
    assert source_tree.circles(in_part) == ["files.a -> files.b -> files.a"]
    between = plain | {"files/d.py": "find_spec('imae.net.c')"}
    assert source_tree.circles(between) == ["files -> net -> files"]
    planted = {path: FILES[path] for path in OF_PARTS if path not in {SCRIPT, GENERATED}}
    planted["prototxt/text.py"] += "\nimport imae.layers.layer"
    assert any(circle.startswith("layers -> prototxt -> layers") for circle in source_tree.circles(planted))


def test_a_comparison_of_types_is_noticed() -> None:
    for text in (
        "if step.layer.type == 'Input': pass",
        "found = 'Input' != param.type",
        "any(layer.type in ('Input', 'Data') for layer in net)",
        "if type(layer) is Input: pass",
        "match layer.type:\n    case 'Input': pass",
    ):
        assert len(source_tree.type_tests("net/net.py", text)) == 1
    assert source_tree.type_tests("net/net.py", "x.device.type == 'cpu' and device.type == d.dtype") == []


@pytest.mark.parametrize(
    "path", ["train/signal.py", "layers/data/copy.py", "tests/support/pydot.py", "net/cv2.py"]
)
def test_a_name_of_another_module_is_noticed(path: str) -> None:
    assert len(source_tree.name_clash(path)) == 1


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
    # Other tests of this process may have registered types of their own.
    for name in (n for n in layer_types() if layer_class(n).__module__.startswith("imae.layers.")):
        recorded = name in types or f'type: "{name}"' in prototxts
        assert recorded != (name in NOT_RECORDED), f"no case for {name}"


def test_steps_are_run_in_one_place() -> None:
    found = set()
    for path in OF_PARTS:
        if path.split("/")[0] in ("net", "converters", "train", "paper", "cli", "pycaffe"):
            for node in ast.walk(ast.parse(FILES[path])):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in STEP_CALLS:
                    found.add(path)
    assert found == {"net/step.py"}
