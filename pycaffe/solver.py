"""pycaffe's solvers over imae's Solver. Nets run layer by layer, so that scripts see every blob and diff.

Caffe: python/caffe/_caffe.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from imae.files.errors import PrototxtError
from imae.files.read import AnyPath
from imae.layers.utility.synced_memory import announce_change
from imae.net.executor import StepwiseExecutor
from imae.net.lazy_stepwise import LazyStepwise
from imae.net.net import Net as ModuleNet
from imae.prototxt import SolverParameter
from imae.prototxt.dialects import read_solver_dialect
from imae.prototxt.leftovers import strict_fields
from imae.pycaffe.mode import current_device, current_random
from imae.pycaffe.net import Net
from imae.pycaffe.vectors import NetVec
from imae.train.options import Options
from imae.train.solver import Solver as TrainSolver


class Solver:
    """A solver made from a solver prototxt: step, solve, snapshot, restore, and the nets.

    strict    whether a field of a net without effect is an error; by default a warning lists such fields
    dialect   the fork that wrote the files of the solver, its nets and their weights; None: Caffe
    """

    type: ClassVar[str] = ""

    def __init__(self, solver_file: AnyPath, *, strict: bool = False, dialect: str | None = None) -> None:
        with strict_fields(strict):
            self._make(solver_file, dialect)

    def _make(self, solver_file: AnyPath, dialect: str | None) -> None:
        param = read_solver_dialect(solver_file, dialect)
        if self.type and param.type != self.type:
            # Caffe: the class decides, not the file.
            changed = SolverParameter()
            changed.CopyFrom(param)
            changed.type, param = self.type, changed
        device = current_device()
        made: list[LazyStepwise] = []

        def executor(net: ModuleNet) -> StepwiseExecutor:
            made.append(LazyStepwise(net, device))
            return StepwiseExecutor(made[-1])

        options = Options(device=device, executor=executor, dialect=dialect)
        self.solver = TrainSolver(param, options, random=current_random())
        self.param = param
        self.net, *test_nets = [Net.around(stepwise) for stepwise in made]
        self.test_nets = NetVec(test_nets)
        self._on_gradients_ready: list[Callable[[], object]] = []
        self.solver.on_gradients_ready.append(self._gradients_ready)

    @property
    def iter(self) -> int:
        """The number of updates made so far."""
        return self.solver.iteration

    @property
    def lr(self) -> float:
        """The learning rate of the next update.

        Caffe: this calls GetLearningRate(). With lr_policy multistep each access (also by `hasattr`) moves
        on by one stepvalue that is due, as each update does, and logs it.
        """
        return self.solver.get_learning_rate()

    def step(self, iterations: int) -> None:
        """Make this many updates."""
        self._take_back_parameters()
        self.solver.step(iterations)

    def solve(self, resume_file: AnyPath | None = None) -> None:
        """Train up to max_iter; resume from a solver state if one is given."""
        if resume_file is not None:
            self.restore(resume_file)
        self._take_back_parameters()
        self.solver.solve()

    def snapshot(self) -> None:
        """Write model and solver state under snapshot_prefix."""
        self._take_back_parameters()
        self.solver.snapshot()

    def restore(self, path: AnyPath, dialect: str | None = None) -> None:
        """Resume from a solver state as Caffe does: data and random numbers start again from the beginning.

        dialect   the fork that wrote the state and its model
        """
        self._take_back_parameters()
        self.solver.restore(path, as_caffe=True, dialect=dialect)

    def apply_update(self) -> None:
        """Update the weights from the current diffs."""
        self._take_back_parameters()
        self.solver.apply_update()

    def share_weights(self, net: Net) -> None:
        """Make `net` use the train net's parameters."""
        net.share_with(self.net)

    def add_callback(self, on_start: Callable[[], object], on_gradients_ready: Callable[[], object]) -> None:
        """Call these before each forward pass and before each update."""
        self.solver.on_start.append(on_start)
        self._on_gradients_ready.append(on_gradients_ready)

    def _gradients_ready(self) -> None:
        """Call the scripts' callbacks; the update uses the diffs that they write."""
        for callback in self._on_gradients_ready:
            callback()
        self._take_back_parameters()

    def _take_back_parameters(self) -> None:
        """Take the parameter blobs back from scripts, before they change."""
        for net in (self.net, *self.test_nets):
            net.stepwise.take_back_parameters()
            announce_change(net.module.learnable)


class SGDSolver(Solver):
    type = "SGD"


class NesterovSolver(Solver):
    type = "Nesterov"


class AdaGradSolver(Solver):
    type = "AdaGrad"


class RMSPropSolver(Solver):
    type = "RMSProp"


class AdaDeltaSolver(Solver):
    type = "AdaDelta"


class AdamSolver(Solver):
    type = "Adam"


class AdamWSolver(Solver):
    """Not in Caffe."""

    type = "AdamW"


SOLVERS = {
    cls.type: cls
    for cls in (
        SGDSolver,
        NesterovSolver,
        AdaGradSolver,
        RMSPropSolver,
        AdaDeltaSolver,
        AdamSolver,
        AdamWSolver,
    )
}


def get_solver(solver_file: AnyPath, *, strict: bool = False, dialect: str | None = None) -> Solver:
    """The solver of the type that the file names."""
    name = read_solver_dialect(solver_file, dialect).type
    if name not in SOLVERS:
        raise PrototxtError(f"Unknown solver type: {name} (known types: {', '.join(sorted(SOLVERS))})")
    return SOLVERS[name](solver_file, strict=strict, dialect=dialect)
