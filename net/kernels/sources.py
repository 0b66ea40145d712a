"""Which C sources the kernels were built from.

setup.py runs this file alone to put the hash into the library. native.py compares it when the library is
loaded, so that a library built from other sources is never called. To build a library by hand:

    gcc ... -DSOURCES_HASH=$(python net/kernels/sources.py) net/kernels/kernels.c
"""

import hashlib
from pathlib import Path


def sources_hash() -> str:
    """SHA-256 of the names and contents of all C files in this folder, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parent.glob("*.[ch]")):
        text = path.read_bytes()
        digest.update(f"{path.name} {len(text)}\n".encode() + text)
    return digest.hexdigest()


if __name__ == "__main__":
    print(sources_hash())
