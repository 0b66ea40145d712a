"""Caffe's drawer of layers: data."""
