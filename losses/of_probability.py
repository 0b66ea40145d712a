"""The losses of p alone, the softmax probability of the annotated label; see designed.py.

Each has its value and its weight, the L1 norm of the gradient with respect to an example's logits. Defaults
are those of the losses' authors; a docstring says where there are several.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Unpack

import torch
from torch import Tensor

from imae.files.errors import LossError
from imae.losses import example_weights
from imae.losses.designed import DesignedLoss, Normalizer, check_exponent
from imae.losses.loss import Options, check_number

LOG_ZERO = -9.210340371976182  # log 1e-4: the authors of SCE and of NCE clip the one-hot labels at 1e-4
MOST_TERMS = 100


class CCE(DesignedLoss):
    """Categorical cross entropy, -log p; weight 2 (1 - p) (equation 19 of arXiv 1903.12141).

    Caffe's SoftmaxWithLoss, torch's cross_entropy. The layer is SoftmaxWithLoss.

    >>> import torch
    >>> from imae.losses import CCE
    >>> logits = torch.tensor([[3.0, 1.0]]).log()  # the probability of label 0 is 0.75
    >>> CCE()(logits, torch.tensor([0]))
    tensor(0.2877)
    """

    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__(**options)

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        return example_weights.cce(p, rest)

    def value(self, p: Tensor, rest: Tensor, log_p: Tensor) -> Tensor:
        return -log_p


class MAE(DesignedLoss):
    """Mean absolute error between softmax and one-hot label, 2 (1 - p); weight 4 p (1 - p).

    Ghosh, Kumar and Sastry 2017, "Robust Loss Functions under Label Noise for Deep Neural Networks", arXiv
    1712.09482; here with the factor 2, as equations 3 and 18 of arXiv 1903.12141 have it. Layer: MAELoss.

    >>> import torch
    >>> from imae.losses import MAE
    >>> logits = torch.tensor([[3.0, 1.0]]).log()  # the probability of label 0 is 0.75
    >>> MAE()(logits, torch.tensor([0]))
    tensor(0.5000)
    """

    def __init__(self, *, normalizer: Normalizer = "BATCH_SIZE", **options: Unpack[Options]) -> None:
        super().__init__(normalizer=normalizer, **options)

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        return example_weights.mae(p, rest)


class MSE(DesignedLoss):
    """Squared error of the annotated label's probability, (1 - p)^2; weight 4 p (1 - p)^2.

    Wang et al. 2019, later version of arXiv 1903.12141, table 2. Layer: MSELoss.

    >>> import torch
    >>> from imae.losses import MSE
    >>> logits = torch.tensor([[3.0, 1.0]]).log()  # the probability of label 0 is 0.75
    >>> MSE()(logits, torch.tensor([0]))
    tensor(0.0625)
    """

    def __init__(self, *, normalizer: Normalizer = "BATCH_SIZE", **options: Unpack[Options]) -> None:
        super().__init__(normalizer=normalizer, **options)

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        return example_weights.mse(p, rest)

    def value(self, p: Tensor, rest: Tensor, log_p: Tensor) -> Tensor:
        return rest * rest


class GCE(DesignedLoss):
    """Generalised cross entropy, (1 - p^q) / q; weight 2 p^q (1 - p).

    Zhang and Sabuncu 2018, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy
    Labels", arXiv 1805.07836; q = 0.7 is theirs. q -> 0 is CCE, q = 1 half of MAE. Not the truncated form.
    Layer: GCELoss.

    >>> import torch
    >>> from imae.losses import GCE
    >>> logits = torch.tensor([[3.0, 1.0]]).log()  # the probability of label 0 is 0.75
    >>> GCE(q=0.7)(logits, torch.tensor([0]))
    tensor(0.2606)
    """

    settings = ("q",)

    def __init__(
        self, q: float = 0.7, *, normalizer: Normalizer = "BATCH_SIZE", **options: Unpack[Options]
    ) -> None:
        super().__init__(normalizer=normalizer, **options)
        check_number("q", q, exclusive=True)
        self.q = q

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        return example_weights.gce(p, rest, self.q)

    def value(self, p: Tensor, rest: Tensor, log_p: Tensor) -> Tensor:
        return -torch.expm1(self.q * log_p) / self.q


class IMAE(DesignedLoss):
    """MAE whose weights are spread by an exponential: weight exp(t p (1 - p)), value MAE's 2 (1 - p).

    Wang, Hua, Kodirov and Robertson 2019, "IMAE for Noise-Robust Learning: Mean Absolute Error Does Not Treat
    Examples Equally and Gradient Magnitude's Variance Matters", arXiv 1903.12141, equations 21 and 22. The
    gradient is designed and not the derivative of the value: "the loss computation during forward propagation
    is unchanged" (section 4). The paper has t = 8 for noisy and 0.5 for clean labels, and divides by the
    batch size. The defaults are those of the authors' later code: divided by the sum of the weights, with an
    `epsilon` of 1e-6; 0 and normalizer="BATCH_SIZE" give equation 22 exactly. Layer: IMAELoss.

    >>> import torch
    >>> from imae.losses import IMAE
    >>> logits = torch.tensor([[3.0, 1.0]]).log()  # the probability of label 0 is 0.75
    >>> _ = logits.requires_grad_()
    >>> loss = IMAE(t=8, normalizer="BATCH_SIZE")(logits, torch.tensor([0]))
    >>> loss.detach()
    tensor(0.5000)
    >>> loss.backward()
    >>> logits.grad.abs().sum()  # the weight, exp(8 * 0.75 * 0.25)
    tensor(4.4817)
    """

    settings = ("t", "epsilon")
    own_normalizer = "SUM_OF_WEIGHTS"

    def __init__(
        self,
        t: float = 8,
        *,
        epsilon: float = 1e-6,
        normalizer: Normalizer | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(normalizer=normalizer, epsilon=epsilon, **options)
        check_exponent("t", 1, t)
        self.t = t

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        return example_weights.imae(p, rest, self.t)


class DM(DesignedLoss):
    """Derivative manipulation: weight exp(beta p^lambda (1 - p)), value MAE's 2 (1 - p).

    Wang, Kodirov, Hua and Robertson 2019, "Derivative Manipulation for General Example Weighting", arXiv
    1905.11233. lambda 1 is IMAE, with beta for its t. normalize_by_integral divides the weight by its
    integral over p from 0 to 1. The loss with this gradient is not elementary, so the gradient is not the
    derivative of the value. The paper has no one default; these are IMAE's. Layer: DMLoss.

    >>> import torch
    >>> from imae.losses import DM
    >>> logits = torch.tensor([[3.0, 1.0]]).log()  # the probability of label 0 is 0.75
    >>> _ = logits.requires_grad_()
    >>> loss = DM(lambda_=1, beta=8, normalizer="BATCH_SIZE")(logits, torch.tensor([0]))
    >>> loss.detach()
    tensor(0.5000)
    >>> loss.backward()
    >>> logits.grad.abs().sum()  # the weight, exp(8 * 0.75 * 0.25)
    tensor(4.4817)
    """

    settings = ("lambda_", "beta", "epsilon")
    own_normalizer = "SUM_OF_WEIGHTS"

    def __init__(
        self,
        lambda_: float = 1,
        beta: float = 8,
        *,
        normalize_by_integral: bool = False,
        epsilon: float = 1e-6,
        normalizer: Normalizer | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(normalizer=normalizer, epsilon=epsilon, **options)
        if not lambda_ >= 0:
            raise LossError(f"lambda must not be below 0, got {lambda_:g}")
        check_exponent("beta", lambda_, beta)
        self.lambda_, self.beta = lambda_, beta
        weight = partial(example_weights.dm, lambda_=lambda_, beta=beta)
        self.integral = example_weights.mean(weight) if normalize_by_integral else 1.0

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        return example_weights.dm(p, rest, self.lambda_, self.beta) / self.integral


class SCE(DesignedLoss):
    """Symmetric cross entropy, alpha CE + beta RCE = -alpha log p - beta A (1 - p).

    RCE, the reverse cross entropy -sum_k prob_k log onehot_k, has log 0 = A. Weight 2 (alpha + beta |A| p)
    (1 - p). Wang, Ma, Chen, Luo, Yi and Bailey 2019, "Symmetric Cross Entropy for Robust Learning with Noisy
    Labels", arXiv 1908.06112. The authors' code for CIFAR-10 has alpha 0.1, beta 1, and clips the one-hot
    labels at 1e-4, so A (`log_zero`) is log 1e-4 = -9.21. beta 0 is alpha CCE. Layer: SCELoss.

    >>> import torch
    >>> from imae.losses import SCE
    >>> logits = torch.tensor([[3.0, 1.0]]).log()  # the probability of label 0 is 0.75
    >>> SCE(alpha=0.1, beta=1)(logits, torch.tensor([0]))
    tensor(2.3314)
    """

    settings = ("alpha", "beta", "log_zero")

    def __init__(
        self, alpha: float = 0.1, beta: float = 1, log_zero: float = LOG_ZERO, **options: Unpack[Options]
    ) -> None:
        super().__init__(**options)
        check_number("alpha", alpha)
        check_number("beta", beta)
        check_log_zero(log_zero)
        self.alpha, self.beta, self.log_zero = alpha, beta, log_zero

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        return example_weights.sce(p, rest, self.alpha, self.beta, self.log_zero)

    def value(self, p: Tensor, rest: Tensor, log_p: Tensor) -> Tensor:
        return -self.alpha * log_p - self.beta * self.log_zero * rest


class AUL(DesignedLoss):
    """Asymmetric unhinged loss, ((a - p)^q - (a - 1)^q) / q, a > 1; weight 2 p (a - p)^(q - 1) (1 - p).

    Zhou, Liu, Jiang, Gao and Ji 2021, "Asymmetric Loss Functions for Learning with Noisy Labels", arXiv
    2106.03110; the paper's p is q here. a = 5.5, q = 3 is the authors' code for CIFAR-10. q = 1 is half of
    MAE. Layer: AULLoss.

    >>> import torch
    >>> from imae.losses import AUL
    >>> logits = torch.tensor([[3.0, 1.0]]).log()  # the probability of label 0 is 0.75
    >>> AUL(a=5.5, q=3)(logits, torch.tensor([0]))
    tensor(5.3490)
    """

    settings = ("a", "q")

    def __init__(self, a: float = 5.5, q: float = 3, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        check_number("a", a, 1, exclusive=True)
        check_number("q", q, exclusive=True)
        check_power(a, q)
        self.a, self.q = a, q

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        return example_weights.aul(p, rest, self.a, self.q)

    def value(self, p: Tensor, rest: Tensor, log_p: Tensor) -> Tensor:
        return ((self.a - p) ** self.q - math.pow(self.a - 1, self.q)) / self.q


class AGCE(DesignedLoss):
    """Asymmetric generalised cross entropy, ((a + 1)^q - (a + p)^q) / q, a > 0.

    Weight 2 p (a + p)^(q - 1) (1 - p). Zhou et al. 2021, arXiv 2106.03110. a = 0.6, q = 0.6 is the authors'
    code for CIFAR-10. a -> 0 is GCE, q = 1 half of MAE. Layer: AGCELoss.

    >>> import torch
    >>> from imae.losses import AGCE
    >>> logits = torch.tensor([[3.0, 1.0]]).log()  # the probability of label 0 is 0.75
    >>> AGCE(a=0.6, q=0.6)(logits, torch.tensor([0]))
    tensor(0.2141)
    """

    settings = ("a", "q")

    def __init__(self, a: float = 0.6, q: float = 0.6, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        check_number("a", a, exclusive=True)
        check_number("q", q, exclusive=True)
        check_power(a + 1, q)
        self.a, self.q = a, q

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        return example_weights.agce(p, rest, self.a, self.q)

    def value(self, p: Tensor, rest: Tensor, log_p: Tensor) -> Tensor:
        return (math.pow(self.a + 1, self.q) - (self.a + p) ** self.q) / self.q


class AEL(DesignedLoss):
    """Asymmetric exponential loss, exp(-p / a); weight 2 p exp(-p / a) / a (1 - p); a is at least 1e-6.

    Zhou et al. 2021, arXiv 2106.03110. a = 2.5 is the authors' code for CIFAR-10. Layer: AELLoss.

    >>> import torch
    >>> from imae.losses import AEL
    >>> logits = torch.tensor([[3.0, 1.0]]).log()  # the probability of label 0 is 0.75
    >>> AEL(a=2.5)(logits, torch.tensor([0]))
    tensor(0.7408)
    """

    settings = ("a",)

    def __init__(self, a: float = 2.5, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        check_number("a", a, 1e-6)
        self.a = a

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        return example_weights.ael(p, rest, self.a)

    def value(self, p: Tensor, rest: Tensor, log_p: Tensor) -> Tensor:
        return torch.exp(-p / self.a)


class TCE(DesignedLoss):
    """Taylor cross entropy, the first t terms of CCE's series: sum over i = 1 .. t of (1 - p)^i / i.

    Weight 2 (1 - (1 - p)^t) (1 - p). Feng, Shu, Lin, Lv, Li and An 2020, "Can Cross Entropy Loss Be Robust to
    Label Noise?", IJCAI 2020, pages 2206 to 2212 (not on arXiv). t = 1 is half of MAE, t -> infinity CCE. t =
    2 is a choice of ours: a little more than MAE. Layer: TCELoss.

    >>> import torch
    >>> from imae.losses import TCE
    >>> logits = torch.tensor([[3.0, 1.0]]).log()  # the probability of label 0 is 0.75
    >>> TCE(t=2)(logits, torch.tensor([0]))
    tensor(0.2812)
    """

    settings = ("t",)

    def __init__(self, t: int = 2, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        if not 1 <= t <= MOST_TERMS or t != int(t):
            raise LossError(f"t must be a whole number from 1 to {MOST_TERMS}, got {t}")
        self.t = int(t)

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        return example_weights.tce(p, rest, self.t)

    def value(self, p: Tensor, rest: Tensor, log_p: Tensor) -> Tensor:
        total = torch.full_like(rest, 1 / self.t)
        for i in range(self.t - 1, 0, -1):  # Horner's rule
            total = total * rest + 1 / i
        return total * rest


def check_log_zero(log_zero: float) -> None:
    """LossError unless A can stand for log 0."""
    if not -1e4 <= log_zero < 0:
        raise LossError(f"log_zero must be below 0, and at least -10000, got {log_zero:g}")


def check_power(base: float, exponent: float) -> None:
    """LossError where a loss with base^exponent is too large for single precision."""
    if not base <= 1e6 or not exponent <= 1e3 or not base**exponent <= 1e30:
        raise LossError(f"a and q make losses that are too large for single precision: {base:g}^{exponent:g}")
