"""The site's pages, without MkDocs: each layer type and command has one, snippets build, links hold."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import page_links
import pytest
from layer_cases import write_files
from source_tree import PARTS

import imae
from docs_site import (
    api_page,
    command_pages,
    docstrings,
    layer_pages,
    links,
    look_through,
    loss_pages,
    notebook_pages,
    schema_tables,
    snippets,
)
from imae import losses
from imae.cli.main import COMMANDS, make_parser
from imae.files.errors import ImaeError
from imae.layers.registry import class_of, layer_class, layer_types
from imae.net.net import Net
from imae.prototxt import LayerParameter
from imae.prototxt.text import parse_net

ROOT = Path(__file__).parents[1]
PAGES = {page.type_name: page for page in layer_pages.layer_pages()}
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
LINKING = [*DOCS, *links.PAGES]
# What the snippets of data layers name, and which of write_files' files stands in for it.
STAND_INS = {
    "train_lmdb": "db",
    "boxes_lmdb": "boxes_db",
    "train_files.txt": "hdf5_a",
    "train.txt": "list",
    "train_pairs.txt": "pairs",
    "windows.txt": "windows",
    "images": "sub",
}
MODULE = """
import caffe

class Affine(caffe.Layer):
    def setup(self, bottom, top):
        self.scale, self.shift = map(float, self.param_str.split(","))
    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)
    def forward(self, bottom, top):
        top[0].data[...] = self.scale * bottom[0].data + self.shift
    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = self.scale * top[0].diff
"""


# -- layers


def test_every_layer_type_has_a_page_and_a_snippet() -> None:
    ours = {name for name in layer_types() if layer_class(name).__module__.startswith("imae.layers.")}
    assert set(PAGES) == ours and len({page.path.lower() for page in PAGES.values()}) == len(ours)
    assert {key.partition(":")[0] for key in snippets.SNIPPETS} == ours
    assert {page.drawer for page in PAGES.values()} == set(layer_pages.GROUPS)


@pytest.mark.parametrize("name", PAGES)
def test_the_page_of_a_layer(name: str) -> None:
    text = layer_pages.page_text(PAGES[name])
    assert text.startswith(f"# {name}\n\n") and f'type: "{name}"' in text
    assert re.search(r"(?m)^\| bottoms.* \|", text) and re.search(r"(?m)^\| ONNX.* \| \S.* \|$", text)
    param = snippets.layer_of(snippets.keys_of(name)[0])
    for field, _ in param.ListFields():
        if field.number >= 100 and field.message_type is not None:
            table = text.partition(f"### `{field.name}`")[2]
            assert table, f"no table of {field.name}"
            for inner in field.message_type.fields:
                assert f"| `{inner.name}` |" in table or field.name not in layer_class(name).reads
    assert text.count("```") % 2 == 0


@pytest.mark.parametrize("key", snippets.SNIPPETS)
def test_a_snippet_builds(key: str, here: Path) -> None:
    if key.partition(":")[0] in layer_pages.NEED_FILES:
        write_files(here)
        for name, file in STAND_INS.items():
            (here / name).symlink_to(file)
        (here / "my_layers.py").write_text(MODULE)
    param = parse_net(snippets.net_text(key))
    assert param.layer[-1].type == key.partition(":")[0]
    net = Net(param)
    assert len(net.steps) == len(param.layer)


def test_variants_have_snippets_of_their_own() -> None:
    for name in PAGES:
        classes = {class_of(snippets.layer_of(key)) for key in snippets.keys_of(name)}
        if "variant" in vars(layer_class(name)) and name != "Python":
            assert len(classes) > 1, f"{name} has variants; its page shows one"


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("ReLU", "| gradient | to `bottom[0]` |"),
        ("Embed", "| gradient | to `weight`, `bias` |"),
        ("ArgMax", "| gradient | none |"),
        ("Convolution", "| parameter blobs, of the net above | `weight` 16x3x3x3, `bias` 16 |"),
        ("Convolution", "| ONNX | `Conv` (opset 17, the net above) |"),
        ("BatchNorm", "| ONNX | `BatchNormalization` (opset 17, the net above) |"),
        ("Python", "| ONNX | none: a net with it cannot be exported |"),
        ("Data", "| in a deployed net | an Input of the same shape takes its place |"),
        ("IMAELoss", "| in a deployed net | left out |"),
        ("Permute", "| of | SSD (weiliu89/caffe, branch ssd) |"),
        ("BN", "| of, CaffeMex | CaffeMex (sciencefans/CaffeMex\\_v2) |"),
        ("SCELoss", "| `log_zero` | float | `-9.21034` |"),
    ],
)
def test_facts_of_layers(name: str, row: str) -> None:
    assert row in layer_pages.page_text(PAGES[name])


@pytest.mark.parametrize("name", ["Data", "IMAELoss", "SoftmaxWithLossOHEM"])
def test_the_parameter_of_the_type_comes_first(name: str) -> None:
    fields = re.findall(r"(?m)^### `(\w+)`$", layer_pages.page_text(PAGES[name]))
    first = {"Data": "data_param", "IMAELoss": "imae_loss_param", "SoftmaxWithLossOHEM": "softmax_param"}
    assert fields[0] == first[name] and len(fields) == len(set(fields)) > 1


def test_what_differs_is_a_section() -> None:
    text = layer_pages.page_text(PAGES["ReLU"])
    assert "## Differs\n\nFrom Caffe 1.0: without a `negative_slope` Caffe makes NaN" in text
    assert "## Source\n\nCaffe: `relu_layer.cpp`." in text
    assert "## Differs" not in layer_pages.page_text(PAGES["TanH"])
    for name, page in PAGES.items():
        docstring = importlib.import_module(layer_class(name).__module__).__doc__ or ""
        own = layer_pages.page_text(page).partition("## Source")[0]
        assert "Differs: " not in own and ("## Differs" in own) == ("Differs: " in docstring), name


def test_a_page_has_what_its_docstring_refers_to() -> None:
    text = layer_pages.page_text(PAGES["MAELoss"])
    assert "## label_loss.py" in text and "## designed_loss.py" in text
    assert "[`softmax_loss.py`](../loss/SoftmaxWithLoss.md)" in layer_pages.page_text(
        PAGES["SoftmaxWithLossOHEM"]
    )


def test_the_index_of_layers() -> None:
    text = layer_pages.index_page()
    for name, page in PAGES.items():
        assert re.search(rf"\| \[`{name}`\]\({page.path.removeprefix('layers/')}\) \| \S.* \|", text)
    assert "(He et al. 2015)" in text and not re.search(r"et al \|", text)


def test_nested_messages_have_a_table() -> None:
    text = layer_pages.messages_page()
    assert (
        "## FillerParameter" in text
        and "| `variance_norm` | `FAN_IN`, `FAN_OUT`, `AVERAGE` | `FAN_IN` |" in text
    )
    linked = {
        anchor
        for page in PAGES.values()
        for anchor in re.findall(r"\.\./messages\.md#(\w+)", layer_pages.page_text(page))
    }
    assert linked and linked <= page_links.anchors(text)


def test_comments_of_fields() -> None:
    comments = schema_tables.comments()
    assert comments["caffe.LayerParameter", "reorg_param"] == "YOLO (eric612/MobileNet-YOLO)"
    assert comments["caffe.FillerParameter", "alpha"] == "caffe-windows"
    assert comments["caffe.DMLossParameter", "lambda"] == "w = exp(beta p^lambda (1 - p))"
    assert not any("----" in text for text in comments.values())
    fields = {(m.full_name, f.name) for m in [LayerParameter.DESCRIPTOR] for f in m.fields}
    assert {key for key in comments if key[0] == "caffe.LayerParameter"} <= fields


# -- losses


def test_every_loss_has_a_curve_and_a_layer() -> None:
    text = loss_pages.appendix()
    for name in losses.__all__:
        layer = loss_pages.layer_of_loss(name)
        assert f"<figcaption>{name}</figcaption>" in text and f"### {layer}\n" in text
        assert PAGES[layer].path in text
        assert f"<figcaption>{name}</figcaption>" in loss_pages.curve_of_layer(layer)
    assert loss_pages.curve_of_layer("ReLU") == ""


def test_the_curve_of_imae_is_highest_in_the_middle() -> None:
    (points,) = re.findall(r'points="([^"]+)"', loss_pages.weight_drawing("IMAE"))
    x, y = zip(*(map(float, point.split(",")) for point in points.split()), strict=True)
    highest = y.index(min(y))  # y points downwards
    assert abs(x[highest] - (x[0] + x[-1]) / 2) < 2 and y[0] > 90 and y[-1] > 90


# -- commands


def test_every_command_has_a_task() -> None:
    tasks = command_pages.by_task()
    assert sorted(name for names in tasks.values() for name in names) == sorted(COMMANDS)
    assert {name for names in command_pages.TASKS.values() for name in names} <= set(COMMANDS)
    text = command_pages.index_page()
    assert all(f"[`{name}`]({name}.md)" in text for name in COMMANDS)
    assert "128" not in text and "`--help`" not in text and "success, also when a signal" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_of_a_command(name: str) -> None:
    text = command_pages.page_text(name)
    assert text.startswith(f"# imae {name}\n\n") and text.count("```") % 2 == 0
    parser = make_parser(name)
    for action in parser._actions:
        for option in action.option_strings:
            assert re.search(rf"(?m)^(`[^`]+`, )*`{re.escape(option)}[ `]", text), option
        if action.required and action.option_strings:
            assert f"{action.option_strings[0]} " in text.split("```")[1]
    assert "%(" not in text and "{table1,table2" not in text


# -- docstrings


def test_docstrings_become_markdown() -> None:
    text = docstrings.to_markdown(
        """Sum: top = a * b_0 <x>, by num_output; see relu_layer.cpp and --flag.

        Text:
            f(x) = x_1 * 2

            g(x)

        bottom[0], top[0]  (N, C)
                           and more
        blobs              `as it is` [0]

        two names   told  apart

        >>> x_1 * 2
        4
        """
    )
    assert text == (
        "Sum: top = a \\* b\\_0 &lt;x&gt;, by `num_output`; see `relu_layer.cpp` and `--flag`.\n\n"
        "Text:\n\n```text\nf(x) = x_1 * 2\n```\n\n```text\ng(x)\n```\n\n"
        "`bottom[0]`, `top[0]`\n:   (N, C) and more\n\n`blobs`\n:   `as it is` \\[0\\]\n\n"
        "```text\ntwo names   told  apart\n```\n\n```pycon\n>>> x_1 * 2\n4\n```"
    )


# -- links


@pytest.mark.parametrize("path", LINKING)
def test_links_lead_somewhere(path: str) -> None:
    """A page that the site makes is none of the repository: only pages of the site may lead there."""
    made = {*(page.path for page in PAGES.values()), "layers/index.md", layer_pages.MESSAGES_PAGE}
    made |= {command_pages.path(name) for name in (*COMMANDS, "index")}
    found = page_links.broken_links(ROOT, [path], lambda target: target.removeprefix("docs/") in made)
    assert not found, "\n".join(found)


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(
        "# A `b` c\n\n# A b c\n\n[x](docs/a.md#no) [y](docs/b.md) [z](#a-b-c-1)"
    )
    (tmp_path / "docs" / "a.md").write_text(
        "`[x](none.md)` [`y`](../README.md#a-b-c) [z](https://x.y/none.md)"
    )
    assert page_links.broken_links(tmp_path, ["README.md", "docs/a.md"]) == [
        "README.md: [x]: docs/a.md has no heading #no",
        "README.md: [y] names docs/b.md, which is not there",
    ]


@pytest.mark.parametrize(
    ("path", "text", "site"),
    [
        ("docs/a.md", "[c](../CONTRIBUTING.md#rules)", "[c](contributing.md#rules)"),
        ("docs/a.md", "[r](../README.md#measured)", "[r](index.md)"),
        ("docs/a.md", "[b](b.md) [t](#top) [w](https://x.y)", "[b](b.md) [t](#top) [w](https://x.y)"),
        ("docs/n/a.md", "[b](../b.md)", "[b](../b.md)"),
        ("CHANGELOG.md", "[`docs/b.md`](docs/b.md)", "[`docs/b.md`](b.md)"),
        ("docs/a.md", "[f](../layers/layer.py)", "f (`layers/layer.py`)"),
        ("docs/a.md", "[`layer.py`](../layers/layer.py)", "`layers/layer.py`"),
        ("docs/a.md", "`[b](c.py)`\n\n```\n[b](c.py)\n```\n", "`[b](c.py)`\n\n```\n[b](c.py)\n```\n"),
    ],
)
def test_links_of_the_site(path: str, text: str, site: str) -> None:
    assert links.for_site(text, path, lambda page: page.endswith(".md")) == site


def test_links_to_files_with_a_repository() -> None:
    text = links.for_site("[f](../layers/layer.py#L3)", "docs/a.md", lambda _: False, "https://x.y/imae/")
    assert text == "[f](https://x.y/imae/blob/main/layers/layer.py#L3)"


def test_every_page_of_docs_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    named = re.findall(r"(?m)^ +- (?:.+: )?([\w/.-]+\.md)$", nav)
    made = {*links.PAGES.values(), "layers/index.md", "commands/index.md"}
    assert {path.removeprefix("docs/") for path in DOCS} <= set(named)
    notebooks = {f"notebooks/{path.stem}.md" for path in (ROOT / "docs" / "notebooks").glob("*.ipynb")}
    assert set(named) <= {path.removeprefix("docs/") for path in DOCS} | made | notebooks
    assert notebooks <= set(named) and len(named) == len(set(named))


# -- the API, notebooks, what a page loads


def test_the_page_of_the_api_has_all_public_names() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    page = api_page.completed(text, imae.__all__)
    for name in set(imae.__all__) - {"__version__"}:
        assert page.count(f"::: imae.{name}\n") == 1, name
    assert "::: imae.Net" in api_page.completed(text, ["load", "Net"])


def test_the_api_is_read_from_all_parts(tmp_path: Path) -> None:
    api_page.link_package(ROOT, tmp_path)
    api_page.link_package(ROOT, tmp_path)
    assert api_page.PARTS == PARTS and (tmp_path / "imae" / "__init__.py").read_text() == (
        ROOT / "imae" / "__init__.py"
    ).read_text(encoding="utf-8")
    assert all((tmp_path / "imae" / name / "__init__.py").exists() for name in PARTS)


def test_a_notebook_becomes_a_page(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    outputs = [
        {"output_type": "stream", "text": ["\x1b[1mone\x1b[0m <two>\n", "```\n"]},
        {"output_type": "display_data", "data": {"image/png": "iVBORw==", "text/plain": "<Figure>"}},
        {"output_type": "execute_result", "data": {"text/html": ["<b>\n", "\n", "x</b>"], "text/plain": "x"}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": "print(1)", "outputs": outputs},
        {"cell_type": "code", "source": "", "outputs": []},
    ]
    path.write_text(json.dumps({"cells": cells, "nbformat": 4}))
    text, images = notebook_pages.page(path)
    assert text == (
        "# Title\ntext\n\n```python\nprint(1)\n```\n\n"
        '<pre class="notebook-output"><code>one &lt;two&gt;\n```</code></pre>\n\n'
        "![output of the cell above](a-0.png)\n\n"
        '<div class="notebook-output" markdown="0"><b>\nx</b></div>\n\n'
        "This page as a notebook: [a.ipynb](a.ipynb).\n"
    )
    assert images == {"a-0.png": b"\x89PNG"}
    path.write_text("no notebook")
    with pytest.raises(ImaeError, match=r"a\.ipynb: not a notebook of version 4"):
        notebook_pages.page(path)


def test_what_a_page_loads_from_other_hosts_is_noticed() -> None:
    quiet = ['<a href="https://x.y">', '<img src="a.png">', '<link rel="canonical" href="https://x.y">']
    assert look_through.loads("".join(quiet)) == []
    loud = [
        '<script src="https://x.y/a.js">',
        '<img src="//x.y/a.png">',
        '<link rel="stylesheet" href="http://x.y/a.css">',
        '<p style="background: url(https://x.y/a.png)">',
        '<img srcset="https://x.y/a.png 2x">',
    ]
    assert [len(look_through.loads(html)) for html in loud] == [1] * len(loud)
