"""The ground floor: errors, atomic writing, limits, and readers of untrusted files."""

if __name__ != "imae.files":
    raise ImportError(f"import this package as imae.files, not as {__name__}")
