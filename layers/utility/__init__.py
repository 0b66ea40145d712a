"""Caffe's drawer of layers: utility."""
