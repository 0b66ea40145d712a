"""ROIPooling, Proposal, the OHEM layers and other layers of Faster R-CNN and R-FCN."""

import torch
from case_types import Case, Change, within
from single_layer import normal

ROIS = torch.tensor([[0.0, 8, 4, 40, 30], [1, 0, 0, 63, 20], [0, 21, 9, 23, 11]])
LOSSES = torch.tensor([0.5, 2, 1, 0, 3, 1.5]).view(6, 1)
OF_IMAGES = torch.cat([torch.tensor([0.0, 1, 0, 1, 0, 1]).view(6, 1), normal(6, 4)], 1)
OHEM_LABELS = torch.tensor([1.0, 0, 2, 3, 1, 2]).view(6, 1)

CASES = {
    "ROIPooling": Case(
        "roi_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.125 }", (normal(2, 3, 5, 8), ROIS)
    ),
    "PSROIPooling": Case(
        "psroi_pooling_param { spatial_scale: 0.125 output_dim: 3 group_size: 2 }",
        (normal(2, 12, 5, 8), ROIS),
    ),
    "BoxAnnotatorOHEM": Case(
        'top: "labels" top: "weights" box_annotator_ohem_param { roi_per_img: 1 }',
        (OF_IMAGES, LOSSES, OHEM_LABELS, normal(6, 8)),
        (),
    ),
    "SmoothL1LossOHEM": Case("", (normal(3, 4, 2, 5), normal(3, 4, 2, 5, seed=1) * 2), (0, 1)),
    "SmoothL1Loss:FasterRCNN": Case(
        "smooth_l1_loss_param {}",
        tuple(normal(3, 4, 2, 5, seed=seed) for seed in range(4)),
        (0, 1),
    ),
    "SoftmaxWithLossOHEM": Case(
        "",
        (
            normal(4, 5, 5),
            torch.tensor([[1.0, 2, 1, 0, 3], [2, 1, 3, 4, 0], [3, 1, 2, 0, 4], [0, 0, 2, 4, 1]]),
        ),
    ),
}

MAPS = (torch.sigmoid(normal(1, 4, 4, 6)), normal(1, 8, 4, 6, seed=1), torch.tensor([[60.0, 90, 1]]))
TWO_TOPS = 'top: "rois" top: "scores"'
CASES |= {
    "Proposal": Case(
        f"""{TWO_TOPS} proposal_param {{ ratio: 0.5 ratio: 1 scale: 2 feat_stride: 15 pre_nms_topn: 20
            post_nms_topn: 10 nms_thresh: 0.2 }}""",
        MAPS,
        (),
    ),
    "Python:ProposalLayer": Case(
        f"""{TWO_TOPS} python_param {{ module: "rpn.proposal_layer" layer: "ProposalLayer"
            param_str: "'feat_stride': 15" }}""",
        (torch.sigmoid(normal(1, 18, 4, 6)), normal(1, 36, 4, 6, seed=1), MAPS[2]),
        (),
    ),
}

POSITIONS = "loss_param.normalization loss_param.normalize loss_param.pre_fixed_normalizer"
SHARED = {
    "SmoothL1Loss:FasterRCNN": "loss_param.normalization",
    "SmoothL1LossOHEM": POSITIONS,
    "SoftmaxWithLossOHEM": f"softmax_param loss_param.ignore_label {POSITIONS}",
}

FOUR_NUMBERS = "reads four numbers of bottom[2]"
CHANGES = {
    **within("proposal_param", {
        "ratio": Change([[0.5, 2]]),
        "scale": Change([[3]]),
        "min_size": Change([40]),
        "pre_nms_topn": Change([15]),
        "post_nms_topn": Change([5]),
        "nms_thresh": Change([0.8]),
        "source": Change(["CAFFE_WINDOWS"], refusal=FOUR_NUMBERS),
    }),
    # Another module or layer is the user's own.
    "Python:ProposalLayer python_param.module": Change(
        ["fields_two"], refusal="has no class 'ProposalLayer'"
    ),
    "Python:ProposalLayer python_param.layer": Change(["Times"], refusal="No module named 'rpn'"),
    "Python:ProposalLayer python_param.param_str": Change(["'feat_stride': 8"]),
    "loss_param.pre_fixed_normalizer": Change([7.0], {"loss_param.normalization": "PRE_FIXED"}),
    # These read no normalization, and refuse it.
    **{
        f"{name} loss_param.pre_fixed_normalizer": Change([7.0])
        for name in ("ExtractProb", "UnifiedWeightLoss", "WeightedSoftmaxWithLoss")
    },
    "dropout_param.scale_train": Change([False]),
    **within("psroi_pooling_param", {
        "spatial_scale": Change([0.25]),
        "output_dim": Change([4], refusal="input channel number does not match layer parameters"),
        "group_size": Change([4], refusal="input channel number does not match layer parameters"),
    }),
    "box_annotator_ohem_param.roi_per_img": Change([2]),
    "SmoothL1Loss:FasterRCNN loss_param.normalization": Change(
        ["NONE"], refusal="divides the sum by 1 in intel/caffe"
    ),
    "SmoothL1LossOHEM loss_param.normalization": Change(["BATCH_SIZE", "NONE"]),
}  # fmt: skip
