"""Caffe's drawer of layers: common."""
