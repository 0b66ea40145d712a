"""Caffe's drawer of layers: activation."""
