"""What to type after a training: how to go on with it, or how to use its weights. Caffe has no such lines."""

from __future__ import annotations

import os
import shlex

from imae.train.snapshots import find_snapshots
from imae.train.solver import Solver


def next_steps(solver: Solver, path: str, dialect: str | None = None) -> list[str]:
    """Lines for the log after `solver.solve()`; the commands in them can be typed as they are.

    path      the solver's prototxt, as it was given
    dialect   the fork that wrote the files, as it was given
    """
    fork = f" --dialect {dialect}" if dialect else ""
    return _how_to_go_on(solver, path, fork) if solver.stopped else _how_to_use(solver, fork)


def _how_to_go_on(solver: Solver, path: str, fork: str) -> list[str]:
    state = solver.snapshots.paths(solver.iteration)[1]
    words = "to go on"
    if not os.path.isfile(state):
        whole = [s for s in find_snapshots(solver.snapshots.prefix) if s.model and s.state]
        older = [s for s in whole if s.iteration < solver.iteration]
        if not older:
            return ["no snapshot was written, so the next start is from the beginning"]
        state, words = older[0].state, f"to go on from iteration {older[0].iteration}"
    command = f"imae train {shlex.quote(path)}{fork} --snapshot {shlex.quote(state)}"
    return [f"{words}: {command}, or --resume auto"]


def _how_to_use(solver: Solver, fork: str) -> list[str]:
    param, model = solver.param, solver.snapshots.paths(solver.iteration)[0]
    if not os.path.isfile(model):
        return []
    lines, weights = [f"the weights are in {model}"], f"--weights {shlex.quote(model)}{fork}"
    test_net = next(iter(param.test_net), param.net)
    if test_net and solver.test_nets:
        batches = f"--iterations {param.test_iter[0]}"
        lines.append(f"to test them: imae test --model {shlex.quote(test_net)} {weights} {batches}")
    if net := param.net or param.train_net:
        output = model.removesuffix(".h5").removesuffix(".caffemodel") + ".onnx"
        command = f"imae export --model {shlex.quote(net)} {weights} --output {shlex.quote(output)}"
        lines.append(f"to export them: {command}")
    return lines
