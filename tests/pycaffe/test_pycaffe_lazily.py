"""Blobs that are made when somebody looks at them: what a script sees is what Stepwise computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycaffe_scripts
import pytest
import torch
from google.protobuf import text_format
from pycaffe_scripts import NETS, Pair, make, run_scripts
from tolerances import tolerance

import imae.pycaffe as caffe
from imae.files.errors import LayerError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.layers.utility.synced_memory import SyncedMemory
from imae.net import lazy_stepwise
from imae.net.lazy_stepwise import LazyStepwise
from imae.net.net import Net
from imae.prototxt import NetParameter

CLASSIFIER = NETS["classifier"]


class Counted(LazyStepwise):
    """Counts its passes: fast ones, and those that make pending blobs."""

    fast = made = 0

    def _forward_lazily(self, keep: frozenset[str]) -> float:
        self.fast += 1
        return super()._forward_lazily(keep)

    def settle(self) -> None:
        self.made += self._pending is not None
        super().settle()


def counted(text: str = CLASSIFIER, phase: int = caffe.TEST) -> tuple[caffe.Net, Counted]:
    param = text_format.Parse(text, NetParameter())
    param.state.phase = phase  # type: ignore[assignment]
    stepwise = Counted(Net(param, Run(CaffeRandom(1))))
    net = caffe.Net.around(stepwise)
    for blob in net.params["norm"]:
        blob.data[...] = 1
    return net, stepwise


def images(seed: int = 0, count: int = 2) -> Any:
    return np.random.default_rng(seed).standard_normal((count, 3, 6, 5)).astype(np.float32)


def test_random_scripts_see_the_same(tmp_path: Path) -> None:
    counts = run_scripts(range(200), 4, tmp_path, fresh=False)
    assert len(counts) == 23 and sum(counts.values()) == 800


def test_a_pass_makes_its_inner_blobs_when_somebody_looks() -> None:
    net, lazy = counted()
    for seed in range(3):
        net.forward(x=images(seed))
    assert (lazy.fast, lazy.made) == (3, 0)
    assert net.blobs["conv"].shape == (2, 4, 6, 5) and lazy.made == 0
    assert net.blobs["x"].data.shape and net.blobs["prob"].data.any() and lazy.made == 0
    assert net.blobs["sum"].data.any() and lazy.made == 1
    assert net.blobs["conv"].data.any() and lazy.made == 1
    for seed in range(3):
        net.forward(x=images(seed))
        assert net.blobs["sum"].data.any() and net.blobs["conv"].data.any()
    assert (lazy.fast, lazy.made) == (6, 1)


def test_looks_before_the_first_pass_do_not_count() -> None:
    net, lazy = counted()
    assert [blob.data.shape for blob in net.blobs.values()]
    net.forward(x=images())
    assert lazy.fast == 1 and lazy._keep == frozenset()


def test_named_blobs_are_stored_by_the_pass() -> None:
    net, lazy = counted()
    for seed in range(2):
        assert net.forward(x=images(seed), blobs=["sum"])["sum"].any()
    assert (lazy.fast, lazy.made) == (2, 0)


def test_a_blob_that_nobody_looks_at_any_more_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy_stepwise, "PATIENCE", 4)
    net, lazy = counted()
    net.forward(x=images(), blobs=["sum"])
    for _ in range(4):
        net.forward()
    assert lazy._keep == frozenset() and lazy.made == 0


def test_a_net_whose_blobs_are_all_looked_at_runs_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy_stepwise, "PATIENCE", 4)
    net, lazy = counted()
    net.forward(x=images())
    shapes = [blob.data.shape for blob in net.blobs.values()]  # as notebooks do
    assert len(shapes) == len(net.blobs) and lazy.made == 1
    for passes in range(8):
        net.forward()
        assert lazy.fast == max(1, passes - 1)


def test_passes_are_plain_after_a_backward_pass_and_after_part_of_a_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lazy_stepwise, "PATIENCE", 2)
    net, lazy = counted()
    net.forward(x=images())
    net.backward(prob=images()[..., 0, :].reshape(-1)[:10].reshape(2, 5))
    assert lazy.made == 1 and net.blobs["x"].diff.any()
    net.forward()
    net.backward()
    assert (lazy.fast, lazy.made) == (1, 1)
    for _ in range(3):
        net.forward()
    assert lazy.fast == 2
    net.forward(start="ip")
    net.forward()
    assert (lazy.fast, lazy.made) == (2, 2)


def test_passes_are_plain_after_pending_blobs_were_looked_at_again_and_again() -> None:
    """Another one each time, so that storing it would come too late."""
    net, lazy = counted()
    for passes, name in enumerate(("conv", "pool", "side", "sum", "ip"), 1):
        net.forward(x=images(passes))
        assert net.blobs[name].data.any()
        assert lazy.fast == min(passes, 3)


VIEWS: dict[str, Callable[[Any], Any]] = {
    "the array": lambda array: array,
    "a view of a view": lambda array: array[:, 1:][::-1].T,
    "a tensor": torch.from_numpy,
    "a memoryview": memoryview,
}


@pytest.mark.parametrize("view", list(VIEWS))
def test_arrays_that_a_script_has_show_the_next_pass(view: str) -> None:
    net, lazy = counted()
    kept = VIEWS[view](net.blobs["sum"].data)
    shown = []
    for seed in range(2):
        net.forward(x=images(seed))
        shown.append(np.asarray(kept).copy())
    assert (lazy.fast, lazy.made) == (2, 0) and not np.array_equal(*shown)
    np.testing.assert_array_equal(shown[1], np.asarray(VIEWS[view](net.blobs["sum"].data)))


def test_memory_knows_whether_a_script_has_an_array() -> None:
    tensor = torch.zeros(3, 4)
    memory = SyncedMemory(lambda: tensor)
    assert not memory.is_seen
    first, second = memory.array(), memory.array()
    assert first is not second and first.base is second.base and np.shares_memory(first, second)
    first.shape = (12,)  # of this array alone
    assert second.shape == (3, 4) and memory.array().shape == (3, 4)
    row = second[1:].reshape(8)[2:]
    del first, second
    assert memory.is_seen
    copy = row.copy()
    del row
    assert not memory.is_seen and copy.any() == 0


@pytest.mark.parametrize("change", ["in a chain", "an array of before", "an array of after", "load", "share"])
@pytest.mark.parametrize("look_first", [False, True])
def test_changed_weights_count_from_the_next_pass_on(change: str, look_first: bool, tmp_path: Path) -> None:
    pair = Pair.made(CLASSIFIER, 1, torch.float32)
    others = Pair.made(CLASSIFIER, 2, torch.float32)
    found = []
    for net, other in zip(pair.both, others.both, strict=True):
        held = net.params["conv"][0].data if change == "an array of before" else None
        net.forward(x=images())
        if change == "an array of after":
            held = net.params["conv"][0].data
        if look_first:
            _ = net.blobs["pool"].data[0]
        if held is not None:
            held[...] *= 2
        elif change == "in a chain":
            net.params["conv"][0].data[...] *= 2
        elif change == "load":
            other.save(tmp_path / "weights")
            net.copy_from(tmp_path / "weights")
        else:
            net.share_with(other)
        del held
        before = net.blobs["norm"].data.copy()
        passes = [before]
        for _ in range(3):
            net.forward()
            passes.append(net.blobs["norm"].data.copy())
            passes.append(net.blobs["prob"].data.copy())
        found.append(passes)
    rtol, atol, _ = tolerance("same arithmetic")
    for plain, lazily in zip(*found, strict=True):
        np.testing.assert_allclose(lazily, plain, rtol=rtol, atol=atol * np.abs(plain).max())
    assert not np.array_equal(found[0][0], found[0][1])


def test_a_test_net_runs_fast_while_its_solver_changes_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    losses = NETS["losses"].replace("shape { dim: 2 }", "shape { dim: 2 dim: 1 }")
    Path("net.prototxt").write_text(losses)
    Path("solver.prototxt").write_text(
        'net: "net.prototxt" base_lr: 1e-4 lr_policy: "fixed" max_iter: 9 snapshot_prefix: "s" '
        "random_seed: 3 test_iter: 1 test_interval: 100 test_initialization: false"
    )
    solver = caffe.SGDSolver("solver.prototxt")
    test_net, alone = solver.test_nets[0], caffe.Net("net.prototxt", caffe.TEST)
    for net in (solver.net, test_net, alone):
        net.blobs["x"].data[...] = images()
    for step in range(3):
        solver.step(1)  # also changes the statistics of BatchNorm
        alone.share_with(solver.net)
        loss = test_net.forward()["loss"].copy()
        assert test_net.stepwise._pending is not None
        np.testing.assert_array_equal(alone.forward()["loss"], loss)
        conv = test_net.blobs["conv"].data.copy() if step == 1 else None
        solver.net.forward()
        solver.step(1)
        assert test_net.stepwise._pending is None
        if conv is not None:
            np.testing.assert_array_equal(test_net.blobs["conv"].data, conv)
        assert test_net.forward()["loss"] != loss


def test_a_pass_that_fails_leaves_what_a_plain_pass_leaves() -> None:
    pair = Pair.made(NETS["losses"], 1, torch.float32)
    for net in pair.both:
        net.forward(x=images(), y=np.array([1, 4]))
        with pytest.raises(LayerError, match="label"):
            net.forward(x=images(1), y=np.array([1, 5]))
    rtol, atol, _ = tolerance("same arithmetic")
    for name, blob in pair.plain.blobs.items():
        scale = float(np.abs(blob.data).max(initial=0))
        np.testing.assert_allclose(pair.lazy.blobs[name].data, blob.data, rtol=rtol, atol=atol * scale)
    assert pair.lazy.forward(x=images(), y=np.array([1, 4]))["loss"] > 0


DETERMINISTIC = CLASSIFIER + 'layer { name: "more" type: "%s" bottom: "ip" top: "more" %s }'


@pytest.mark.parametrize(
    ("text", "phase"),
    [
        (CLASSIFIER, caffe.TRAIN),
        (DETERMINISTIC % ("BatchNorm", "batch_norm_param { use_global_stats: false }"), caffe.TEST),
        (DETERMINISTIC % ("Dropout", "dropout_param { sample_weights_test: true }"), caffe.TEST),
        (
            DETERMINISTIC % ("InnerProduct", "inner_product_param { num_output: 2 normalize: true }"),
            caffe.TEST,
        ),
        (CLASSIFIER.replace("layer {", 'layer { name: "early" type: "ReLU" bottom: "x" top: "x" } layer {', 2)
         .replace('layer { name: "early" type: "ReLU" bottom: "x" top: "x" } ', "", 1), caffe.TEST),
    ],
    ids=["TRAIN", "its own statistics", "drawn masks", "normalized weights", "in-place on an input"],
)  # fmt: skip
def test_passes_that_cannot_be_put_off_are_plain(text: str, phase: int) -> None:
    net, lazy = counted(text, phase)
    net.forward(x=images())
    assert lazy.fast == 0


def test_callbacks_and_debug_info_make_passes_plain() -> None:
    net, lazy = counted()
    net.module.debug_info = True
    net.forward(x=images())
    net.module.debug_info = False
    net.forward()
    assert lazy.fast == 1
    seen: list[int] = []
    net.after_forward(seen.append)
    assert net.blobs["sum"].data.any() and not seen  # what makes pending blobs is no pass of the script's
    net.forward()
    assert lazy.fast == 1 and seen == list(range(len(net.layers)))


def test_memory_elsewhere_makes_passes_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    net, lazy = counted()
    monkeypatch.setattr("imae.layers.utility.synced_memory.in_cpu_memory", lambda tensor: False)
    assert net.forward(x=images())["prob"].any() and lazy.fast == 0


def test_a_blob_outlives_its_net_with_the_values_of_the_last_pass() -> None:
    net = make(CLASSIFIER, True, 1, torch.float32)
    want = make(CLASSIFIER, False, 1, torch.float32)
    for one in (net, want):
        one.forward(x=images())
    blob = net.blobs["sum"]
    del net, one
    np.testing.assert_array_equal(blob.data, want.blobs["sum"].data)


def test_the_loss_counts_a_diff_that_the_script_has_changed() -> None:
    pair = Pair.made(NETS["losses"], 1, torch.float32)
    found = []
    for net in pair.both:
        net.forward(x=images(), y=np.array([1, 4]))
        net.blobs["loss"].diff[...] = 7
        found.append(net._forward(0, len(net.layers) - 1))
    assert found[1] == pytest.approx(found[0], rel=tolerance("same arithmetic")[0])
    assert found[0] == pytest.approx(7 * float(pair.plain.blobs["loss"].data), rel=tolerance("printed")[0])


def test_a_net_that_is_reshaped_has_the_shapes_for_its_inputs_not_for_their_values() -> None:
    found = []
    for net in Pair.made(NETS["chosen"], 1, torch.float32).both:
        net.forward(x=images(), y=np.array([1, 0]))
        net.reshape()
        found.append([net.blobs[name].data.shape for name in ("chosen", "half", "tanh")])
        net.forward()
        assert net.blobs["half"].shape == (1, 2, 4, 3)
    assert found[0] == found[1] == [(2, 2, 4, 3)] * 3


def test_a_blob_that_a_script_has_reshaped_has_its_shape_again_after_a_pass() -> None:
    for net in Pair.made(CLASSIFIER, 1, torch.float32).both:
        net.forward(x=images())
        net.blobs["sum"].reshape(5, 7)
        assert net.blobs["sum"].shape == (5, 7)
        net.forward()
        assert net.blobs["sum"].shape == (2, 4, 5, 4)


def test_the_script_runner_notices_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the copies of the inputs, say."""
    monkeypatch.setattr(LazyStepwise, "_copied", lambda self, name: self.blobs[name].data)
    with pytest.raises(AssertionError, match="layer by layer"):
        pycaffe_scripts.run_scripts(range(100), 10, tmp_path, fresh=False)
