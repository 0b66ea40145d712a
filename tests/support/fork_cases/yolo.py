"""Reorg and YOLO's detections and losses."""

from case_types import Case, Change
from single_layer import normal

CASES = {
    "Reorg": Case("reorg_param { stride: 2 }", (normal(2, 4, 4, 4),)),
}
CHANGES = {
    "reorg_param.stride": Change([1, 4]),
}
