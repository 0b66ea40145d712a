"""Caffe's drawer of layers: recurrent."""
