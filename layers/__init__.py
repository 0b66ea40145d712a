"""Message to net: Caffe's layers as torch modules, and the Net that joins them."""

if __name__ != "imae.layers":
    raise ImportError(f"import this package as imae.layers, not as {__name__}: its registry would be empty")
