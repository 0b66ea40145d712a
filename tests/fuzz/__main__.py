"""Fuzz the readers of files: every broken file must be read, or refused by an ImaeError of one line.

    python tests/fuzz --examples 2000                   all targets
    python tests/fuzz lmdb onnx --minutes 30 --keep /tmp/found

This means: no other exception and no warning; no crash; at most 5 s of CPU time and 1 GiB of memory for a file
of at most 1 MiB; nothing is written or removed outside a temporary folder. Each target runs in processes of
its own, batch by batch of different files. The table gives the number of accepted and refused files, the mean
CPU time to make and check a file, and the longest time of a check. Below it are the findings, each with a
file, made smaller if possible. Exit status: 1 if there are findings.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib
import io
import json
import logging
import mmap
import os
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, NoReturn

from choices import Draw, Files, simpler
from targets import ROOT, TARGETS, Target

SECONDS = 5  # CPU time for a file
IDLE = 12  # idle time after which a process counts as hung, in multiples of the CPU time
SHRINKING = 2  # time to look for a smaller file, in multiples of the CPU time
POLL = 0.02  # seconds between two checks of a process
MEMORY = 1 << 30
BATCH = 500
COUNTS = struct.Struct("<QQQQd")  # checks, inputs, accepted, refused, longest time


class Slow(BaseException):
    """The time is up. It is not an Exception, so that no handler of Exception catches it."""


class Finding(Exception):
    """A broken rule: `key` identifies the cause, `description` is for people."""

    def __init__(self, key: str, description: str) -> None:
        super().__init__(key)
        self.key, self.description = key, description


def main() -> int:
    from imae.cli.main import COMMANDS, command_module
    from imae.layers.registry import layer_types

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--examples", type=int, default=1000, help="files for each target (1000)")
    parser.add_argument("--minutes", type=float, help="go on for so long instead")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other files (0)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of CPU time for a file ({SECONDS})")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="save the files of findings here")
    args = parser.parse_args()
    unknown = set(args.targets) - set(TARGETS)
    if unknown:
        parser.error(f"unknown target {', '.join(unknown)}")
    chosen = [TARGETS[name] for name in args.targets or TARGETS]
    for module in ("onnx", "onnxruntime", "imae.train.solver"):
        importlib.import_module(module)  # once, for all processes
    for name in COMMANDS:
        command_module(name)
    layer_types()
    totals = {target.name: Totals() for target in chosen}
    end = time.monotonic() + 60 * args.minutes if args.minutes else None
    number = args.seed * 1_000_000
    unfinished = list(chosen)
    while unfinished and (end is None or time.monotonic() < end):
        for target in list(unfinished):
            total = totals[target.name]
            before = total.inputs
            left = BATCH if end is not None else min(args.examples - before, BATCH)
            total.add(run_batch(target, left, number, set(total.findings), args.seconds))
            print(total.row(target.name), *total.findings, sep="\n  ", file=sys.stderr, flush=True)
            if total.inputs == before or (end is None and total.inputs >= args.examples):
                unfinished.remove(target)
        number += 1
    print(
        f"{'target':16}{'inputs':>9}{'accepted':>9}{'refused':>9}{'mean':>9}{'longest':>9}{'memory':>9}  findings"
    )
    for name, total in totals.items():
        print(total.row(name))
    print(f"{'':16}{sum(total.inputs for total in totals.values()):>9}")
    for name, total in totals.items():
        for key, (description, data) in total.findings.items():
            print(f"\n{name}: {key}\n{description}")
            if args.keep is not None:
                args.keep.mkdir(parents=True, exist_ok=True)
                path = args.keep / f"{name}-{zlib.crc32(key.encode()):08x}"
                path.write_bytes(data)
                print(f"saved as {path}")
    return 1 if any(total.findings for total in totals.values()) else 0


class Totals:
    """The results for a target's files; findings: description and file, by key."""

    def __init__(self) -> None:
        self.inputs = self.accepted = self.refused = self.memory = 0
        self.longest = self.time = 0.0
        self.findings: dict[str, tuple[str, bytes]] = {}

    def add(self, other: Totals) -> None:
        self.inputs += other.inputs
        self.accepted += other.accepted
        self.refused += other.refused
        self.longest = max(self.longest, other.longest)
        self.time += other.time
        self.memory = max(self.memory, other.memory)
        self.findings |= {key: value for key, value in other.findings.items() if key not in self.findings}

    def row(self, name: str) -> str:
        return (
            f"{name:16}{self.inputs:>9}{self.accepted:>9}{self.refused:>9}"
            f"{1000 * self.time / max(self.inputs, 1):>6.1f} ms{self.longest:>7.2f} s{self.memory / 2**20:>5.0f} MiB  {len(self.findings)}"
        )


# -- a batch in a process of its own -------------------------------------------------------------------------


def run_batch(target: Target, examples: int, number: int, known: set[str], seconds: float) -> Totals:
    """Run `examples` files with the random seed `number`; findings with `known` keys are ignored."""
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    totals = Totals()
    in_memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # nothing waits for a disk there
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=in_memory) as name:
        folder = Path(name, "a", "b")
        for part in ("work", "report"):
            (folder / part).mkdir(parents=True)
        pid = os.fork()
        if pid == 0:
            _child(target, examples, number, known, folder, shared, seconds)
        ended, totals.time = _wait(pid, shared, seconds)
        _, totals.inputs, totals.accepted, totals.refused, totals.longest = COUNTS.unpack_from(shared)
        for path in sorted((folder / "report").glob("*.json")):
            report = json.loads(path.read_text())
            totals.memory = max(totals.memory, report.get("memory", 0))
            if "key" in report:
                totals.findings[report["key"]] = report["what"], base64.b64decode(report["data"])
        last = folder / "report" / "input"
        data = last.read_bytes() if last.exists() else b""
        if ended:
            trace = (folder / "report" / "trace").read_text()
            place = next((line.strip() for line in trace.splitlines() if f"{ROOT}/" in line), "nowhere")
            totals.findings[f"{ended}: {place}"] = f"{ended}\n{trace[-2000:]}", data
        # Files written by C code trigger no audit event, so look for files outside the two folders.
        strange = [path for path in Path(name).rglob("*") if not _belongs(path, folder)]
        if strange:
            totals.findings["outside, once"] = f"outside the folder: {strange[0].relative_to(name)}", data
    return totals


def _belongs(path: Path, folder: Path) -> bool:
    inside = (folder / "work", folder / "report")
    return path in (folder, *folder.parents) or any(path.is_relative_to(part) for part in inside)


def _wait(pid: int, shared: mmap.mmap, seconds: float) -> tuple[str, float]:
    """Wait for a process, and end it if it hangs. Return how it ended ("" if well), and its CPU time."""
    before, used_before, idle, slow = -1, 0.0, 0.0, False
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            ended = "too slow, and cannot be stopped" if slow else f"ended with status {code}" if code else ""
            return ended, usage.ru_utime + usage.ru_stime
        checks = COUNTS.unpack_from(shared)[0]
        running, used = _state(pid)
        if checks != before:
            before, used_before, idle = checks, used, 0.0
        elif checks and (idle > IDLE * seconds or used - used_before > 2 * seconds + 1):
            os.kill(pid, signal.SIGKILL if slow else signal.SIGABRT)  # SIGABRT makes it write a traceback
            slow, used_before, idle = True, used, 0.0
        # On a busy machine it may wait long for a CPU; its state is "running" then, too.
        idle += 0.0 if running else POLL
        time.sleep(POLL)


def _state(pid: int) -> tuple[bool, float]:
    """Whether a process is running or waits only for a CPU; and the CPU time that it has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0] == "R", (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _child(
    target: Target,
    examples: int,
    number: int,
    known: set[str],
    folder: Path,
    shared: mmap.mmap,
    seconds: float,
) -> NoReturn:
    import faulthandler

    status = 70
    try:
        trace = open(folder / "report" / "trace", "w")  # noqa: SIM115
        faulthandler.enable(trace)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os.chdir(folder / "work")
        tempfile.tempdir = str(folder / "work")
        Runner(target, folder, known, shared, seconds).run(examples, number)
        status = 0
    except BaseException:
        (folder / "report" / "trace").write_text(traceback.format_exc())
    finally:
        os._exit(status)


class Runner:
    """Runs a target's files one by one and writes the findings to files."""

    def __init__(
        self, target: Target, folder: Path, known: set[str], shared: mmap.mmap, seconds: float
    ) -> None:
        self.target, self.folder, self.known, self.shared = target, folder, set(known), shared
        self.seconds = seconds
        self.checks = self.inputs = self.accepted = self.refused = 0
        self.longest = 0.0
        self.outside: list[str] = []
        self.watching = False
        self.seen: set[bytes] = set()

    def run(self, examples: int, number: int) -> None:
        files = self.target.prepare()
        _small_machine()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # The limit of the address space is above the allowed memory: a library that gets no memory reports
        # an error of the file, which would look like a proper refusal.
        soft = _virtual_memory() + 5 * MEMORY // 2
        resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGPROF, _slow)
        handler = _Strict(io.StringIO())
        logging.getLogger("imae").addHandler(handler)
        logging.getLogger("imae").setLevel(logging.INFO)
        random, tries, heavy = Random(number), 0, False
        while self.inputs < examples and tries < 20 * examples:
            tries += 1
            draw = Draw(random)
            data = files(draw)
            digest = hashlib.sha256(data).digest()
            if digest in self.seen:
                continue
            self.seen.add(digest)
            self._count()
            begun = time.process_time()
            outcome = self._outcome(data)
            taken = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
            if taken > MEMORY and not heavy:
                heavy, outcome = True, Finding("memory", f"{taken} bytes of memory; the file has {len(data)}")
            self.longest = max(self.longest, time.process_time() - begun)
            self.inputs += 1
            self.accepted += outcome is True
            self.refused += outcome is False
            self._count()
            if isinstance(outcome, Finding) and outcome.key not in self.known:
                self._report(outcome, self._smaller(files, draw.made, data, outcome.key))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        (self.folder / "report" / "memory.json").write_text(json.dumps({"memory": 1024 * (after - before)}))

    def _smaller(self, files: Files, made: list[int], data: bytes, key: str) -> bytes:
        """A file with the same finding, made with fewer choices."""
        end = time.monotonic() + SHRINKING * self.seconds
        improved = True
        while improved:
            improved = False
            for choices in simpler(made):
                if time.monotonic() > end:
                    return data
                draw = Draw(choices)
                other = files(draw)
                if (len(other), len(draw.made), sum(draw.made)) >= (len(data), len(made), sum(made)):
                    continue
                self._count()
                outcome = self._outcome(other)
                if isinstance(outcome, Finding) and outcome.key == key:
                    made, data, improved = draw.made, other, True
                    break
        return data

    def _count(self) -> None:
        """Report the progress to the parent process."""
        self.checks += 1
        COUNTS.pack_into(self.shared, 0, self.checks, self.inputs, self.accepted, self.refused, self.longest)

    def _outcome(self, data: bytes) -> Finding | bool:
        (self.folder / "report" / "input").write_bytes(data)
        self.outside.clear()
        outcome: Finding | bool
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                signal.setitimer(signal.ITIMER_PROF, self.seconds)
                self.watching = True
                self.target.check(data)
            outcome = True
        except BaseException as error:
            outcome = judged(error)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self.watching = False
        if self.outside:
            event = self.outside[0].split()[0]
            outcome = Finding(f"outside: {event}", f"outside the folder: {self.outside[0]}")
        return outcome

    def _report(self, finding: Finding, data: bytes) -> None:
        self.known.add(finding.key)
        encoded = base64.b64encode(data).decode()
        report = {"key": finding.key, "what": finding.description, "data": encoded}
        (self.folder / "report" / f"{len(self.known)}.json").write_text(json.dumps(report))

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        paths: tuple[Any, ...] = ()
        if (
            event == "open"
            and isinstance(arguments[2], int)
            and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ) or event in ("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "shutil.rmtree"):
            paths = arguments[:1]
        elif event in ("os.rename", "os.link", "os.symlink"):
            paths = arguments[:2]
        elif event in ("subprocess.Popen", "os.system", "socket.connect", "pickle.find_class"):
            self.outside.append(f"{event} {arguments!r}")
        for path in paths:
            if isinstance(path, str | bytes):
                real = os.path.realpath(os.fsdecode(path))
                if not f"{real}/".startswith(f"{self.folder}/work/") and real != os.devnull:
                    self.outside.append(f"{event} {real}")


def judged(error: BaseException) -> Finding | bool:
    """False if the error is a proper refusal of a file, else a finding."""
    from imae.files.errors import ImaeError

    chain: BaseException | None = error
    while chain is not None and not isinstance(chain, MemoryError) and "allocate memory" not in str(chain):
        chain = chain.__cause__ or chain.__context__
    if isinstance(error, ImaeError) and chain is None:
        text = str(error)
        return False if text and text.isprintable() else Finding("not one line", repr(text))
    frames = list(traceback.extract_tb(error.__traceback__))
    ours = [f"{frame.filename}:{frame.name}" for frame in frames if "/fuzz/" not in frame.filename]
    place = next(
        (f for f in reversed(ours) if "site-packages" not in f and "/lib/python" not in f), "nowhere"
    )
    inner = f"{ours[-1].split('/')[-1]}" if ours else ""
    kind = type(chain or error).__name__
    key = f"{kind} in {place.split('/main/')[-1]} ({inner})"
    return Finding(key, "\n".join("".join(traceback.format_exception(error)).splitlines()[-14:]))


def _small_machine() -> None:
    """Make imae assume that little memory is free."""
    from imae.files import limits

    limits.free_memory = lambda: 1 << 26


def _virtual_memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def _slow(signum: int, frame: FrameType | None) -> NoReturn:
    raise Slow("too much CPU time")


class _Strict(logging.StreamHandler[io.StringIO]):
    """Formats and discards log records; a record that cannot be formatted or encoded is an error."""

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage().encode(errors="backslashreplace")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
