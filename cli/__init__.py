"""The command line: one file for each command, and the options that several of them have."""

if __name__ != "imae.cli":
    raise ImportError(f"import this package as imae.cli, not as {__name__}")
