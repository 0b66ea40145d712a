"""What the examiner's process may not do: write, start a program, import the project's code, take all memory.

The readers do none of this anyway. A hook that Python calls before each such act makes sure, whatever a file
asks for.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from imae.files.limits import EXAMINATION_MEMORY, free_memory

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = {
    "os.exec", "os.fork", "os.forkpty", "os.link", "os.mkdir", "os.posix_spawn", "os.remove", "os.rename",
    "os.rmdir", "os.spawn", "os.symlink", "os.system", "os.truncate", "os.chmod", "os.chown", "os.utime",
    "os.setxattr", "subprocess.Popen", "shutil.rmtree", "socket.connect", "socket.bind", "tempfile.mkstemp",
    "tempfile.mkdtemp",
}  # fmt: skip


class ForbiddenError(PermissionError):
    """An act that the examiner must not do."""


def enter() -> None:
    """Forbid it all from now on. Modules are imported from where they could be until now."""
    _limit_memory()
    known = tuple(sys.path)

    def check(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            raise ForbiddenError(f"{event} is forbidden while a project is examined")
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITES and path != os.devnull:
                raise ForbiddenError(f"opening {path!r} to write is forbidden while a project is examined")
        elif event == "import" and isinstance(arguments[2], list):
            for entry in arguments[2]:
                if entry not in known:
                    raise ForbiddenError(f"importing from {entry!r} is forbidden while a project is examined")

    sys.addaudithook(check)


def _limit_memory() -> None:
    """At most EXAMINATION_MEMORY more than this process has now, and what is free."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return
    import resource  # not on all systems

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(statm.read_text().split()[0]) * resource.getpagesize()
    most = taken + min(EXAMINATION_MEMORY, free_memory())
    resource.setrlimit(
        resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
    )
