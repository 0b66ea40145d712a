"""python compare_archives.py SDIST WHEEL..., in a checkout: whether they hold what git tracks.

The source archive has all of it, a wheel the folder imae/ and the parts that setup.py maps onto it.
"""

import ast
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

MADE = ("PKG-INFO", "setup.cfg", "imae.egg-info/")  # by setuptools
KERNELS = "net/kernels/_kernels.so"  # built, where there is a C compiler


def parts() -> list[str]:
    """The folders that setup.py maps."""
    for node in ast.parse(Path("setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PARTS":
            return list(ast.literal_eval(node.value))
    raise SystemExit("setup.py has no PARTS")


def complain(archive: str, found: set[str], wanted: set[str]) -> bool:
    """Print how the names in an archive differ from those that are wanted; whether they do."""
    for name in sorted(wanted - found):
        print(f"{archive} lacks {name}", file=sys.stderr)
    for name in sorted(found - wanted):
        print(f"{archive} has {name}, which git does not track here", file=sys.stderr)
    return found != wanted


def main(sdist: str, *wheels: str) -> bool:
    listed = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True).stdout
    tracked = {name for name in listed.split("\0") if name and Path(name).exists()}
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    in_sdist = {name for name in names if not name.startswith(MADE)}
    differ = complain(sdist, in_sdist, tracked)
    wanted = {name.removeprefix("imae/") for name in tracked if name.split("/")[0] in ("imae", *parts())}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as opened:
            names = {name for name in opened.namelist() if name.startswith("imae/")}
        in_wheel = {name.removeprefix("imae/") for name in names if not name.endswith(("/", KERNELS))}
        differ |= complain(wheel, in_wheel, wanted)
        if any(name.endswith(KERNELS) for name in names) == wheel.endswith("-none-any.whl"):
            print(f"{wheel}: only a wheel for one kind of machine has {KERNELS}", file=sys.stderr)
            differ = True
    return differ


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
