"""Layer types and fields that only forks of Caffe have, for errors that name the fork.

    message "caffe.LayerParameter" has no field "permute_param"; the SSD fork (weiliu89/caffe) has it, ...

Source: the caffe.proto files of the repositories named here.
"""

from __future__ import annotations

from typing import NamedTuple


class Fork(NamedTuple):
    """The names that only a fork has, and the remedy.

    types    of layers, including types of the old form
    fields   of LayerParameter; MESSAGE.FIELD of other messages, ENUM.VALUE of enums
    """

    name: str
    types: str
    fields: str
    remedy: str = ""


SSD = Fork(
    "the SSD fork (weiliu89/caffe)",
    "AnnotatedData VideoData",
    """annotated_data_param video_data_param TransformationParameter.resize_param
    TransformationParameter.noise_param TransformationParameter.emit_constraint
    TransformationParameter.distort_param TransformationParameter.expand_param
    SolverParameter.eval_type SolverParameter.ap_version SolverParameter.show_per_class_result""",
)
FASTER_RCNN = Fork(
    "Faster R-CNN's fork (rbgirshick/caffe-fast-rcnn)",
    "ROIPooling",
    "roi_pooling_param smooth_l1_loss_param",
)
RFCN = Fork(
    "R-FCN's fork (daijifeng001/caffe-rfcn)",
    "PSROIPooling BoxAnnotatorOHEM SmoothL1LossOHEM SoftmaxWithLossOHEM",
    """psroi_pooling_param box_annotator_ohem_param LossParameter.pre_fixed_normalizer
    NormalizationMode.PRE_FIXED DropoutParameter.scale_train""",
)
SEGNET = Fork(
    "SegNet's fork (alexgkendall/caffe-segnet)",
    "BN Upsample DenseImageData",
    """bn_param upsample_param dense_image_data_param LossParameter.weight_by_label_freqs
    LossParameter.class_weighting DropoutParameter.sample_weights_test""",
)
PSPNET = Fork(
    "PSPNet's fork (hszhao/PSPNet)",
    "BN Interp ImageSegData",
    "bn_param interp_param ImageDataParameter.label_type",
)
DEEPLAB = Fork(
    "DeepLab's fork (cdmh/deeplab-public-ver2)",
    "Interp ImageSegData DenseCRF MatRead MatWrite UniqueLabel",
    "interp_param ConvolutionParameter.hole ImageDataParameter.label_type",
)
ACTION = Fork("yjxiong's fork (yjxiong/caffe)", "BN VideoData VIDEO_DATA", "bn_param")
YOLO = Fork(
    "the YOLO fork (eric612/MobileNet-YOLO)",
    "YoloSeg Upsample",
    "yolo_seg_param upsample_param",
)
WINDOWS = Fork(
    "caffe-windows (happynear/caffe-windows)",
    """Flip InnerDistance ChannelScale LabelSpecificAdd GeneralContrastiveLoss Proposal
    MarginInnerProduct CenterLoss""",
    """flip_param normalize_param inner_distance_param channel_scale_param label_specific_add_param
    general_contrastive_loss_param proposal_param InnerProductParameter.normalize
    SoftmaxParameter.normalize_type""",
)
INTEL = Fork(
    "Intel's fork (intel/caffe)",
    "Proposal",
    """quantization_param BatchNormParameter.filler Engine.MKL2017
    Engine.MKLDNN""",
)
NVIDIA = Fork(
    "NVIDIA Caffe (NVIDIA/caffe)",
    "DetectNetTransformation L1Loss",
    """forward_type backward_type forward_math backward_math cudnn_math_override debug
    BatchNormParameter.scale_filler BatchNormParameter.bias_filler BatchNormParameter.scale_bias
    BatchNormParameter.engine ConvolutionParameter.conv_algos_override
    ConvolutionParameter.cudnn_convolution_algo_seeker DropoutParameter.random_seed DropoutParameter.engine
    DataParameter.threads DataParameter.parser_threads DataParameter.cache DataParameter.precache
    DataParameter.shuffle ImageDataParameter.threads ImageDataParameter.cache ImageDataParameter.precache
    TransformationParameter.use_gpu_transform TransformationParameter.random_seed
    NetParameter.default_forward_type NetParameter.default_backward_type NetParameter.default_forward_math
    NetParameter.default_backward_math NetParameter.default_cudnn_math_override
    NetParameter.default_conv_algos_override NetParameter.global_grad_scale
    NetParameter.global_grad_scale_adaptive NetParameter.reduce_buckets NetParameter.eltwise_mem_sharing""",
    "give --dialect nvidia",
)
NVIDIAS_OTHERS = Fork(
    "NVIDIA Caffe (NVIDIA/caffe)",
    "",
    """TransformationParameter.img_rand_resize_lower TransformationParameter.img_rand_resize_upper
    TransformationParameter.rand_resize_ratio_lower TransformationParameter.rand_resize_ratio_upper
    TransformationParameter.vertical_stretch_lower TransformationParameter.vertical_stretch_upper
    TransformationParameter.horizontal_stretch_lower TransformationParameter.horizontal_stretch_upper
    TransformationParameter.allow_upscale TransformationParameter.interpolation_algo_up
    TransformationParameter.interpolation_algo_down PoolingParameter.torch_pooling
    detectnet_groundtruth_param detectnet_augmentation_param trt_param SolverParameter.solver_data_type
    SolverParameter.store_blobs_in_old_format SolverParameter.larc SolverParameter.larc_policy
    SolverParameter.rampup_interval SolverParameter.rampup_lr SolverParameter.min_lr""",
)
CEIL_MODE = Fork(
    "a patch of many forks (BVLC/caffe#3057)",
    "",
    "PoolingParameter.ceil_mode",
    "write round_mode: CEIL for true, FLOOR for false",
)
FORKS = (
    SSD, FASTER_RCNN, RFCN, SEGNET, PSPNET, DEEPLAB, ACTION, YOLO, WINDOWS, INTEL, NVIDIA, NVIDIAS_OTHERS,
    CEIL_MODE,
    Fork("SENet's fork (hujie-frank/SENet)", "Axpy", "axpy_param"),
    Fork("SphereFace's fork (wy1iu/sphereface)", "MarginInnerProduct", "margin_inner_product_param"),
    Fork("caffe-face (ydwen/caffe-face)", "CenterLoss", "center_loss_param"),
    Fork("CaffeMex (sciencefans/CaffeMex_v2)", "BN", "bn_param"),
    Fork("FlowNet2 (lmb-freiburg/flownet2)", "Correlation Correlation1D FlowWarp Resample Downsample L1Loss",
         "correlation_param flow_warp_param resample_param downsample_param l1_loss_param"),
    Fork("caffe-lstm (junhyukoh/caffe-lstm)", "Lstm", "lstm_param"),
    Fork("C3D (facebook/C3D)", "CONVOLUTION3D POOLING3D VOLUME_DATA Convolution3D Pooling3D", ""),
    Fork("the CTPN fork (bear63/sceneReco)", "Transpose", "transpose_param"),
    Fork("OpenPose's fork (CMU-Perceptual-Computing-Lab/caffe_train)", "CPMData", "cpm_transform_param"),
    Fork("CRF-RNN's fork (torrvision/crfasrnn)", "MultiStageMeanfield", "multi_stage_meanfield_param"),
)  # fmt: skip


def fork_of_field(message: str, field: str) -> str:
    """The end of an error about a field of a message that the schema lacks: "; ...", or "".

    message   its name without its package
    """
    owner = "LayerParameter" if message == "V1LayerParameter" else message
    name = field if owner == "LayerParameter" else f"{owner}.{field}"
    return _forks_have([fork for fork in FORKS if name in fork.fields.split()])


def fork_of_value(enum: str, value: str) -> str:
    """`fork_of_field` for an enum's value; `enum` is its full name."""
    if enum == "caffe.V1LayerParameter.LayerType":
        return fork_of_type(value)
    name = f"{enum.rpartition('.')[2]}.{value}"
    return _forks_have([fork for fork in FORKS if name in fork.fields.split()])


def fork_of_type(layer_type: str) -> str:
    """`fork_of_field` for a layer type that is not registered."""
    return _forks_have([fork for fork in FORKS if layer_type in fork.types.split()])


def _forks_have(forks: list[Fork]) -> str:
    if not forks:
        return ""
    *others, last = (fork.name for fork in forks)
    names = f"{', '.join(others)} and {last}" if others else last
    remedy = next((fork.remedy for fork in forks if fork.remedy), "")
    have = f"; {names} {'have' if others else 'has'} it, Caffe has not"
    return f"{have}; {remedy}" if remedy else f"{have}, nor has imae"
