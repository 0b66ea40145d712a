"""Caffe's drawer of layers: loss."""
