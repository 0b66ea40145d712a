"""Layer types and fields that only forks of Caffe have, for errors that name the fork.

    message "caffe.LayerParameter" has no field "permute_param"; the SSD fork (weiliu89/caffe) has it, ...

Source: the caffe.proto files of the repositories named here.
"""

from __future__ import annotations

from typing import NamedTuple

FORK_NUMBERS = range(2001, 10000)  # of the fields of Caffe's messages that forks.proto adds


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
    "VideoData",
    "video_data_param",
)
LENOVO = Fork(
    "Lenovo's Proposal, as in synopsys-caffe",
    "",
    """ProposalParameter.anchor_base_size ProposalParameter.anchor_scale ProposalParameter.anchor_ratio
    ProposalParameter.max_rois""",
    "it is another layer than PVANET's: boxes of scores below 0.3 are left out, and none are sorted",
)
HUAWEI = Fork(
    "Huawei's Proposal, of its Ascend tools",
    "",
    "ProposalParameter.iou_threshold ProposalParameter.output_actual_rois_num",
    "PVANET's writes nms_thresh, and its top has as many rows as boxes are found",
)
DEEPLAB = Fork(
    "DeepLab's fork (cdmh/deeplab-public-ver2)",
    "DenseCRF MatRead MatWrite UniqueLabel",
    "ConvolutionParameter.hole",
)
ACTION = Fork(
    "yjxiong's fork (yjxiong/caffe)",
    "VideoData VIDEO_DATA Gather SegData",
    """video_data_param seg_data_param TransformationParameter.scale_ratios
    TransformationParameter.multi_scale TransformationParameter.max_distort
    TransformationParameter.fix_crop TransformationParameter.more_fix_crop
    TransformationParameter.is_flow""",
)
YOLO = Fork(
    "the YOLO fork (eric612/MobileNet-YOLO)",
    "YoloSeg",
    """yolo_seg_param AnnotatedDataParameter.yolo_data_type AnnotatedDataParameter.yolo_data_jitter
    AnnotatedDataParameter.train_diffcult AnnotatedDataParameter.single_class
    AnnotatedDataParameter.seg_scales AnnotatedDataParameter.seg_resize_width
    AnnotatedDataParameter.seg_resize_height AnnotatedDataParameter.difficult_label_warmup""",
)
WINDOWS = Fork(
    "caffe-windows (happynear/caffe-windows)",
    "GeneralContrastiveLoss",
    "general_contrastive_loss_param SoftmaxParameter.normalize_type",
)
INTEL = Fork(
    "Intel's fork (intel/caffe)",
    "VideoData BoxData SpatialDropout MKLBatchNorm",
    """prior_box_clustered_param video_data_param spatial_dropout_param split_param multinode
    mn_activation_param mn_grad_compress_param NetParameter.compile_net_state NetParameter.multinode
    BatchNormParameter.bias_filler BatchNormParameter.engine ConvolutionParameter.fusion_type
    ConvolutionParameter.coeff ConcatParameter.per_fla_fuse ReLUParameter.fuse
    PoolingParameter.avg_include_pad PoolingParameter.pad_3d PoolingParameter.kernel_size_3d
    PoolingParameter.stride_3d ReshapeParameter.pixelshuffler ROIPoolingParameter.pooled_size
    ImageDataParameter.min_height ImageDataParameter.min_width DataParameter.side""",
)
INTELS_SCALE = Fork(
    INTEL.name,
    "",
    "BatchNormParameter.use_weight_bias BatchNormParameter.bias_term",
    "write a Scale layer after the BatchNorm for its scale and bias, and remove it",
)
INTELS_RELU = Fork(
    INTEL.name,
    "",
    """ConvolutionParameter.relu ConvolutionParameter.negative_slope InnerProductParameter.relu
    InnerProductParameter.negative_slope BatchNormParameter.relu""",
    "write a ReLU layer after this one",
)
NVIDIA = Fork(
    "NVIDIA Caffe (NVIDIA/caffe)",
    "DetectNetTransformation L1Loss",
    """forward_type backward_type forward_math backward_math cudnn_math_override debug
    BatchNormParameter.scale_filler BatchNormParameter.bias_filler BatchNormParameter.scale_bias
    BatchNormParameter.engine ConvolutionParameter.conv_algos_override
    ConvolutionParameter.cudnn_convolution_algo_seeker DropoutParameter.random_seed DropoutParameter.engine
    DataParameter.threads DataParameter.parser_threads DataParameter.precache ImageDataParameter.threads
    ImageDataParameter.cache ImageDataParameter.precache TransformationParameter.use_gpu_transform
    TransformationParameter.random_seed NetParameter.default_forward_type NetParameter.default_backward_type
    NetParameter.default_forward_math NetParameter.default_backward_math
    NetParameter.default_cudnn_math_override NetParameter.default_conv_algos_override
    NetParameter.global_grad_scale NetParameter.global_grad_scale_adaptive NetParameter.reduce_buckets
    NetParameter.eltwise_mem_sharing""",
    "give --dialect nvidia",
)
NVIDIAS_OTHERS = Fork(
    "NVIDIA Caffe (NVIDIA/caffe)",
    "",
    """PoolingParameter.torch_pooling ELUParameter.lambda ImageDataParameter.short_side
    ImageDataParameter.dataset_share_per_node MultiBoxLossParameter.ignore_difficult_gt
    TransformationParameter.forward_packing TransformationParameter.display
    TransformationParameter.num_labels SolverType.SAG detectnet_groundtruth_param
    detectnet_augmentation_param trt_param video_data_param""",
)
FORKS = (
    SSD, LENOVO, HUAWEI, DEEPLAB, ACTION, YOLO, WINDOWS, INTEL, INTELS_SCALE, INTELS_RELU, NVIDIA,
    NVIDIAS_OTHERS,
    Fork("FlowNet2 (lmb-freiburg/flownet2)", "Correlation Correlation1D FlowWarp Resample Downsample L1Loss",
         "correlation_param flow_warp_param resample_param downsample_param l1_loss_param"),
    Fork("C3D (facebook/C3D)", "CONVOLUTION3D POOLING3D VOLUME_DATA Convolution3D Pooling3D",
         "PoolingParameter.kernel_depth PoolingParameter.temporal_stride ConvolutionParameter.kernel_depth "
         "ConvolutionParameter.temporal_pad ConvolutionParameter.temporal_stride "
         "ImageDataParameter.show_data"),
    Fork("the CTPN fork (bear63/sceneReco)", "Transpose", "transpose_param"),
    Fork("OpenPose's fork (CMU-Perceptual-Computing-Lab/caffe_train)", "CPMData", "cpm_transform_param"),
    Fork("CRF-RNN's fork (torrvision/crfasrnn)", "MultiStageMeanfield MULTI_STAGE_MEANFIELD",
         "multi_stage_meanfield_param"),
    Fork("DeepLab's first fork (TheLegendAli/DeepLab-Context)", "SEG_ACCURACY MAT_READ MAT_WRITE",
         "softmaxloss_param strict_dim seg_accuracy_param mat_read_param mat_write_param"),
    Fork("GENet's fork (hujie-frank/GENet)", "CuDNNBatchNorm", "cudnn_batch_norm_param"),
    Fork("the YOLO fork of yeahkun (yeahkun/caffe-yolo)", "BoxData DetectionLoss",
         "detection_loss_param DataParameter.side"),
    Fork("HED's fork (s9xie/hed)", "ImageLabelmapData", "ImageDataParameter.normalize"),
    Fork("NormFace (happynear/NormFace)", "GlobalLSEMargin",
         "AccuracyParameter.min_is_better ParameterParameter.blob_filler"),
    Fork("EAST-caffe (SURFZJY/EAST-caffe)", "DiceCoefLoss", ""),
    Fork("TextBoxes++ (MhLiao/TextBoxes_plusplus)", "", "PriorBoxParameter.denser_prior_boxes"),
    Fork("soeaver's fork (soeaver/caffe-model)", "", "InterpParameter.use_blob_size selu_dropout_param"),
    Fork("Intel's model zoo (opencv/open_model_zoo)", "CTCGreedyDecoder",
         "ctc_decoder_param DetectionOutputParameter.input_width DetectionOutputParameter.input_height"),
    Fork("TMM2018_DRFN (Mhaiyang/TMM2018_DRFN)", "PwAttend", "pw_attend_param"),
    Fork("Caffe_Light_Field (JunhyeongBak/Caffe_Light_Field)", "AbsLoss Warping FlowWarp", ""),
    Fork("MouseCTSegmentation (DlutMedimgGroup/MouseCTSegmentation)", "PoolingND", "pooling_nd_param"),
    Fork("SemanticLabelingDemo (StevenHickson/SemanticLabelingDemo)", "Segmentation LabelData", "seg_param"),
    Fork("deepsaldet (Robert0812/deepsaldet)", "MCWINDOW_DATA",
         "mcwindow_data_param WindowDataParameter.shuffle"),
    Fork("pynetbuilder (jay-mahadeokar/pynetbuilder)", "",
         "MemoryDataParameter.source MemoryDataParameter.share_in_parallel"),
    Fork("resnet-imagenet-caffe (yihui-he/resnet-imagenet-caffe)", "", "ImageDataParameter.new_dim"),
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
