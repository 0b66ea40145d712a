"""The command line: one file per command, and the options that several commands share."""

if __name__ != "imae.cli":
    raise ImportError(f"import this package as imae.cli, not as {__name__}")
