"""The rules of the source tree, as functions from a file's path and text to a list of problems.

Paths are relative to the top of the repository, with slashes. An import counts anywhere in a file, also
inside a function, and also if a string names a module: `import_module("imae.net.net")`, a table of modules,
`-m imae.cli.main` in a command. Only imports under `if TYPE_CHECKING:` do not count. tests/test_layout.py
applies the rules.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

# Each part imports from itself and from those before it. Benchmarks and tests import from any.
PARTS = ("files", "prototxt", "losses", "layers", "net", "converters", "train", "paper", "cli", "pycaffe")
# The folder of the package itself. It imports parts when they are first used, and no part imports it.
ROOT_PACKAGE = "imae"
# Distributions that pyproject.toml asks for, with the modules that they install.
DEPENDENCIES = {
    "torch": ("torch", "torchgen", "functorch"),
    "numpy": ("numpy",),
    "protobuf": ("google",),
    "lmdb": ("lmdb",),
    "onnx": ("onnx",),
    "onnxruntime": ("onnxruntime",),
    "onnxruntime-gpu": ("onnxruntime",),
    "opencv-python-headless": ("cv2",),
    "h5py": ("h5py",),
    "tqdm": ("tqdm",),
    "matplotlib": ("matplotlib", "mpl_toolkits", "pylab"),
    "grpcio-tools": ("grpc_tools", "grpc"),
    "pydot": ("pydot",),
    "plyvel": ("plyvel",),
    "safetensors": ("safetensors",),
    "pytest": ("pytest", "py"),
    "pytest-xdist": ("xdist",),
    "ruff": ("ruff",),
    "mypy": ("mypy", "mypyc"),
    "types-protobuf": (),
    "types-tqdm": (),
    "setuptools": ("setuptools", "pkg_resources"),
    "openvino": ("openvino",),
    "ipykernel": ("ipykernel",),
    "nbclient": ("nbclient",),
    "nbconvert": ("nbconvert",),
    "mkdocs-material": ("material",),
    "mkdocstrings-python": ("mkdocstrings_handlers",),
}
# Functions that import a module by a name passed as an argument.
IMPORTERS = ("import_module", "__import__", "find_spec", "run_module", "resolve_name")
# Files in which such a name is not a literal, and the modules that it names, which the order of the parts
# does not forbid.
NAMES_MADE = {
    "prototxt/__init__.py": "its own modules",
    "prototxt/broken_plugins.py": "the packages of plugins, found and not imported",
    "layers/registry.py": "the drawers and the packages of plugins",
    "layers/utility/python.py": "the user's modules",
    "cli/main.py": "the modules in its table of commands, which are checked themselves",
    "pycaffe/visible_names.py": "Python packages that Caffe's modules show",
}
PLACEHOLDER = "\0"  # replaces {...} in an f-string


class Import(NamedTuple):
    """An import of a module of this package: the line, and the known part of the name."""

    line: int
    name: str


def imports(text: str) -> list[Import]:
    """The modules of this package that a file imports, by statement or by name; `from a import b` is a.b."""
    all_imports = []
    for node in _run_time_nodes(ast.parse(text)):
        if isinstance(node, ast.Import):
            all_imports += [Import(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            all_imports += [Import(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
            all_imports += [Import(node.lineno, name) for name in _names_in(_string(node) or "")]
    return [entry for entry in all_imports if entry.name.split(".")[0] == "imae"]


def wrong_imports(path: str, text: str) -> list[str]:
    """Imports against the order of the parts, and imports in a form that the rules cannot check."""
    part = path.split("/")[0]
    allowed = PARTS[: PARTS.index(part) + 1]
    problems = []
    for line, name in imports(text):
        words = name.split(".")
        if len(words) == 1 or words[1] == "*":
            problems.append(f"{path}:{line}: imports {name}; write the module's whole name")
        elif words[1] not in allowed:
            problems.append(f"{path}:{line}: {part}/ imports {name}, and comes before {words[1]}/")
    for node in _run_time_nodes(ast.parse(text)):
        problems += [f"{path}:{getattr(node, 'lineno', 0)}: {problem}" for problem in _unseen(path, node)]
    return problems


def wrong_imports_between_folders(path: str, text: str, drawers: tuple[str, ...]) -> list[str]:
    """Imports against the order of folders within a part; `drawers`: the folders of layers/, in order."""
    problems = []
    for line, name in imports(text):
        folder, other = path.split("/")[:-1], name.split(".")[1:]
        wrong = ""
        if folder[0] == other[0] == "layers" and other[1:2] and other[1] in drawers:
            if folder == ["layers"]:
                wrong = "the contract of layers/ imports no drawer"
            elif drawers.index(other[1]) > drawers.index(folder[1]):
                wrong = f"drawer {folder[1]}/ comes before {other[1]}/"
        elif folder == ["net", "kernels"] and other[0] == "net" and other[1:2] != ["kernels"]:
            wrong = "net/kernels/ imports nothing else of net/"
        elif folder == ["prototxt"] and other[:2] == ["prototxt", "models"]:
            wrong = "the language comes before its models/"
        if wrong:
            problems.append(f"{path}:{line}: imports {name}; {wrong}")
    return problems


def type_tests(path: str, text: str) -> list[str]:
    """Comparisons of a layer's type. (Properties of a layer type belong into attributes of its class.)"""
    problems = []
    for node in ast.walk(ast.parse(text)):
        sides: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.Match):
            sides = [node.subject]
        if any(_is_type_of_layer(side) for side in sides):
            problems.append(f"{path}:{node.lineno}: compares {ast.unparse(node).splitlines()[0]}")
    return problems


def name_clash(path: str) -> list[str]:
    """A file named like a standard module or a dependency: scripts beside it would import it instead."""
    modules = {module for names in DEPENDENCIES.values() for module in names}
    stem = path.split("/")[-1].removesuffix(".py")
    if stem in sys.stdlib_module_names or stem in modules:
        return [f"{path}: bears the name of another module, {stem}; give it one of its own"]
    return []


def circles(files: Mapping[str, str]) -> list[str]:
    """Import cycles between modules and between parts, each as `a -> b -> a`."""
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in files}
    edges: dict[str, set[str]] = {module: set() for module in modules}
    parts: dict[str, set[str]] = {module.split(".")[0]: set() for module in modules}
    for module, path in modules.items():
        for _, name in imports(files[path]):
            other = name.partition(".")[2]
            part, other_part = module.split(".")[0], other.split(".")[0]
            if other_part in parts and part != other_part:
                parts[part].add(other_part)
            while other and other not in modules:
                other = other.rpartition(".")[0]
            if other and other != module:
                edges[module].add(other)
    return [" -> ".join(circle) for graph in (parts, edges) for circle in _circles(graph)]


def _circles(graph: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Cycles of a graph, by depth-first search."""
    done: set[str] = set()

    def search(node: str, path: list[str]) -> Iterator[list[str]]:
        if node in path:
            yield [*path[path.index(node) :], node]
        elif node not in done:
            for other in sorted(graph[node]):
                yield from search(other, [*path, node])
            done.add(node)

    for node in sorted(graph):
        yield from search(node, [])


def _run_time_nodes(tree: ast.Module) -> Iterator[ast.AST]:
    """All nodes except docstrings, `if TYPE_CHECKING` blocks, and the parts of a string that is one whole."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop(0)
        yield node
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
        elif isinstance(node, ast.JoinedStr):
            waiting += [child for child in node.values if not isinstance(child, ast.Constant)]
        elif not (_is_docstring(node) or (isinstance(node, ast.BinOp) and _string(node) is not None)):
            waiting += ast.iter_child_nodes(node)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _string(node: ast.expr) -> str | None:
    """The text of a string or a sum of strings, with a placeholder for each {...}; None for other nodes."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(_string(part) or PLACEHOLDER for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _string(node.left), _string(node.right)
        return None if left is None or right is None else left + right
    return None


def _names_in(text: str) -> Iterator[str]:
    """The modules of this package that a string names: as the whole string, or after -m, import, from."""
    whole = re.fullmatch(rf"(imae\.\w+(?:\.\w+)*)(?:[.:]?\w*{PLACEHOLDER}.*|:[\w.]+)?", text, re.DOTALL)
    names = [whole[1]] if whole else re.findall(r"(?:-m|\bimport|\bfrom)\s+(imae\.\w+(?:\.\w+)*)", text)
    for name in names:
        if name.split(".")[1] in PARTS:  # else the name of a logger, a group of entry points, a key
            yield name


def _unseen(path: str, node: ast.AST) -> Iterator[str]:
    """Forms of import that hide the imported module."""
    if isinstance(node, ast.ImportFrom) and node.level:
        yield "relative import; write the module's whole name"
    if isinstance(node, ast.Import | ast.ImportFrom):
        home = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            name = (home or alias.name).split(".")[0]
            if name in (*PARTS, "benchmarks", "tests"):
                yield f"imports {home or alias.name} under a second name, or from outside of the package"
            if alias.asname and (alias.name in IMPORTERS or alias.name.split(".")[0] == "importlib"):
                yield f"gives {alias.name} another name, under which it is not recognised"
    if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
        text = _string(node) or ""
        if re.match(rf"imae\.(?:{PLACEHOLDER}|$)", text):
            yield "puts a module's name together; write it whole"
    if isinstance(node, ast.Call):
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in IMPORTERS and path not in NAMES_MADE:
            text = _string(node.args[0]) if node.args else None
            if text is None or PLACEHOLDER in text or text.startswith("."):
                yield f"{name} of a name that is not written here; see NAMES_MADE"


def _is_type_of_layer(node: ast.expr) -> bool:
    """Whether a node is `something.type`, unless something is a device, or `type(something)`."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "type"
    if not (isinstance(node, ast.Attribute) and node.attr == "type"):
        return False
    owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
    return owner != "device"
