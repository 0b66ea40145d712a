"""Caffe's drawer of layers: vision."""
