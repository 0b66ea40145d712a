"""Every command in README, CONTRIBUTING and docs is run by a test, or is read by its program's own parser.

support/page_commands.py lists which test runs a page's commands, and why some are not run.
"""

from __future__ import annotations

import re

import pages
import pytest
from google.protobuf import text_format
from page_commands import NOT_RUN, ON_ANY_PAGE, REFUSALS, RUN_BY, check, commands_to_run, options_of, reason

from imae.cli.main import COMMANDS
from imae.prototxt import LayerParameter, NetParameter

PAGES = pages.pages()
IN_PAGES = [(path, command) for path, text in PAGES.items() for command in pages.commands(text)]
# Blocks of other languages than the shell's; any other word after ``` is an error.
LANGUAGES = {"cpp", "csv", "proto", "prototxt", "python", "text", "toml"}
# Indented blocks that hold no commands: page -> how many.
INDENTED = {"docs/architecture.md": 1, "docs/run.md": 1}
# Options in sentences that belong to no command of imae.
OTHERS = {"--save", "--nproc-per-node"}
OPTION = re.compile(r"--[a-z][\w-]*")
assert len(IN_PAGES) > 120


@pytest.mark.parametrize("path", PAGES)
def test_every_block_is_known(path: str) -> None:
    """So that no command hides in a block that is not looked at."""
    others = [block for block in pages.blocks(PAGES[path]) if not pages.is_shell(block)]
    fences = {block.language for block in others if block.language != "indented"}
    assert fences <= LANGUAGES, f"{path}: write ```sh before commands, or add the language here"
    indented = [block.text.splitlines()[0] for block in others if block.language == "indented"]
    assert len(indented) == INDENTED.get(path, 0), f"{path}: {indented}"


@pytest.mark.parametrize(
    ("path", "command"), IN_PAGES, ids=[f"{path}:{command.line}" for path, command in IN_PAGES]
)
def test_every_command_is_accepted_and_is_run_or_has_a_reason(path: str, command: pages.Command) -> None:
    check(command.text)
    if reason(path, command.text) is None:
        assert path in RUN_BY and command.fenced, (
            f"no test runs {command.text!r}: run it in a test of RUN_BY, or give the reason in NOT_RUN"
        )


def test_no_reason_is_left_over() -> None:
    plain = [command.text.removeprefix(".venv/bin/") for _, command in IN_PAGES]
    for start in ON_ANY_PAGE:
        assert any(text.startswith(start) for text in plain), f"no page has a command {start!r}"
    for path, reasons in {**NOT_RUN, "": ON_ANY_PAGE}.items():
        for start, why in reasons.items():
            texts = [command.text for of, command in IN_PAGES if of == path]
            assert not path or any(text.startswith(start) for text in texts), f"{path} has no {start!r}"
            for file in re.findall(r"\b\w+/test_\w+\.py", why):
                assert (pages.ROOT / "tests" / file).exists(), why
            for file in re.findall(r"\.ci/\w+", why):
                assert (pages.ROOT / file).exists(), why


@pytest.mark.parametrize("path", RUN_BY)
def test_the_named_test_is_there_and_has_something_to_run(path: str) -> None:
    file, _, name = RUN_BY[path].partition("::")
    text = (pages.ROOT / "tests" / file).read_text(encoding="utf-8")
    assert f"def {name}(" in text and path.rpartition("/")[2] in text
    assert commands_to_run(path)


def test_the_readmes_second_command_is_what_ci_runs() -> None:
    texts = [command.text for command in pages.commands(PAGES["README.md"])]
    install, test = texts[3:5]
    ci = pages.page(".ci/run")
    assert install.removeprefix(".venv/bin/").removeprefix("pip install -q") in ci
    assert test.removeprefix(".venv/") in ci


@pytest.mark.parametrize(
    "command",
    [
        "imae trian solver.prototxt",
        "imae train solver.prototxt --gpus 0",
        "imae test --model a.prototxt --weights b.caffemodel --iteration 3",
        "imae export --model a.prototxt --output a.onnx --fold yes",
        "imae caffe train --sovler solver.prototxt",
        "imae paper table22",
        "imae quantize a.onnx b.onnx --to int7",
        "python train/solve.py solver.prototxt --finetune a.caffemodel",
        "python -m benchmarks trainings",
        "python -m benchmarks training --batches 3",
        "python -m pytest -q -k nothing tests",
        "python -c 'import ='",
        "torchrun --nproc 2 train/solve.py solver.prototxt",
        "torchrun --nproc-per-node 2 train/solve.py solver.prototxt --gpux",
        "pip install -e '.[tests]'",
        "pip install -q -c constraint.txt -e .",
        "pip install --no-such-option -e .",
        "wget https://example.org/a.caffemodel",
    ],
)
def test_a_wrong_command_is_noticed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(REFUSALS):
        check(command)


def test_blocks_and_commands_of_a_page() -> None:
    text = """Text with `code`.

    imae train a.prototxt \\
        --cpu   # a comment
    cd x && pip install -e '.[test]'

```sh
imae test 'a # b'
```

- a list

    of paragraphs

      python -c 'print(1)'

```python
    indented = "in a fence"
```
"""
    found = [(command.line, command.text, command.fenced) for command in pages.commands(text)]
    assert found == [
        (3, "imae train a.prototxt --cpu", False),
        (5, "cd x", False),
        (5, "pip install -e '.[test]'", False),
        (8, "imae test 'a # b'", True),
        (15, "python -c 'print(1)'", False),
    ]
    assert [block.language for block in pages.blocks(text)] == ["indented", "sh", "indented", "python"]
    assert list(pages.inline_code(text)) == ["code"]


FRAGMENTS = [
    (path, block)
    for path, text in PAGES.items()
    for block in pages.blocks(text)
    if block.language == "prototxt" and path != "docs/plugins.md"  # fields of a plugin, in nets that run
]


@pytest.mark.parametrize(
    ("path", "block"), FRAGMENTS, ids=[f"{path}:{block.line}" for path, block in FRAGMENTS]
)
def test_prototxts_are_parts_of_a_net(path: str, block: pages.Block) -> None:
    """Of a net, or of a layer."""
    kind = NetParameter if block.text.startswith(("layer", "name")) else LayerParameter
    assert text_format.Parse(block.text, kind()).ByteSize() > 0


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    return {command: options_of(command) for command in COMMANDS}


@pytest.mark.parametrize("path", PAGES)
def test_commands_and_options_in_sentences_exist(path: str, options: dict[str, set[str]]) -> None:
    every = set().union(*options.values()) | OTHERS | {"--help", "--version"}
    for code in pages.inline_code(PAGES[path]):
        words = code.split()
        used = {option[0] for option in map(OPTION.match, words) if option}
        known = every
        if words[:1] == ["imae"] and len(words) > 1 and re.fullmatch(r"[a-z-]+", words[1]):
            command = words[1]
            assert command in COMMANDS, f"{path}: `{code}`"
            known = options[command]
        elif words[0] in pages.PROGRAMS - {"imae"} or words[0] in ("g++", ".venv/bin/pip", "git"):
            continue
        assert used <= known, f"{path}: `{code}`: there is no {used - known}"
