"""How long threads that compute wait awake for each other.

A net's step is some hundred operations, each shared by the threads, with a barrier at its end. GNU's OpenMP
lets a thread wait there awake for several milliseconds. That is right while each thread has a core. But where
other programs want the cores, the system has put the awaited thread aside, and the waiting one uses up the
time that it needs: with two threads on two cores and a load of 15, an iteration of ResNet-20 took four times
the processor time, and four times as long as with one thread. Threads that go to sleep sooner take about as
long as one thread, or less. What they compute is the same.
"""

from __future__ import annotations

import os
import sys

# Rounds of waiting, 0.1 to 0.4 ms: longer than nearly all pauses between a net's operations, in which the
# other threads stay awake, and far shorter than the time for which the system puts a thread aside.
ROUNDS = 10000
# With one of these, who starts the program has chosen.
CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def sleep_soon() -> None:
    """Choose ROUNDS for this process and those that it starts, unless its environment chooses.

    OpenMP reads the environment when torch is imported, so this comes before, or has no effect.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in CHOICES):
        os.environ["GOMP_SPINCOUNT"] = str(ROUNDS)
