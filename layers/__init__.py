"""Caffe's layers as torch modules: the contract of a layer, and one file per type."""

if __name__ != "imae.layers":
    raise ImportError(f"import this package as imae.layers, not as {__name__}: its registry would be empty")
