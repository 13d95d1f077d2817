"""How long a call takes, told so that a busy machine is no failure: in CPU time of this thread, and the least of several."""

import time
from collections.abc import Callable


def least_cpu_seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """CPU seconds of the fastest of some calls."""
    taken = []
    for _ in range(repeats):
        begin = time.thread_time()
        call()
        taken.append(time.thread_time() - begin)
    return min(taken)
