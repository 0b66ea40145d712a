"""Layers of Caffe's forks: as a plugin package, with fields in prototxt/forks.proto, that ships with us.

A type is faithful to the CPU code of the fork that its file names, quirks included, but for what its
docstring lists as different.
"""
