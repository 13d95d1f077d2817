"""The command line itself: what a script that calls it sees."""

from __future__ import annotations

import os
import subprocess
import sys


def test_a_closed_pipe_is_never_a_success():
    """Else `mr1-bench parity … | head` would open a gate."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = subprocess.run([sys.executable, "-m", "mr1_bench", "tasks"], stdout=closed, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 141, done.stderr
