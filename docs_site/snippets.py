"""A small net for each layer type: inputs and the layer, as a prototxt that builds.

tests/test_site.py builds each. A key is a type, or TYPE:VARIANT where one name is that of several layers.
"""

from __future__ import annotations

from typing import NamedTuple

from imae.layers.layer import Shape
from imae.prototxt import LayerParameter
from imae.prototxt.text import parse_net, to_text


class Snippet(NamedTuple):
    """The layer's fields but for name and type, and its inputs: `NAME:D,D,D NAME:D ...`."""

    fields: str
    inputs: str = ""

    def shapes(self) -> dict[str, Shape]:
        """The shapes of the inputs, by name."""
        pairs = [text.split(":") for text in self.inputs.split()]
        return {name: tuple(int(size) for size in sizes.split(",")) for name, sizes in pairs}


IMAGES = "data:2,3,8,8"
SCORES = "scores:4,5 label:4"
REGIONS = "conv5:1,8,10,10 rois:3,5"
FILLER = 'weight_filler { type: "xavier" }'
ONE_BOTTOM = Snippet('bottom: "data" top: "out"', IMAGES)
LOSS = Snippet('bottom: "scores" bottom: "label" top: "loss"', SCORES)
TWO_TOPS = 'top: "data" top: "label"'
TEN_BIASES = " ".join(f"biases: {bias}" for bias in (1.3, 1.7, 3.2, 4, 5, 8, 9.4, 4.8, 5, 11))


def one(fields: str) -> Snippet:
    """A layer with one bottom of images."""
    return ONE_BOTTOM._replace(fields=f"{ONE_BOTTOM.fields} {fields}")


def loss(fields: str) -> Snippet:
    """A loss of scores and labels."""
    return LOSS._replace(fields=f"{LOSS.fields} {fields}")


SNIPPETS = {
    # data
    "Data": Snippet(
        f"{TWO_TOPS} transform_param {{ scale: 0.00390625 mirror: true }} "
        'data_param { source: "train_lmdb" batch_size: 64 backend: LMDB }'
    ),
    "DummyData": Snippet('top: "data" dummy_data_param { shape { dim: 2 dim: 3 } data_filler { value: 1 } }'),
    "HDF5Data": Snippet(f'{TWO_TOPS} hdf5_data_param {{ source: "train_files.txt" batch_size: 64 }}'),
    "HDF5Output": Snippet(
        'bottom: "scores" bottom: "label" hdf5_output_param { file_name: "scores.h5" }', SCORES
    ),
    "ImageData": Snippet(
        f"{TWO_TOPS} transform_param {{ crop_size: 8 }} "
        'image_data_param { source: "train.txt" root_folder: "images/" batch_size: 2 shuffle: true }'
    ),
    "Input": Snippet('top: "data" input_param { shape { dim: 1 dim: 3 dim: 224 dim: 224 } }'),
    "MemoryData": Snippet(
        f"{TWO_TOPS} memory_data_param {{ batch_size: 2 channels: 3 height: 32 width: 32 }}"
    ),
    "WindowData": Snippet(
        f"{TWO_TOPS} transform_param {{ crop_size: 8 }} "
        'window_data_param { source: "windows.txt" batch_size: 4 fg_fraction: 0.25 }'
    ),
    # vision
    "Convolution": one(f"convolution_param {{ num_output: 16 kernel_size: 3 pad: 1 {FILLER} }}"),
    "Crop": Snippet(
        'bottom: "data" bottom: "reference" top: "out" crop_param { axis: 2 offset: 1 }',
        f"{IMAGES} reference:2,3,6,6",
    ),
    "Deconvolution": one(f"convolution_param {{ num_output: 8 kernel_size: 4 stride: 2 pad: 1 {FILLER} }}"),
    "Im2col": one("convolution_param { kernel_size: 3 }"),
    "Pooling": one("pooling_param { pool: MAX kernel_size: 2 stride: 2 }"),
    "SPP": one("spp_param { pyramid_height: 2 }"),
    # recurrent
    "LSTM": Snippet(
        f'bottom: "steps" bottom: "cont" top: "out" recurrent_param {{ num_output: 4 {FILLER} }}',
        "steps:5,2,3 cont:5,2",
    ),
    "LSTMUnit": Snippet(
        'bottom: "c_before" bottom: "gates" bottom: "cont" top: "c" top: "h"',
        "c_before:1,2,4 gates:1,2,16 cont:1,2",
    ),
    "RNN": Snippet(
        f'bottom: "steps" bottom: "cont" top: "out" recurrent_param {{ num_output: 4 {FILLER} }}',
        "steps:5,2,3 cont:5,2",
    ),
    # common
    "Dropout": one("dropout_param { dropout_ratio: 0.5 }"),
    "Embed": Snippet(
        f'bottom: "words" top: "out" embed_param {{ input_dim: 100 num_output: 8 {FILLER} }}', "words:5,2"
    ),
    "InnerProduct": one(f"inner_product_param {{ num_output: 10 {FILLER} }}"),
    # normalization
    "BatchNorm": ONE_BOTTOM,
    "LRN": one("lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }"),
    "MVN": ONE_BOTTOM,
    # activation
    "AbsVal": ONE_BOTTOM,
    "BNLL": ONE_BOTTOM,
    "Bias": ONE_BOTTOM,
    "Clip": one("clip_param { min: 0 max: 6 }"),
    "ELU": ONE_BOTTOM,
    "Exp": ONE_BOTTOM,
    "Log": ONE_BOTTOM,
    "PReLU": ONE_BOTTOM,
    "Power": one("power_param { power: 2 scale: 0.5 shift: 1 }"),
    "ReLU": Snippet('bottom: "data" top: "data"', IMAGES),
    "Scale": one("scale_param { bias_term: true }"),
    "Sigmoid": ONE_BOTTOM,
    "Swish": ONE_BOTTOM,
    "TanH": ONE_BOTTOM,
    "Threshold": one("threshold_param { threshold: 0.5 }"),
    # utility
    "ArgMax": Snippet('bottom: "scores" top: "best" argmax_param { top_k: 1 }', "scores:4,5"),
    "BatchReindex": Snippet('bottom: "data" bottom: "index" top: "out"', f"{IMAGES} index:4"),
    "Concat": Snippet('bottom: "a" bottom: "b" top: "out"', "a:2,3,8,8 b:2,5,8,8"),
    "Eltwise": Snippet(
        'bottom: "a" bottom: "b" top: "out" eltwise_param { operation: SUM }', "a:2,3,8,8 b:2,3,8,8"
    ),
    "Filter": Snippet('bottom: "data" bottom: "keep" top: "out"', f"{IMAGES} keep:2"),
    "Flatten": ONE_BOTTOM,
    "Parameter": Snippet('top: "out" parameter_param { shape { dim: 2 dim: 3 } }'),
    "Python": one('python_param { module: "my_layers" layer: "Affine" param_str: "2.5,-1" }'),
    "Reduction": one("reduction_param { operation: MEAN axis: 1 }"),
    "Reshape": one("reshape_param { shape { dim: 0 dim: -1 } }"),
    "Silence": Snippet('bottom: "data"', IMAGES),
    "Slice": Snippet('bottom: "data" top: "a" top: "b" slice_param { axis: 1 slice_point: 1 }', IMAGES),
    "Softmax": Snippet('bottom: "scores" top: "prob"', "scores:4,5"),
    "Split": Snippet('bottom: "data" top: "a" top: "b"', IMAGES),
    "Tile": one("tile_param { axis: 1 tiles: 2 }"),
    # loss
    "Accuracy": Snippet('bottom: "scores" bottom: "label" top: "accuracy"', SCORES),
    "ContrastiveLoss": Snippet(
        'bottom: "a" bottom: "b" bottom: "similar" top: "loss" contrastive_loss_param { margin: 1 }',
        "a:4,8 b:4,8 similar:4",
    ),
    "EuclideanLoss": Snippet('bottom: "a" bottom: "b" top: "loss"', "a:4,8 b:4,8"),
    "HingeLoss": loss("hinge_loss_param { norm: L2 }"),
    "InfogainLoss": Snippet(
        'bottom: "scores" bottom: "label" bottom: "infogain" top: "loss"', f"{SCORES} infogain:5,5"
    ),
    "MultinomialLogisticLoss": Snippet('bottom: "prob" bottom: "label" top: "loss"', "prob:4,5 label:4"),
    "SigmoidCrossEntropyLoss": Snippet(
        'bottom: "scores" bottom: "targets" top: "loss"', "scores:4,5 targets:4,5"
    ),
    "SoftmaxWithLoss": loss("loss_param { ignore_label: 255 }"),
    # plugins
    "AELLoss": loss("ael_loss_param { a: 2.5 }"),
    "AGCELoss": loss("agce_loss_param { a: 0.6 q: 0.6 }"),
    "AULLoss": loss("aul_loss_param { a: 5.5 q: 3 }"),
    "BootstrappingLoss": loss("bootstrapping_loss_param { kind: SOFT beta: 0.95 }"),
    "CorrectionLoss": Snippet(
        'bottom: "scores" bottom: "label" top: "loss" '
        "correction_loss_param { direction: FORWARD transition: [0.8, 0.2, 0.4, 0.6] }",
        "scores:4,2 label:4",
    ),
    "DMLoss": loss("dm_loss_param { lambda: 0.5 beta: 8 }"),
    "ExtractProb": Snippet('bottom: "prob" bottom: "label" top: "p"', "prob:4,5 label:4"),
    "GCELoss": loss("gce_loss_param { q: 0.7 }"),
    "IMAELoss": loss("imae_loss_param { t: 8 }"),
    "LabelSmoothingLoss": loss("label_smoothing_loss_param { smoothing: 0.1 }"),
    "MAELoss": LOSS,
    "MSELoss": LOSS,
    "NCELoss": loss("nce_loss_param { passive: RCE }"),
    "SCELoss": loss("sce_loss_param { alpha: 0.1 beta: 1 }"),
    "TCELoss": loss("tce_loss_param { t: 2 }"),
    "UnifiedWeightLoss": loss("loss_param { lamda_p: 1 scale: 8 }"),
    "WeightedSoftmaxWithLoss": LOSS,
    # forks
    "AnnotatedData": Snippet(
        f"{TWO_TOPS} phase: TRAIN transform_param {{ resize_param {{ height: 300 width: 300 }} }} "
        'data_param { source: "boxes_lmdb" batch_size: 2 backend: LMDB }'
    ),
    "Axpy": Snippet('bottom: "a" bottom: "x" bottom: "y" top: "out"', "a:2,3,1,1 x:2,3,8,8 y:2,3,8,8"),
    "BN:TSN": one("bn_param { slope_filler { value: 1 } bias_filler { value: 0 } }"),
    "BN:SegNet": one("bn_param { scale_filler { value: 1 } shift_filler { value: 0 } }"),
    "BN:CaffeMex": one("bn_param { scale_filler { value: 1 } shift_filler { value: 0 } decay: 0.9 }"),
    "BoxAnnotatorOHEM": Snippet(
        'bottom: "rois" bottom: "losses" bottom: "label" bottom: "weights" top: "new_label" '
        'top: "new_weights" box_annotator_ohem_param { roi_per_img: 2 }',
        "rois:6,5 losses:6,1 label:6,1 weights:6,8",
    ),
    "CenterLoss": Snippet(
        'bottom: "features" bottom: "label" top: "loss" '
        'center_loss_param { num_output: 10 center_filler { type: "xavier" } }',
        "features:4,8 label:4",
    ),
    "ChannelScale": Snippet('bottom: "data" bottom: "scale" top: "out"', f"{IMAGES} scale:2,1,8,8"),
    "ConvolutionDepthwise": one(f"convolution_param {{ kernel_size: 3 pad: 1 {FILLER} }}"),
    "DenseImageData": Snippet(
        f'{TWO_TOPS} dense_image_data_param {{ source: "train_pairs.txt" batch_size: 2 shuffle: true }}'
    ),
    "DepthwiseConvolution": one(
        f"convolution_param {{ num_output: 3 group: 3 kernel_size: 3 pad: 1 {FILLER} }}"
    ),
    "DetectionEvaluate": Snippet(
        'bottom: "detections" bottom: "label" top: "eval" detection_evaluate_param { num_classes: 3 }',
        "detections:1,1,5,7 label:1,1,5,8",
    ),
    "DetectionOutput": Snippet(
        'bottom: "loc" bottom: "conf" bottom: "priors" top: "detections" detection_output_param '
        "{ num_classes: 3 nms_param { nms_threshold: 0.45 } keep_top_k: 200 code_type: CENTER_SIZE }",
        "loc:2,96 conf:2,72 priors:1,2,96",
    ),
    "EvalDetection": Snippet(
        'bottom: "conv" bottom: "label" top: "eval" eval_detection_param '
        f"{{ num_class: 2 side: 4 num_object: 5 nms: 0.6 {TEN_BIASES} }}",
        "conv:2,35,4,4 label:1,1,3,8",
    ),
    "Flip": ONE_BOTTOM,
    "ImageSegData": Snippet(
        f'{TWO_TOPS} top: "size" image_data_param '
        '{ source: "train_pairs.txt" batch_size: 2 label_type: PIXEL }'
    ),
    "InnerDistance": Snippet(
        f'bottom: "features" top: "out" inner_distance_param {{ num_output: 10 {FILLER} }}', "features:4,8"
    ),
    "Interp": one("interp_param { zoom_factor: 2 }"),
    "LabelSpecificAdd": Snippet(
        'bottom: "scores" bottom: "label" top: "out" label_specific_add_param { bias: -0.35 }', SCORES
    ),
    "Lstm": Snippet(f'bottom: "steps" top: "out" lstm_param {{ num_output: 4 {FILLER} }}', "steps:5,2,3"),
    "MarginInnerProduct": Snippet(
        'bottom: "features" bottom: "label" top: "scores" top: "lambda" margin_inner_product_param '
        f"{{ num_output: 10 type: QUADRUPLE base: 1000 gamma: 0.12 {FILLER} }}",
        "features:4,8 label:4",
    ),
    "MultiBoxLoss": Snippet(
        'bottom: "loc" bottom: "conf" bottom: "priors" bottom: "label" top: "loss" multibox_loss_param '
        "{ num_classes: 3 overlap_threshold: 0.5 code_type: CENTER_SIZE neg_pos_ratio: 3 } "
        "propagate_down: [true, true, false, false]",
        "loc:2,96 conf:2,72 priors:1,2,96 label:1,1,7,8",
    ),
    "Normalize:SSD": one('norm_param { scale_filler { type: "constant" value: 20 } channel_shared: false }'),
    "Normalize:NormFace": one("normalize_param { }"),
    "PSROIPooling": Snippet(
        'bottom: "conv5" bottom: "rois" top: "out" psroi_pooling_param '
        "{ spatial_scale: 0.0625 output_dim: 2 group_size: 2 }",
        REGIONS,
    ),
    "Permute": one("permute_param { order: 0 order: 2 order: 3 order: 1 }"),
    "PriorBox": Snippet(
        'bottom: "conv4" bottom: "data" top: "priors" prior_box_param '
        "{ min_size: 30 max_size: 60 aspect_ratio: 2 }",
        "conv4:1,8,10,10 data:1,3,80,80",
    ),
    "PriorBoxClustered": Snippet(
        'bottom: "conv4" bottom: "data" top: "priors" prior_box_param { width: 30 height: 60 }',
        "conv4:1,8,10,10 data:1,3,80,80",
    ),
    "Proposal": Snippet(
        'bottom: "scores" bottom: "boxes" bottom: "im_info" top: "rois" top: "roi_scores" proposal_param '
        "{ ratio: [0.5, 1, 2] scale: [8, 16, 32] feat_stride: 16 pre_nms_topn: 6000 post_nms_topn: 300 "
        "nms_thresh: 0.7 min_size: 16 }",
        "scores:1,18,4,6 boxes:1,36,4,6 im_info:1,3",
    ),
    "ROIPooling": Snippet(
        'bottom: "conv5" bottom: "rois" top: "out" roi_pooling_param '
        "{ pooled_h: 7 pooled_w: 7 spatial_scale: 0.0625 }",
        REGIONS,
    ),
    "ReLU6": ONE_BOTTOM,
    "RegionLoss:eric612": Snippet(
        f'bottom: "conv" bottom: "label" top: "loss" region_loss_param {{ num_class: 2 {TEN_BIASES} }}',
        "conv:2,35,4,4 label:2,1,300,5",
    ),
    "RegionLoss:Intel": Snippet(
        'bottom: "conv" bottom: "label" top: "loss" region_loss_param '
        f"{{ num_class: 2 side: 4 {TEN_BIASES} }}",
        "conv:2,35,4,4 label:1,1,3,8",
    ),
    "Reorg": Snippet('bottom: "conv" top: "out" reorg_param { stride: 2 }', "conv:2,4,8,8"),
    "ShuffleChannel": Snippet('bottom: "conv" top: "out" shuffle_channel_param { group: 2 }', "conv:2,4,8,8"),
    "SmoothL1Loss:SSD": Snippet('bottom: "boxes" bottom: "targets" top: "loss"', "boxes:4,8 targets:4,8"),
    "SmoothL1Loss:FasterRCNN": Snippet(
        'bottom: "boxes" bottom: "targets" bottom: "inside" bottom: "outside" top: "loss" '
        "smooth_l1_loss_param { sigma: 3 }",
        "boxes:2,4,3,5 targets:2,4,3,5 inside:2,4,3,5 outside:2,4,3,5",
    ),
    "SmoothL1LossOHEM": Snippet(
        'bottom: "boxes" bottom: "targets" bottom: "weights" top: "loss" top: "each"',
        "boxes:6,8 targets:6,8 weights:6,8",
    ),
    "SoftmaxWithLossOHEM": Snippet(
        'bottom: "scores" bottom: "label" top: "loss" top: "prob" top: "each" '
        "loss_param { ignore_label: -1 }",
        SCORES,
    ),
    "TripletLoss": Snippet(
        'bottom: "anchor" bottom: "positive" bottom: "negative" top: "loss" triplet_loss_param { margin: 1 }',
        "anchor:4,8 positive:4,8 negative:4,8",
    ),
    "Upsample:SegNet": Snippet(
        'bottom: "pooled" bottom: "mask" top: "out" upsample_param { scale: 2 }',
        "pooled:2,3,4,4 mask:2,3,4,4",
    ),
    "Upsample:YOLO": one("upsample_param { scale: 2 }"),
    "YoloDetectionOutput": Snippet(
        f'bottom: "conv" top: "detections" yolo_detection_output_param {{ num_classes: 2 {TEN_BIASES} }}',
        "conv:2,35,4,4",
    ),
    "Yolov3": Snippet(
        'bottom: "conv" bottom: "label" top: "loss" yolov3_param { num_class: 2 num: 2 mask: [0, 1] '
        "anchors_scale: 32 biases: [10, 14, 23, 27] }",
        "conv:2,14,4,4 label:2,1,300,5",
    ),
    "Yolov3DetectionOutput": Snippet(
        'bottom: "conv" top: "detections" yolov3_detection_output_param { num_classes: 2 num_box: 2 '
        "mask_group_num: 1 mask: [0, 1] anchors_scale: 32 biases: [10, 14, 23, 27] }",
        "conv:2,14,4,4",
    ),
}


def keys_of(type_name: str) -> list[str]:
    """The keys of a type in SNIPPETS: one, or one for each variant."""
    return [key for key in SNIPPETS if key.partition(":")[0] == type_name]


def layer_of(key: str) -> LayerParameter:
    """The layer of a snippet."""
    type_name = key.partition(":")[0]
    (layer,) = parse_net(
        f'layer {{ name: "{type_name.lower()}" type: "{type_name}" {SNIPPETS[key].fields} }}'
    ).layer
    return layer


def net_text(key: str) -> str:
    """The whole net: an Input for each bottom, and the layer."""
    inputs = [
        f'layer {{ name: "{name}" type: "Input" top: "{name}" '
        f"input_param {{ shape {{ {' '.join(f'dim: {size}' for size in shape)} }} }} }}\n"
        for name, shape in SNIPPETS[key].shapes().items()
    ]
    body = "".join(f"  {line}\n" for line in to_text(layer_of(key)).splitlines())
    return f"{''.join(inputs)}layer {{\n{body}}}\n"
