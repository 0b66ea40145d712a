"""The reproduction of the paper: runs, their records, and the tables, figures and claims made from these."""

if __name__ != "imae.paper":
    raise ImportError(f"import this package as imae.paper, not as {__name__}")
