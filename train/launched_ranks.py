"""Training in several processes, one per GPU (NCCL) or per share of the CPU (gloo), with Caffe's meaning.

    torchrun --nproc-per-node N train/solve.py SOLVER

Each rank has the whole net and reads records of its own (layers/ranks.py); a batch is one rank's, so N ranks
learn from N batches in an iteration. Gradients are summed over the ranks and divided by N before they are
clipped and regularised; then every rank makes the same update. The weights at the start are rank 0's. Rank r
draws from random_seed + r. Rank 0 alone logs, tests and writes snapshots, which hold the streams of all; the
statistics of BatchNorm are those of its own records.

When one rank fails, all end: it says so in the store through which the ranks have found each other, and a
thread in each of the others looks there, since who waits in a collective operation can do nothing else.

Caffe: parallel.cpp. Differs: processes instead of threads, so Python layers work, as in its train.py; only
rank 0 has the test nets.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is made in C++
from torch.distributed.rendezvous import rendezvous

from imae.files.errors import DeviceError, ImaeError
from imae.files.program import imae_program
from imae.files.read import is_own_pipe
from imae.layers.ranks import ALONE, Flags, Ranks

FAILED = "imae/failed"  # the key of the store under which failures are counted
LOOK = 0.5  # seconds between two looks at it
PAUSE = 1  # seconds that the first rank to fail has to say why, before torchrun sees others end and ends it
PATIENCE = timedelta(days=7)  # others wait for as long as rank 0 tests
GRACE = 10  # seconds that ranks have to end after one of them has failed
FORWARDED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class LaunchedRanks(Ranks):
    """The ranks that the environment names, as torchrun sets it.

    DeviceError where the others cannot be reached.
    """

    def __init__(self) -> None:
        named = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")]
        if all(map(str.isdecimal, named)) and int(named[0]) >= int(named[1]):  # it would wait for ever
            raise DeviceError(
                f"The ranks cannot meet: RANK {named[0]} is none of WORLD_SIZE {named[1]}, counted from 0; "
                "start them with torchrun"
            )
        try:
            store, rank, size = next(rendezvous("env://"))
            self._watched, _, _ = next(rendezvous("env://"))  # for the thread: a store answers one at a time
            local_rank = int(os.environ.get("LOCAL_RANK", rank))
            local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        except (ValueError, RuntimeError) as error:
            reason = _first_line(error)
            raise DeviceError(f"The ranks cannot meet: {reason}; start them with torchrun") from None
        super().__init__(rank, size, local_rank, local_size)
        self._store = store
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch the ranks", daemon=True)
        self._thread.start()
        self._any_rank: Flags = ()
        self._counts: tuple[Tensor, torch.cuda.Event] | None = None

    def connect(self, device: torch.device) -> None:
        _together(
            dist.init_process_group,
            "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
            store=self._store,
            rank=self.rank,
            world_size=self.size,
            timeout=PATIENCE,
        )

    # -- what the solver needs -------------------------------------------------------------------------------

    @torch.no_grad()
    def broadcast(self, blobs: Sequence[Tensor]) -> None:
        if blobs:
            flat = torch.cat([blob.reshape(-1) for blob in blobs])
            _together(dist.broadcast, flat, 0)
            _spread(flat, blobs)

    def broadcast_str(self, text: str) -> str:
        data = text.encode(errors="surrogateescape")
        length = torch.tensor([len(data)])
        _together(dist.broadcast, length, 0)
        values = _bytes(data) if self.rank == 0 else torch.zeros(int(length), dtype=torch.uint8)
        if len(values):
            _together(dist.broadcast, values, 0)
        return values.numpy().tobytes().decode(errors="surrogateescape")

    def gather(self, data: bytes) -> list[bytes]:
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        _together(dist.all_gather, lengths, torch.tensor([len(data)]))
        values = torch.zeros(int(max(lengths)), dtype=torch.uint8)
        values[: len(data)] = _bytes(data)
        parts = [torch.zeros_like(values) for _ in range(self.size)] if self.rank == 0 else None
        _together(dist.gather, values, parts)
        return [part[: int(n)].numpy().tobytes() for part, n in zip(parts or [], lengths, strict=False)]

    @torch.no_grad()
    def average(self, diffs: Sequence[Tensor], flags: Callable[[], Flags]) -> None:
        """One operation for diffs and flags.

        On a GPU `any_rank` tells the flags of the call before: the host need not wait for this one's sums.
        """
        raised = flags()
        like = diffs[0] if diffs else torch.zeros(0)
        counts = like.new_zeros(len(raised))
        for place, flag in enumerate(raised):
            if flag:
                counts[place].fill_(1)
        flat = torch.cat([*(diff.reshape(-1) for diff in diffs), counts])
        _together(dist.all_reduce, flat)
        flat *= 1 / self.size
        _spread(flat, diffs)
        counts = flat[-len(raised) :]
        if flat.is_cuda:
            before = self._counts
            copy = torch.empty_like(counts, device="cpu", pin_memory=True).copy_(counts, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            copied.record()
            self._counts = copy, copied
            if before is None:
                self._any_rank = [False] * len(raised)
                return
            counts = before[0]
            before[1].synchronize()
        self._any_rank = [count > 0 for count in counts.tolist()]

    def any_rank(self, flags: Callable[[], Flags]) -> Flags:
        return self._any_rank

    # -- the end ---------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Part when all ranks are ready to."""
        self._over.set()  # before any of them ends, and perhaps the store with it
        self._thread.join()
        _together(dist.all_reduce, torch.zeros(1))
        dist.destroy_process_group()

    def is_first_to_fail(self) -> bool:
        """Let the others know that this rank fails; whether they did not know it already."""
        self._over.set()
        try:
            return int(self._store.add(FAILED, 1)) == 1
        except RuntimeError:  # whoever kept the store is gone without a word
            return True

    def _watch(self) -> None:
        """End this process when another rank has failed, wherever its main thread waits."""
        while not self._over.wait(LOOK):
            reason = ""
            try:
                failed = self._watched.check([FAILED])
            except RuntimeError as error:
                failed, reason = True, _lost(error)
            if failed and not self._over.wait(PAUSE):
                if reason:  # else the one that has failed says it
                    with suppress(OSError):  # there may be no room for the log
                        print(f"imae: rank {self.rank}: {reason}", file=sys.stderr, flush=True)
                os._exit(2)


def is_launched() -> bool:
    """Whether this process is one of several ranks."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


@contextmanager
def joined() -> Iterator[Ranks]:
    """Be one of the ranks, if there are several, while the block runs.

    An error ends all of them; the first rank that has one raises it, the others just exit.
    """
    if not is_launched():
        yield ALONE
        return
    ranks = LaunchedRanks()
    if ranks.rank:
        logging.getLogger("imae").setLevel(logging.CRITICAL)  # until the command ends
    try:
        yield ranks
        ranks.leave()
    except BaseException as error:
        if not ranks.is_first_to_fail():
            time.sleep(PAUSE)
            raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2) from None
        if isinstance(error, ImaeError):
            raise ImaeError(f"rank {ranks.rank}: {error}") from error
        raise


def spawn(count: int, arguments: Sequence[str]) -> int:
    """Run `imae ARGUMENTS` in `count` ranks on this machine, as torchrun would; the exit status.

    Signals go on to the ranks. ImaeError where one was killed, or where an argument is a pipe.
    """
    if pipe := next((word for word in arguments if is_own_pipe(word.rpartition("=")[2])), ""):
        raise ImaeError(f"{pipe}: several processes cannot read one pipe; write it to a file first")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    found |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    found |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}  # the store is here
    command = [*imae_program(), *arguments]
    processes: list[subprocess.Popen[bytes]] = []
    before = {number: signal.getsignal(number) for number in FORWARDED}

    def forward(number: int, _: object) -> None:
        for process in processes:
            process.send_signal(number)

    try:
        for number in FORWARDED:
            signal.signal(number, forward)
        for rank in range(count):
            env = os.environ | found | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # In a session of its own: Ctrl-C reaches it once, through this process.
            processes.append(subprocess.Popen(command, env=env, start_new_session=True))
        return exit_status(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_status(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """The exit status of ranks: that of the first one that fails, 0 if none does."""
    first, end = 0, math.inf
    while True:
        statuses = [process.poll() for process in processes]
        first = first or next(filter(None, statuses), 0)
        if None not in statuses or time.monotonic() > end:
            break
        if first and end == math.inf:
            end = time.monotonic() + GRACE
        time.sleep(0.05)
    if first < 0:
        raise ImaeError(f"rank {statuses.index(first)} was ended by signal {-first}")
    return first


def _together(collective: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Call one of torch's collective operations."""
    try:
        collective(*arguments, **options)
    except RuntimeError as error:
        raise DeviceError(_lost(error)) from None


def _lost(error: Exception) -> str:
    return f"the connection to the other ranks is lost: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _spread(flat: Tensor, blobs: Sequence[Tensor]) -> None:
    """Copy values that stand one blob behind the other, from the first on, into the blobs."""
    ends = np.cumsum([blob.numel() for blob in blobs]).tolist()
    if ends:
        pieces = [flat[end - b.numel() : end].view(b.shape) for end, b in zip(ends, blobs, strict=True)]
        torch._foreach_copy_(list(blobs), pieces)


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)
