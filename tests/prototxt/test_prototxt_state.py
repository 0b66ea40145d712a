"""Which layers a state includes and where splits go, against what Caffe logged of its nets."""

import json
from pathlib import Path
from typing import Any

import pytest

from imae.files.errors import LayerError, PrototxtError
from imae.prototxt import (
    TEST,
    TRAIN,
    NetParameter,
    NetState,
    filter_by_state,
    filter_net,
    parse_net,
    parse_text,
    read_net,
    to_text,
)
from imae.prototxt.insert_splits import insert_splits

CASES = sorted((Path(__file__).parents[1] / "cases").glob("state/*.json"))
NETS = [(path, net) for path in CASES for net in json.loads(path.read_text(encoding="utf-8"))]


def test_cases_are_there() -> None:
    assert len(NETS) == 8


@pytest.mark.parametrize(("path", "net"), NETS, ids=[f"{path.stem}-{i}" for i, (path, _) in enumerate(NETS)])
def test_as_caffe(path: Path, net: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """The rules that kept layers out, the filtered net as Caffe printed it, the layers with splits."""
    caplog.set_level("INFO")
    state = parse_text(net["state"], NetState, "state")
    filtered = filter_by_state(read_net(path.with_suffix(".prototxt")), state)
    if "rules" in net:
        assert caplog.messages == net["rules"]
        assert to_text(filtered) == net["filtered"]
    assert [layer.name for layer in insert_splits(filtered).layer] == net["layers"]


RULES = [
    ("include { phase: TRAIN }", "phase: TRAIN", True, ""),
    ("include { phase: TRAIN }", "phase: TEST", False, "phase (1) differed from the phase (0)"),
    ("exclude { phase: TRAIN }", "phase: TRAIN", False, ""),
    ("exclude { phase: TRAIN }", "phase: TEST", True, "phase (1) differed from the phase (0)"),
    ("include { min_level: 2 }", "level: 1", False, "level (1) is above the min_level (2)"),
    ("include { min_level: 2 }", "level: 2", True, ""),
    ("include { max_level: 2 }", "level: 2", True, ""),
    ("include { max_level: 2 }", "level: 3", False, "level (3) is above the max_level (2)"),
    ("include { stage: 'a' stage: 'b' }", "stage: 'a'", False, "did not contain stage 'b'"),
    ("include { stage: 'a' stage: 'b' }", "stage: 'b' stage: 'c' stage: 'a'", True, ""),
    ("include { not_stage: 'a' }", "", True, ""),
    ("include { not_stage: 'a' }", "stage: 'a'", False, "contained a not_stage 'a'"),
    (
        "include { phase: TRAIN } include { stage: 'a' }",
        "phase: TEST stage: 'a'",
        True,
        "phase (1) differed from the phase (0)",
    ),
    (
        "exclude { stage: 'a' } exclude { min_level: 3 }",
        "level: 3 stage: 'b'",
        False,
        "did not contain stage 'a'",
    ),
    ("", "phase: TEST", True, ""),
    ("include { }", "phase: TEST", True, ""),
    ("exclude { }", "phase: TEST", False, ""),
]


@pytest.mark.parametrize(("rules", "state", "included", "line"), RULES)
def test_rules(rules: str, state: str, included: bool, line: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    net = parse_net(f'name: "n" force_backward: true layer {{ name: "a" {rules} }}')
    net_state = parse_text(state, NetState, "state")
    filtered = filter_by_state(net, net_state)
    assert [layer.name for layer in filtered.layer] == ["a"] * included
    assert (filtered.name, filtered.force_backward, filtered.state) == ("n", True, net_state)
    assert caplog.messages == [f"The NetState {line} specified by a rule in layer a"] * bool(line)


def test_filter_net_sets_the_state() -> None:
    net = parse_net("state { stage: 'a' level: 7 phase: TRAIN } layer { name: 'x' include { stage: 'b' } }")
    filtered = filter_net(net, TEST, 1, ["b"])
    assert filtered.state == NetState(phase=TEST, level=1, stage=["b"])
    assert len(filtered.layer) == 1
    assert not filter_net(net, TEST).layer
    assert net.state.phase == TRAIN


@pytest.mark.parametrize("old", [NetParameter(name="n", layers=[{}]), NetParameter(name="n", input=["x"])])
def test_an_old_net_is_not_taken_for_an_empty_one(old: NetParameter) -> None:
    with pytest.raises(PrototxtError, match=r"^net 'n' has fields of an old form"):
        filter_net(old, TRAIN)


def test_include_with_exclude() -> None:
    net = parse_net('layer { name: "a" type: "ReLU" include { phase: TRAIN } exclude { phase: TEST } }')
    with pytest.raises(
        LayerError, match=r"^layer 'a' \(ReLU\): Specify either include rules or exclude rules; not both\.$"
    ):
        filter_net(net, TRAIN)


def split(text: str) -> str:
    net = parse_net(text)
    before = net.SerializeToString()
    result = to_text(insert_splits(net))
    assert net.SerializeToString() == before
    return result


def expected(text: str) -> str:
    return to_text(parse_text(text, NetParameter, "expected"))


def test_no_split_without_need() -> None:
    text = "layer { name: 'a' top: 'x' } layer { name: 'b' bottom: 'x' top: 'y' } layer { bottom: 'y' }"
    assert split(text) == expected(text)


def test_split_per_top() -> None:
    assert split("""
        name: 'n' state { level: 1 }
        layer { name: 'a' top: 'x' top: 'y' }
        layer { name: 'b' bottom: 'x' bottom: 'y' }
        layer { name: 'c' bottom: 'y' bottom: 'x' bottom: 'x' }
    """) == expected("""
        name: 'n' state { level: 1 }
        layer { name: 'a' top: 'x' top: 'y' }
        layer { name: 'x_a_0_split' type: 'Split' bottom: 'x'
                top: ['x_a_0_split_0', 'x_a_0_split_1', 'x_a_0_split_2'] }
        layer { name: 'y_a_1_split' type: 'Split' bottom: 'y' top: ['y_a_1_split_0', 'y_a_1_split_1'] }
        layer { name: 'b' bottom: 'x_a_0_split_0' bottom: 'y_a_1_split_0' }
        layer { name: 'c' bottom: 'y_a_1_split_1' bottom: 'x_a_0_split_1' bottom: 'x_a_0_split_2' }
    """)


def test_split_after_the_last_in_place_layer() -> None:
    assert split("""
        layer { name: 'a' top: 'x' }
        layer { name: 'r' bottom: 'x' top: 'x' }
        layer { name: 'b' bottom: 'x' }
        layer { name: 'c' bottom: 'x' }
    """) == expected("""
        layer { name: 'a' top: 'x' }
        layer { name: 'r' bottom: 'x' top: 'x' }
        layer { name: 'x_r_0_split' type: 'Split' bottom: 'x' top: ['x_r_0_split_0', 'x_r_0_split_1'] }
        layer { name: 'b' bottom: 'x_r_0_split_0' }
        layer { name: 'c' bottom: 'x_r_0_split_1' }
    """)


def test_loss_weight_is_a_consumer_and_moves_to_the_split() -> None:
    assert split("""
        layer { name: 'a' top: 'x' loss_weight: 2 }
        layer { name: 'b' bottom: 'x' }
    """) == expected("""
        layer { name: 'a' top: 'x' }
        layer { name: 'x_a_0_split' type: 'Split' bottom: 'x' top: ['x_a_0_split_0', 'x_a_0_split_1']
                loss_weight: [2, 0] }
        layer { name: 'b' bottom: 'x_a_0_split_1' }
    """)


@pytest.mark.parametrize("text", [
    "layer { name: 'a' top: 'x' loss_weight: 2 }",
    "layer { name: 'a' top: 'x' loss_weight: 0 } layer { name: 'b' bottom: 'x' }",
])  # fmt: skip
def test_loss_weight_without_split(text: str) -> None:
    assert split(text) == expected(text)


def test_unknown_bottom() -> None:
    net = parse_net("layer { name: 'a' top: 'ip' } layer { name: 'loss' bottom: 'ipp' bottom: 'ip' }")
    with pytest.raises(PrototxtError) as error:
        insert_splits(net)
    assert str(error.value) == "Unknown bottom blob 'ipp' (layer 'loss', bottom index 0); did you mean 'ip'?"
    net.layer[1].bottom[0] = "data"
    with pytest.raises(PrototxtError, match=r"^Unknown bottom blob 'data' \(layer 'loss', bottom index 0\)$"):
        insert_splits(net)
