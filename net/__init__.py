"""Message to a net that runs: built, run layer by layer or as a fused plan, its weights read and written."""

if __name__ != "imae.net":
    raise ImportError(f"import this package as imae.net, not as {__name__}")
