"""Training in several processes, one per GPU (NCCL) or per share of the CPU (gloo), as Caffe's several GPUs.

    torchrun --nproc-per-node N train/solve.py SOLVER

Each rank has the whole net and reads its own records (layers/ranks.py). batch_size is that of one rank, so N
ranks learn from N batches in an iteration. Gradients are summed over the ranks and divided by N before they
are clipped and regularised; then every rank makes the same update. The initial weights are rank 0's. Rank r
seeds its random numbers with random_seed + r. Only rank 0 logs, tests and writes snapshots. These hold the
streams of all ranks; BatchNorm's statistics are those of rank 0's records.

When one rank fails, all end. The failed rank writes to the store through which the ranks have met, and a
thread in each other rank polls it, since the main thread may be blocked in a collective operation.

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

from imae.files.errors import DeviceError, ImaeError, first_line
from imae.files.program import imae_program
from imae.files.read import is_own_pipe
from imae.layers.ranks import ALONE, Flags, Ranks

FAILED = "imae/failed"  # the key of the store under which failures are counted
POLL_INTERVAL = 0.5  # seconds between two polls of that key
PAUSE = 1  # seconds for the first failing rank to log why, before torchrun sees the others end and ends it
TIMEOUT = timedelta(days=7)  # of a collective operation: the others wait in one while rank 0 tests
GRACE = 10  # seconds that ranks have to end after one of them has failed
FORWARDED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class LaunchedRanks(Ranks):
    """The ranks of the environment variables that torchrun sets.

    DeviceError where the other ranks cannot be reached.
    """

    def __init__(self) -> None:
        values = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")]
        if all(map(str.isdecimal, values)) and int(values[0]) >= int(values[1]):  # it would wait forever
            raise DeviceError(
                f"The ranks cannot meet: RANK {values[0]} is none of WORLD_SIZE {values[1]}, counted from 0; "
                "start them with torchrun"
            )
        try:
            store, rank, size = next(rendezvous("env://"))
            # A second connection, for the thread: a store answers one request at a time.
            self._watched, _, _ = next(rendezvous("env://"))
            local_rank = int(os.environ.get("LOCAL_RANK", rank))
            local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        except (ValueError, RuntimeError) as error:
            reason = first_line(error)
            raise DeviceError(f"The ranks cannot meet: {reason}; start them with torchrun") from None
        super().__init__(rank, size, local_rank, local_size)
        self._store = store
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch the ranks", daemon=True)
        self._thread.start()
        self._any_rank: Flags = ()
        self._counts: tuple[Tensor, torch.cuda.Event] | None = None

    def connect(self, device: torch.device) -> None:
        _collective(
            dist.init_process_group,
            "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
            store=self._store,
            rank=self.rank,
            world_size=self.size,
            timeout=TIMEOUT,
        )

    # -- what the solver needs -------------------------------------------------------------------------------

    @torch.no_grad()
    def broadcast(self, blobs: Sequence[Tensor]) -> None:
        if blobs:
            flat = torch.cat([blob.reshape(-1) for blob in blobs])
            _collective(dist.broadcast, flat, 0)
            _spread(flat, blobs)

    def broadcast_str(self, text: str) -> str:
        data = text.encode(errors="surrogateescape")
        length = torch.tensor([len(data)])
        _collective(dist.broadcast, length, 0)
        values = _bytes(data) if self.rank == 0 else torch.zeros(int(length), dtype=torch.uint8)
        if len(values):
            _collective(dist.broadcast, values, 0)
        return values.numpy().tobytes().decode(errors="surrogateescape")

    def gather(self, data: bytes) -> list[bytes]:
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        _collective(dist.all_gather, lengths, torch.tensor([len(data)]))
        values = torch.zeros(int(max(lengths)), dtype=torch.uint8)
        values[: len(data)] = _bytes(data)
        parts = [torch.zeros_like(values) for _ in range(self.size)] if self.rank == 0 else None
        _collective(dist.gather, values, parts)
        return [part[: int(n)].numpy().tobytes() for part, n in zip(parts or [], lengths, strict=False)]

    @torch.no_grad()
    def average(self, diffs: Sequence[Tensor], flags: Callable[[], Flags]) -> None:
        """Average the diffs and sum the flags in one operation.

        On a GPU, `any_rank` returns the flags of the previous call, so that the host does not wait for the
        sums of this one.
        """
        raised = flags()
        template = diffs[0] if diffs else torch.zeros(0)
        counts = template.new_zeros(len(raised))
        for place, flag in enumerate(raised):
            if flag:
                counts[place].fill_(1)
        flat = torch.cat([*(diff.reshape(-1) for diff in diffs), counts])
        _collective(dist.all_reduce, flat)
        flat *= 1 / self.size
        _spread(flat, diffs)
        counts = flat[-len(raised) :]
        if flat.is_cuda:
            previous = self._counts
            copy = torch.empty_like(counts, device="cpu", pin_memory=True).copy_(counts, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            copied.record()
            self._counts = copy, copied
            if previous is None:
                self._any_rank = [False] * len(raised)
                return
            counts = previous[0]
            previous[1].synchronize()
        self._any_rank = [count > 0 for count in counts.tolist()]

    def any_rank(self, flags: Callable[[], Flags]) -> Flags:
        return self._any_rank

    # -- the end ---------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Leave the group once all ranks are ready."""
        self._over.set()  # before any rank ends; the store may end with it
        self._thread.join()
        _collective(dist.all_reduce, torch.zeros(1))
        dist.destroy_process_group()

    def is_first_to_fail(self) -> bool:
        """Tell the other ranks that this rank has failed; returns whether it is the first."""
        self._over.set()
        try:
            return int(self._store.add(FAILED, 1)) == 1
        except RuntimeError:  # the process that held the store has ended
            return True

    def _watch(self) -> None:
        """End this process when another rank has failed, wherever its main thread waits."""
        while not self._over.wait(POLL_INTERVAL):
            reason = ""
            try:
                failed = self._watched.check([FAILED])
            except RuntimeError as error:
                failed, reason = True, _lost(error)
            if failed and not self._over.wait(PAUSE):
                if reason:  # else the failed rank has logged its error
                    with suppress(OSError):  # the disk of the log may be full
                        print(f"imae: rank {self.rank}: {reason}", file=sys.stderr, flush=True)
                os._exit(2)


def is_launched() -> bool:
    """Whether this process is one of several ranks."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Be one of the ranks, if there are several, while the block runs.

    An error ends all ranks: the first rank with an error raises it, the others only exit.
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
    """Run `imae ARGUMENTS` in `count` ranks on this machine, as torchrun would; returns the exit status.

    Signals are forwarded to the ranks. ImaeError if a rank was killed, or if an argument is a pipe.
    """
    if pipe := next((word for word in arguments if is_own_pipe(word.rpartition("=")[2])), ""):
        raise ImaeError(f"{pipe}: several processes cannot read one pipe; write it to a file first")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    variables |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    variables |= {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }  # the store is here
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
            env = os.environ | variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # A new session, so that Ctrl-C reaches the rank only once, through this process.
            processes.append(subprocess.Popen(command, env=env, start_new_session=True))
        return exit_status(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_status(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for the ranks; returns the exit status of the first that fails, 0 if none does."""
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


def _collective(operation: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Call one of torch's collective operations; DeviceError if the other ranks are lost."""
    try:
        operation(*arguments, **options)
    except RuntimeError as error:
        raise DeviceError(_lost(error)) from None


def _lost(error: Exception) -> str:
    return f"the connection to the other ranks is lost: {first_line(error)}"


def _spread(flat: Tensor, blobs: Sequence[Tensor]) -> None:
    """Copy the values of `flat`, which holds one blob after another, into the blobs."""
    ends = np.cumsum([blob.numel() for blob in blobs]).tolist()
    if ends:
        pieces = [flat[end - b.numel() : end].view(b.shape) for end, b in zip(ends, blobs, strict=True)]
        torch._foreach_copy_(list(blobs), pieces)


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)
