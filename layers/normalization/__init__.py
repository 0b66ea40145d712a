"""Caffe's drawer of layers: normalization."""
