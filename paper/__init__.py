"""The reproduction of the paper: its runs, their records, and what these say of its tables and claims."""

if __name__ != "imae.paper":
    raise ImportError(f"import this package as imae.paper, not as {__name__}")
