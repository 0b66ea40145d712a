"""Lower limits to which Caffe's losses raise a probability before they take its logarithm.

Caffe: FLT_MIN in softmax_loss_layer.cpp, kLOG_THRESHOLD in loss_layer.hpp.
"""

import torch

FLT_MIN = torch.finfo(torch.float32).tiny
LOG_THRESHOLD = 1e-20
