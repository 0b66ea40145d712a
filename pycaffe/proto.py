"""caffe.proto: the messages of Caffe's schema, `from caffe.proto import caffe_pb2`."""

from imae.prototxt import caffe_pb2

__all__ = ["caffe_pb2"]
