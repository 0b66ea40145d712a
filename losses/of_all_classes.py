"""The losses that depend on the probabilities of all classes. The gradient is autograd's.

q_k is the softmax probability of class k, y the annotated label, p = q_y. All start from the log-softmax, so
that no loss and no gradient is NaN where a probability is 0 or 1.
"""

from __future__ import annotations

from typing import Any, Literal, Unpack, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from imae.files.errors import LossError
from imae.losses.loss import Loss, Options, check_number, check_share, least_log
from imae.losses.of_probability import LOG_ZERO, check_log_zero

Passive = Literal["NONE", "RCE", "MAE"]
Kind = Literal["SOFT", "HARD"]
BETAS: dict[str, float] = {"SOFT": 0.95, "HARD": 0.8}
LARGEST_CONDITION = 1e6  # of a matrix that is inverted: about all digits of single precision are lost there


class AllClassesLoss(Loss):
    """Base of these losses; a type defines `values`."""

    def values(self, log_prob: Tensor, index: Tensor, axis: int) -> Tensor:
        """The loss of each example, of size 1 on `axis`; log_prob are finite log-probabilities."""
        raise LossError(f"{type(self).__name__} defines no values")

    def compute(
        self,
        logits: Tensor,
        index: Tensor,
        valid: Tensor | None,
        axis: int,
        count: Tensor | float,
        reduce: bool = True,
    ) -> Tensor:
        if valid is not None:  # the logits of ignored examples must not matter, not even NaN
            logits = logits.masked_fill(~valid, 0)
        log_prob = torch.log_softmax(logits, axis)
        losses = self.values(log_prob.clamp(min=least_log(log_prob.dtype)), index, axis)
        if valid is not None:
            losses = losses.masked_fill(~valid, 0)
        return (losses.sum() if reduce else losses) / count


class NCE(AllClassesLoss):
    """Normalised cross entropy, alone or with a passive loss: alpha NCE + beta RCE, alpha NCE + beta MAE.

        NCE = log q_y / sum_k log q_k        RCE = -A (1 - p)        MAE = 2 (1 - p)

    gamma > 0 makes it the normalised focal loss: NFL = (1 - q_y)^gamma log q_y / sum_k (1 - q_k)^gamma log
    q_k. Ma, Huang, Wang, Romano, Erfani and Bailey 2020, "Normalized Loss Functions for Deep Learning with
    Noisy Labels", arXiv 2006.13554 (active passive loss). alpha 1, beta 1 are the authors' for CIFAR-10 (10
    and 0.1 for CIFAR-100), gamma 0.5 for their NFL; A (`log_zero`) as in SCE. Their code halves MAE; here it
    is 2 (1 - p). Their NFL's gradient leaves out that of (1 - q)^gamma; this is the whole derivative. Layer:
    NCELoss.

    >>> import torch
    >>> from imae.losses import NCE
    >>> logits = torch.tensor([[3.0, 1.0]]).log()  # the probability of label 0 is 0.75
    >>> NCE("RCE", alpha=1, beta=1)(logits, torch.tensor([0]))
    tensor(2.4744)
    """

    settings = ("alpha", "beta", "gamma", "log_zero")

    def __init__(
        self,
        passive: Passive = "NONE",
        *,
        alpha: float = 1,
        beta: float = 1,
        gamma: float = 0,
        log_zero: float = LOG_ZERO,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        if passive not in get_args(Passive):
            raise LossError(f"passive must be one of {', '.join(get_args(Passive))}, got {passive!r}")
        for name, number in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            check_number(name, number)
        check_log_zero(log_zero)
        self.passive, self.alpha, self.beta, self.gamma = passive, alpha, beta, gamma
        self.log_zero = log_zero

    def values(self, log_prob: Tensor, index: Tensor, axis: int) -> Tensor:
        active = log_prob
        if self.gamma:
            # At q = 1 the slope of (1 - q)^gamma may be infinite, and log q is 0: the limit of both is 0.
            rest = -torch.expm1(log_prob)
            active = active * rest.clamp(min=torch.finfo(rest.dtype).tiny) ** self.gamma
        loss = self.alpha * active.gather(axis, index) / active.sum(axis, keepdim=True)
        if self.passive == "NONE":
            return loss
        slope = 2 if self.passive == "MAE" else -self.log_zero
        return loss - self.beta * slope * torch.expm1(log_prob.gather(axis, index))


class LabelSmoothing(AllClassesLoss):
    """Cross entropy with smoothed labels: -(1 - s) log q_y - s / C sum_k log q_k.

    Szegedy, Vanhoucke, Ioffe, Shlens and Wojna 2015, "Rethinking the Inception Architecture for Computer
    Vision", arXiv 1512.00567; s = 0.1 is theirs. torch's cross_entropy(label_smoothing=s). s = 0 is CCE.
    Layer: LabelSmoothingLoss, which is not SoftmaxWithLoss's label_smoothing of two forks of Caffe.

    >>> import torch
    >>> from imae.losses import LabelSmoothing
    >>> logits = torch.tensor([[3.0, 1.0]]).log()  # the probability of label 0 is 0.75
    >>> LabelSmoothing(smoothing=0.1)(logits, torch.tensor([0]))
    tensor(0.3426)
    """

    settings = ("smoothing",)

    def __init__(self, smoothing: float = 0.1, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        check_share("smoothing", smoothing)
        self.smoothing = smoothing

    def values(self, log_prob: Tensor, index: Tensor, axis: int) -> Tensor:
        annotated = log_prob.gather(axis, index)
        return -(1 - self.smoothing) * annotated - self.smoothing * log_prob.mean(axis, keepdim=True)


class Bootstrapping(AllClassesLoss):
    """Cross entropy with labels mixed with the prediction: -sum_k (beta onehot_k + (1 - beta) t_k) log q_k.

        SOFT  t = q, through which the gradient goes, too: beta CCE + (1 - beta) times the entropy of q
        HARD  t = onehot of the largest q

    Reed, Lee, Anguelov, Szegedy, Erhan and Rabinovich 2014, "Training Deep Neural Networks on Noisy Labels
    with Bootstrapping", arXiv 1412.6596; beta is 0.95 for SOFT and 0.8 for HARD, as there. beta = 1 is CCE.
    Layer: BootstrappingLoss.

    >>> import torch
    >>> from imae.losses import Bootstrapping
    >>> logits = torch.tensor([[3.0, 1.0]]).log()  # the prediction is label 0, with probability 0.75
    >>> Bootstrapping("HARD", beta=0.8)(logits, torch.tensor([1]))
    tensor(1.1666)
    """

    settings = ("beta",)

    def __init__(self, kind: Kind = "SOFT", beta: float | None = None, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        if kind not in get_args(Kind):
            raise LossError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        self.kind = kind
        self.beta = BETAS[kind] if beta is None else beta
        check_share("beta", self.beta)

    def values(self, log_prob: Tensor, index: Tensor, axis: int) -> Tensor:
        if self.kind == "SOFT":
            predicted = (log_prob.exp() * log_prob).sum(axis, keepdim=True)
        else:
            predicted = log_prob.gather(axis, log_prob.detach().argmax(axis, keepdim=True))
        return -self.beta * log_prob.gather(axis, index) - (1 - self.beta) * predicted


class _Correction(AllClassesLoss):
    """Base of the corrections; `rows` has for each label y what `values` needs of the matrix, (C, C)."""

    rows: Tensor

    def __init__(self, transition: ArrayLike | Tensor, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        matrix = transition_matrix(transition)
        self.classes = len(matrix)
        self.register_buffer("rows", self.rows_of(matrix), persistent=False)

    def rows_of(self, matrix: Tensor) -> Tensor:
        raise LossError(f"{type(self).__name__} defines no rows_of")

    def of_labels(self, log_prob: Tensor, index: Tensor, axis: int) -> Tensor:
        """The rows of the labels, shaped like log_prob."""
        return self.rows[index.squeeze(axis)].movedim(-1, axis).to(log_prob.dtype)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (f"classes={self.classes}", super().extra_repr())))


class ForwardCorrection(_Correction):
    """Cross entropy of the prediction that went through the noise: -log sum_k q_k T[k, y].

    T[i, j] is the probability that an example of class i is labelled j; its rows sum to 1. Patrini, Rozza,
    Menon, Nock and Qu 2017, "Making Deep Neural Networks Robust to Label Noise: a Loss Correction Approach",
    arXiv 1609.03683. T = 1 is CCE. Layer: CorrectionLoss.

    >>> import torch
    >>> from imae.losses import ForwardCorrection
    >>> logits = torch.tensor([[3.0, 1.0]]).log()  # the probability of label 0 is 0.75
    >>> ForwardCorrection([[0.8, 0.2], [0.2, 0.8]])(logits, torch.tensor([0]))
    tensor(0.4308)
    """

    def rows_of(self, matrix: Tensor) -> Tensor:
        never = (matrix == 0).all(0).nonzero().flatten().tolist()
        if never:
            raise LossError(
                f"transition: no class is ever labelled {never[0]} (column {never[0]} is 0), so the loss of "
                "such a label would be infinite; give the column a small probability"
            )
        return matrix.t().log()

    def values(self, log_prob: Tensor, index: Tensor, axis: int) -> Tensor:
        return -(log_prob + self.of_labels(log_prob, index, axis)).logsumexp(axis, keepdim=True)


class BackwardCorrection(_Correction):
    """Cross entropies that the inverse of the noise mixes: -sum_k inverse(T)[y, k] log q_k.

    T as in ForwardCorrection, and invertible. The loss may be negative, and has no lower bound: the paper
    finds the forward correction to be the better one. T = 1 is CCE. Layer: CorrectionLoss { direction:
    BACKWARD }.

    >>> import torch
    >>> from imae.losses import BackwardCorrection
    >>> logits = torch.tensor([[3.0, 1.0]]).log()  # the probability of label 0 is 0.75
    >>> BackwardCorrection([[0.8, 0.2], [0.2, 0.8]])(logits, torch.tensor([0]))
    tensor(-0.0785)
    """

    def rows_of(self, matrix: Tensor) -> Tensor:
        if not float(torch.linalg.cond(matrix)) <= LARGEST_CONDITION:
            raise LossError("transition: the matrix has no usable inverse (it is singular, or nearly so)")
        inverse: Tensor = torch.linalg.inv(matrix)
        return inverse

    def values(self, log_prob: Tensor, index: Tensor, axis: int) -> Tensor:
        losses: Tensor = (self.of_labels(log_prob, index, axis) * log_prob).sum(axis, keepdim=True)
        return -losses


def transition_matrix(transition: ArrayLike | Tensor) -> Tensor:
    """The matrix in double precision; LossError unless it is square, of probabilities, with rows of sum 1."""
    if isinstance(transition, Tensor):
        transition = transition.detach().cpu().numpy()
    try:
        array: Any = np.asarray(transition, np.float64)
    except (ValueError, TypeError) as error:
        raise LossError(f"transition must be a matrix of numbers: {error}") from None
    if array.ndim != 2 or array.shape[0] != array.shape[1] or len(array) < 2:
        raise LossError(
            f"transition must be a square matrix, of 2 classes or more, got the shape {array.shape}"
        )
    if not ((array >= 0) & (array <= 1)).all():
        raise LossError("transition must have probabilities, from 0 to 1")
    sums = array.sum(1)
    if (abs(sums - 1) > 1e-3).any():
        row = int(abs(sums - 1).argmax())
        raise LossError(
            f"transition: each row must sum to 1, row {row} sums to {sums[row]:g}; row i has the "
            "probabilities of the labels of class i"
        )
    return torch.tensor(array)
