"""MultiBoxLoss: SSD's loss of boxes and of their classes.

    top = (loc_weight loc + conf) / S       S: matches (VALID, the default), images (BATCH_SIZE), images x
                                            priors (FULL) or 1 (NONE), and at least 1

1. Priors, or with use_prior_for_matching: false the predicted boxes, are matched with the truths of their
   image: `match` in boxes.py. With share_location: false a match belongs to the class of its truth.
2. mining_type chooses what counts. MAX_NEGATIVE: of the priors without a match whose overlaps are all below
   neg_overlap those with the largest loss of the class, neg_pos_ratio times as many as matches, per image; an
   image without a truth gives none. HARD_EXAMPLE: the sample_size priors of the largest loss, matched or not.
   NONE: all. With nms_param only priors (or predicted boxes) that do not overlap a worse one are chosen; its
   top_k is 0 if it is not given, which chooses nothing.
3. loc: half the squared difference (L2) or SmoothL1Loss's of the matches' codes, summed up. conf: the cross
   entropy of a softmax (SOFTMAX), or of a sigmoid for each class (LOGISTIC), of matches and chosen negatives.

bottom[0]  (N, 4 L P) codes of boxes (boxes.py); L is 1, or num_classes with share_location: false
bottom[1]  (N, C P) scores, C = num_classes
bottom[2]  (1, 2, 4 P) priors and their variances; no gradient
bottom[3]  (1, 1, G, 8) truths: image, label, instance, xmin, ymin, xmax, ymax, difficult; no gradient. Rows
           with image -1 are passed over, difficult ones too with use_difficult_gt: false
top[0]     (), the loss; a part whose bottom has propagate_down: false is left out of it

LOGISTIC's targets are as in the fork: they start as the number background_label_id; a chosen negative has 1
for the background; with mining_type: NONE those of the second image start P numbers after the first one's,
not P C.

The host reads the truths in each iteration, and which priors are matched.

SSD (weiliu89/caffe, branch ssd): multibox_loss_layer.cpp, util/bbox_util.cpp. Differs: of equal losses the
lower prior is chosen (the fork: any); each forward pass makes its own matches (in the fork two passes without
a backward pass between use the first one's, and may read out of bounds); a label out of range is always an
error; force_backward asks for no gradient of priors and truths (the fork aborts).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply
from imae.layers.forks.boxes import cross_boundary, decode, encode, match, suppress_for_mining
from imae.layers.forks.detection_output import check_predictions, check_priors, split_priors
from imae.layers.labels import refuse_gradient
from imae.layers.layer import LossLayer, Shape
from imae.layers.loss.least_probability import FLT_MIN
from imae.layers.loss.loss_normalizer import normalization, normalizer
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter
from imae.prototxt.caffe_pb2 import LossParameter, MultiBoxLossParameter

logger = logging.getLogger(__name__)

MODES = (LossParameter.FULL, LossParameter.VALID, LossParameter.BATCH_SIZE, LossParameter.NONE)


class Truths(NamedTuple):
    """Of one image: labels (T) and boxes (T, 4)."""

    labels: Tensor
    boxes: Tensor


class Matches(NamedTuple):
    """(N, L, P): the truth of each prior among its image's, or -1 or -2; its largest overlap."""

    truth: Tensor
    overlap: Tensor


class Pairs(NamedTuple):
    """The matches one by one: image, class of locations, prior; the truth's label; codes (M, 4)."""

    image: Tensor
    loc_class: Tensor
    prior: Tensor
    label: Tensor
    predicted: Tensor
    target: Tensor


@register_layer("MultiBoxLoss")
class MultiBoxLoss(LossLayer):
    num_bottoms = 4
    reads = ("multibox_loss_param", "loss_param.normalization", "loss_param.normalize")

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        fields = self.fields = param.multibox_loss_param
        if not fields.num_classes:
            raise self.error("Must provide num_classes, at least 1.")
        self.loc_classes = 1 if fields.share_location else fields.num_classes
        # The fork keeps it as an int: 2^32 - 1 is -1, no background.
        self.background = int(np.uint32(fields.background_label_id).astype(np.int32))
        self.mines = fields.mining_type != MultiBoxLossParameter.NONE
        if fields.HasField("do_neg_mining"):
            logger.warning("layer %r: do_neg_mining is deprecated, use mining_type instead.", self.name)
            if fields.do_neg_mining != self.mines:
                raise self.error("do_neg_mining contradicts mining_type; remove do_neg_mining")
        if self.mines and not fields.share_location:
            raise self.error(
                "Currently only support negative mining if share_location is true.; write mining_type: NONE"
            )
        if fields.mining_type == MultiBoxLossParameter.HARD_EXAMPLE and fields.sample_size <= 0:
            raise self.error(f"sample_size must be larger than 0; got {fields.sample_size}")
        if fields.nms_param.HasField("eta"):
            self.note_leftover("multibox_loss_param.nms_param.eta")
        self._check_background()
        self.normalization = normalization(param.loss_param)
        if self.normalization not in MODES:
            raise self.error("loss_param { normalization } must be FULL, VALID, BATCH_SIZE or NONE")

    def _check_background(self) -> None:
        fields, background = self.fields, self.background
        softmax = fields.conf_loss_type == MultiBoxLossParameter.SOFTMAX
        if softmax and not 0 <= background < fields.num_classes:
            raise self.error(
                f"background_label_id should be within [0, num_classes) for Softmax.; got {background}"
            )
        if self.mines and background >= fields.num_classes:
            raise self.error(f"background_label_id must be below num_classes; got {background}")
        if fields.map_object_to_agnostic and (background, fields.num_classes) not in ((0, 2), (-1, 1)):
            raise self.error(
                "map_object_to_agnostic needs num_classes: 2 with background_label_id: 0, or 1 without a "
                f"background; got num_classes: {fields.num_classes}, background_label_id: {background}"
            )

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        check_predictions(self, bottom_shapes, self.loc_classes, self.fields.num_classes)
        truths = tuple(bottom_shapes[3])
        if len(truths) != 4 or truths[3] != 8 or prod(truths[:2]) != 1:
            raise self.error(f"bottom[3] must be truths (1, 1, G, 8); got {truths}")
        return [()]

    def allows_force_backward(self, bottom_index: int) -> bool:
        return bottom_index == 0

    @property
    def capturable(self) -> bool:
        return False

    def forward(self, loc: Tensor, conf: Tensor, prior: Tensor, truth: Tensor) -> Tensor:
        refuse_gradient(self, 2, prior, f"{self.type} Layer cannot backpropagate to prior inputs.")
        refuse_gradient(self, 3, truth, f"{self.type} Layer cannot backpropagate to label inputs.")
        truths = self._truths(truth.detach(), len(loc))
        priors, variances = split_priors(prior.detach())
        coded = loc.reshape(len(loc), len(priors), self.loc_classes, 4).transpose(1, 2)
        scores = conf.reshape(len(conf), len(priors), self.fields.num_classes)
        with torch.no_grad():
            boxes = self._boxes(priors, variances, coded)
            matches = self._matches(boxes, truths, priors)
        pairs = self._pairs(matches, truths, boxes, priors, variances, coded)
        negatives = torch.zeros(len(conf), len(priors), dtype=torch.bool, device=conf.device)
        if self.mines:
            with torch.no_grad():
                counts, negatives = self._mine(pairs, matches, truths, boxes, priors, scores)
            kept = counts[pairs.image, pairs.prior]
            pairs = Pairs(*(values[kept] for values in pairs))
        wanted = list(self.param.propagate_down) or [True, True]
        count = len(pairs.prior)
        divisor = self._divisor(len(conf), len(priors), count)
        loss = loc.flatten()[:0].sum() + conf.flatten()[:0].sum()  # 0, and both get a gradient, perhaps 0
        if wanted[0] and count:
            loss = loss + self.fields.loc_weight * self._loc_loss(pairs).sum() / divisor
        if wanted[1]:
            loss = loss + self._conf_loss(scores, pairs, negatives) / divisor
        return loss

    def _truths(self, truth: Tensor, num: int) -> list[Truths]:
        """Those of each image, in their order."""
        rows = truth.reshape(-1, 8)
        head = rows.cpu()
        images, labels = head[:, 0].long(), head[:, 1].long()
        used = images != -1
        if (labels[used] == self.background).any():
            raise self.error(f"Found background label in the dataset.; it is {self.background}")
        if not self.fields.use_difficult_gt:
            used &= head[:, 7] == 0
        used &= (images >= 0) & (images < num)
        # With agnostic objects the label itself is used only for mining.
        if self.mines or not self.fields.map_object_to_agnostic:
            wrong = used & ((labels < 0) | (labels >= self.fields.num_classes))
            if wrong.any():
                raise self.error(
                    f"label {labels[wrong][0]} is out of range: there are {self.fields.num_classes} classes"
                )
        result = []
        for image in range(num):
            own = rows[(used & (images == image)).nonzero().squeeze(1).to(rows.device)]
            result.append(Truths(own[:, 1].long(), own[:, 3:7]))
        return result

    def _boxes(self, priors: Tensor, variances: Tensor, coded: Tensor) -> Tensor | None:
        """The predicted boxes (N, L, P, 4), if anything looks at them."""
        fields = self.fields
        by_nms = self.mines and self._nms_threshold() > 0 and not fields.use_prior_for_nms
        if fields.use_prior_for_matching and not by_nms:
            return None
        check_priors(self, fields.code_type, priors)
        used = None if fields.encode_variance_in_target else variances
        return decode(fields.code_type, priors, used, coded)

    def _matches(self, boxes: Tensor | None, truths: list[Truths], priors: Tensor) -> Matches:
        fields = self.fields
        threshold = fields.overlap_threshold
        best = threshold if fields.match_type == MultiBoxLossParameter.PER_PREDICTION else None
        ignore, classes = fields.ignore_cross_boundary_bbox, range(self.loc_classes)
        shape = len(truths), self.loc_classes, len(priors)
        index = torch.full(shape, -1, device=priors.device)
        overlap = priors.new_zeros(shape)
        outside = cross_boundary(priors) if ignore else None
        for image, own in enumerate(truths):
            if not len(own.labels):
                continue
            if fields.use_prior_for_matching:
                found, largest = match(priors, own.boxes, best, outside)
                overlap[image] = largest
                if fields.share_location:
                    index[image, 0] = found
                    continue
                labels = own.labels[found.clamp(min=0)]
                for label in classes:
                    index[image, label] = torch.where((found > -1) & (labels == label), found, -1)
                continue
            assert boxes is not None
            for label in classes:
                if not fields.share_location and label == self.background:
                    continue
                predicted = boxes[image, label]
                outside = cross_boundary(predicted) if ignore else None
                if fields.share_location:
                    index[image, 0], overlap[image, 0] = match(predicted, own.boxes, best, outside)
                    continue
                of_class = (own.labels == label).nonzero().squeeze(1)
                if len(of_class):
                    found, overlap[image, label] = match(predicted, own.boxes[of_class], best, outside)
                    index[image, label] = torch.where(found > -1, of_class[found.clamp(min=0)], found)
        return Matches(index, overlap)

    def _pairs(
        self, matches: Matches, truths: list[Truths], boxes: Tensor | None, priors: Tensor, variances: Tensor,
        coded: Tensor,
    ) -> Pairs:  # fmt: skip
        fields = self.fields
        image, loc_class, prior = (matches.truth > -1).nonzero(as_tuple=True)
        starts = np.cumsum([0, *(len(own.labels) for own in truths)])
        first = torch.from_numpy(starts[:-1]).to(priors.device)
        row = matches.truth[image, loc_class, prior] + first[image]
        labels = torch.cat([row.new_zeros(0), *(own.labels for own in truths)])
        all_boxes = torch.cat([priors.new_zeros(0, 4), *(own.boxes for own in truths)])
        used = variances[prior]
        if not bool((used > 0).all()):
            raise self.error("a prior that is matched has a variance that is not larger than 0")
        in_code = None if fields.encode_variance_in_target else used
        target = encode(fields.code_type, priors[prior], in_code, all_boxes[row])
        predicted = coded[image, loc_class, prior]
        if fields.bp_inside:
            # A side of a box outside of the image gets no gradient.
            ends = priors[prior]
            if boxes is not None and not fields.use_prior_for_matching:
                ends = boxes[image, loc_class, prior]
            predicted = torch.where((ends < 0) | (ends > 1), target, predicted)
        if fields.encode_variance_in_target:
            predicted, target = predicted / used, target / used
        return Pairs(image, loc_class, prior, labels[row], predicted, target)

    def _mine(
        self, pairs: Pairs, matches: Matches, truths: list[Truths], boxes: Tensor | None, priors: Tensor,
        scores: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Masks (N, P): the priors whose matches count, and the negatives that count."""
        fields = self.fields
        hard = fields.mining_type == MultiBoxLossParameter.HARD_EXAMPLE
        index = matches.truth[:, 0]
        loss = self._loss_of_each(scores, pairs)
        if hard:
            loc = self._loc_loss(pairs).sum(1)
            loss = loss.index_put((pairs.image, pairs.prior), loc, accumulate=True)
        has_truths = torch.tensor([len(own.labels) > 0 for own in truths], device=loss.device)
        if hard:
            eligible = has_truths[:, None].expand_as(index)
            count = eligible.sum(1).clamp(max=fields.sample_size)
        else:
            # Without truths there are no matches, so nothing is chosen.
            eligible = (index == -1) & (matches.overlap[:, 0] < fields.neg_overlap)
            count = ((index > -1).sum(1).float() * fields.neg_pos_ratio).long()
            count = torch.minimum(count, eligible.sum(1)).clamp(min=0)
        order = loss.masked_fill(~eligible, -torch.inf).sort(dim=1, descending=True, stable=True).indices
        rank = torch.arange(len(priors), device=loss.device)
        if self._nms_threshold() > 0:
            chosen = torch.zeros_like(index, dtype=torch.bool)
            for image, own in enumerate(truths):
                if len(own.labels):
                    among = order[image, : int(eligible[image].sum())]
                    compared = priors if boxes is None or fields.use_prior_for_nms else boxes[image, 0]
                    stays = suppress_for_mining(
                        compared[among], self._nms_threshold(), fields.nms_param.top_k
                    )
                    chosen[image, among[stays[: int(count[image])]]] = True
        else:
            chosen = torch.zeros_like(index, dtype=torch.bool).scatter(1, order, rank < count[:, None])
        return (chosen if hard else torch.ones_like(chosen)), chosen & (index == -1)

    def _nms_threshold(self) -> float:
        """0: no suppression where examples are chosen."""
        return self.fields.nms_param.nms_threshold if self.fields.HasField("nms_param") else 0

    def _loss_of_each(self, scores: Tensor, pairs: Pairs) -> Tensor:
        """(N, P): what each prior adds to the loss of the classes; without a match as background."""
        label = torch.full(scores.shape[:2], self.background, device=scores.device)
        label[pairs.image, pairs.prior] = pairs.label
        if self.fields.conf_loss_type == MultiBoxLossParameter.SOFTMAX:
            prob = torch.softmax(scores, 2).gather(2, label[..., None])[..., 0]
            return -prob.clamp(min=FLT_MIN).log()
        classes = torch.arange(self.fields.num_classes, device=scores.device)
        return logistic(scores, (label[..., None] == classes).to(scores.dtype)).sum(2)

    def _loc_loss(self, pairs: Pairs) -> Tensor:
        if self.fields.loc_loss_type == MultiBoxLossParameter.L2:
            return 0.5 * (pairs.predicted - pairs.target) ** 2
        return F.smooth_l1_loss(pairs.predicted, pairs.target, reduction="none")

    def _conf_loss(self, scores: Tensor, pairs: Pairs, negatives: Tensor) -> Tensor:
        fields = self.fields
        label = pairs.label
        if fields.map_object_to_agnostic:
            label = torch.full_like(label, self.background + 1)
        softmax = fields.conf_loss_type == MultiBoxLossParameter.SOFTMAX
        if self.mines:
            image, prior = negatives.nonzero(as_tuple=True)
            chosen = torch.cat([scores[pairs.image, pairs.prior], scores[image, prior]])
            label = torch.cat([label, torch.full_like(prior, self.background)])
            if softmax:
                return apply(_Softmax, chosen, label)
            target = torch.full_like(chosen, self.background)
            rows = torch.arange(len(chosen), device=label.device)[label >= 0]
            target[rows, label[label >= 0]] = 1
            return apply(_Logistic, chosen, target)
        place = pairs.image * scores.shape[1] + pairs.prior
        if softmax:
            # Where several classes match a prior the last one gives the label.
            target = torch.full(scores.shape[:2], -1, device=scores.device).flatten()
            target = target.scatter_reduce(0, place, label, "amax")
            return apply(_Softmax, scores.flatten(0, 1), torch.where(target < 0, self.background, target))
        targets = torch.full_like(scores, self.background).flatten()
        targets[pairs.image * scores.shape[1] + pairs.prior * fields.num_classes + label] = 1
        return apply(_Logistic, scores, targets.reshape(scores.shape))

    def _divisor(self, num: int, num_priors: int, count: int) -> Tensor | float:
        if self.normalization == LossParameter.VALID:
            return max(count, 1)
        return normalizer(self.normalization, num, num_priors, None)


def logistic(scores: Tensor, targets: Tensor) -> Tensor:
    """The cross entropy of a sigmoid, of each value."""
    return torch.log(1 + torch.exp(-scores.abs())) - scores * (targets - (scores >= 0).to(scores.dtype))


class _Softmax(torch.autograd.Function):
    """The sum of the cross entropies of rows of scores; the limit FLT_MIN has no effect on the gradient."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, label: Tensor) -> Tensor:
        prob = torch.softmax(scores, 1)
        ctx.save_for_backward(prob, label)
        return -prob.gather(1, label[:, None]).clamp(min=FLT_MIN).log().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor, None]:
        prob, label = ctx.saved_tensors
        ones = torch.ones_like(label, dtype=prob.dtype)[:, None]
        return prob.scatter_add(1, label[:, None], -ones) * top_diff, None


class _Logistic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(scores, targets)
        return logistic(scores, targets).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor, None]:
        scores, targets = ctx.saved_tensors
        return (torch.sigmoid(scores) - targets) * top_diff, None
