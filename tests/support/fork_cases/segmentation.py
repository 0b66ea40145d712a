"""Layers and fields of SegNet, DeepLab, PSPNet and CaffeMex, and the pooling that many forks share."""

from case_types import Change

CHANGES = {
    "pooling_param.ceil_mode": Change([False], {"pooling_param.stride": 4}),
}
