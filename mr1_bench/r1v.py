"""The published R1-V grader, kept apart from ours: what the paper's protocol would have scored an output.

Counting is one regular expression. Geometry is math-verify on the whole output, which runs in one worker process (`r1v_worker`) that
this module starts on first use, shares among threads, kills when an item takes too long and starts again. It must not know how our own
grader reads an answer, and nothing here is used for `acc` or for a reward: the published grader is wrong on about a tenth of the
geometry golds (README), and is here so that numbers can be compared with the paper's.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import re
import selectors
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mr1_bench.specs import TaskSpec, get_spec

R1VStatus = Literal["answered", "no_answer", "bad_gold", "timeout", "crashed"]
"""`answered`: something was extracted. `no_answer`: nothing was. `bad_gold`: the grader could not read the gold, so nothing can be right.
`timeout`: no verdict in time. `crashed`: the worker died twice on this item, for want of memory or by a fault in a library: no verdict."""

TIME_LIMIT_S = 10.0
"""Seconds of wall clock that an item may take. math-verify's own limits, 5 s for each parse and each comparison, come first as a rule."""

START_LIMIT_S = 120.0
"""Seconds that the worker may take to start; 1 to 3 are usual, most of it importing sympy."""

_COUNT = re.compile(r"<answer>\s*+(\d++)\s*+</answer>")
_MAX_DIGITS = 4000  # int() refuses longer numerals from 4300 digits on


class R1VWorkerError(RuntimeError):
    """The worker cannot start at all; the message says why and what to install."""


@dataclass(frozen=True, slots=True)
class R1VScore:
    """The published grader's verdict on one output.

    Attributes:
        correct: the verdict; None if there is none (status `timeout` or `crashed`), which is not the same as wrong.
        extracted: what was compared with the gold, as the R1-V logs print it (`extracted_answer`); None if nothing was.
        status: see `R1VStatus`.
    """

    correct: bool | None
    extracted: str | None
    status: R1VStatus


def grade_r1v(task: TaskSpec | str, gold: str | int, text: str, *, time_limit: float = TIME_LIMIT_S) -> R1VScore:
    """Grade one output as R1-V's evaluation scripts do (`src/eval/test_qwen2vl_counting_superclevr.py` and `..._geoqa.py`).

    Safe to call from any thread and after a fork.

    Args:
        task: the task or its name; only its answer kind matters.
        gold: the gold as the data set has it.
        text: the model's whole output.
        time_limit: seconds of wall clock for this item.

    Returns:
        The verdict; a time limit is status `timeout` with `correct` None.

    Raises:
        R1VWorkerError: math-verify is not installed or does not work in this environment.
        mr1_bench.specs.UnknownTaskError: there is no such task.
    """
    spec = get_spec(task) if isinstance(task, str) else task
    if spec.answer == "count":
        return _grade_count(gold, text)
    return _WORKER.grade(str(gold), text, time_limit)


def close_worker() -> None:
    """End the worker process, if there is one; the next item that needs it starts another. Runs by itself at exit."""
    _WORKER.close()


def _grade_count(gold: str | int, text: str) -> R1VScore:
    found = _COUNT.search(text)
    digits = None if found is None else found.group(1)
    wanted = str(gold).strip()
    if not wanted.isdecimal() or len(wanted) > _MAX_DIGITS:
        return R1VScore(False, digits, "bad_gold")
    if digits is None:
        return R1VScore(False, None, "no_answer")
    if len(digits) > _MAX_DIGITS:
        return R1VScore(False, digits, "answered")
    value = int(digits)
    return R1VScore(value == int(wanted), str(value), "answered")


class _OutOfTimeError(Exception):
    """The worker did not answer in time."""


class _DiedError(Exception):
    """The worker's pipe ended."""


class _Worker:
    """The worker process and the lock that lets one item in at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.unread = b""
        self.ids = itertools.count()

    def grade(self, gold: str, text: str, time_limit: float) -> R1VScore:
        with self.lock:
            # A death is tried once more: somebody may have killed an idle worker. The second one is the item's doing.
            for _ in range(2):
                self._ensure_started()
                try:
                    return _score_of(self._ask(gold, text, time_limit))
                except _OutOfTimeError:
                    self._kill()
                    return R1VScore(None, None, "timeout")
                except _DiedError:
                    self._kill()
                except BaseException:  # interrupted between question and answer: the next reader must not get this item's answer
                    self._kill()
                    raise
            return R1VScore(None, None, "crashed")

    def close(self) -> None:
        with self.lock:
            self._kill()

    def forget(self) -> None:
        """In a forked child: let go of the parent's worker without a word to it, and of a lock that another thread may have held."""
        self.lock = threading.Lock()
        if self.process is not None:
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
            self.process.returncode = 0  # it is not this process's child: nothing to wait for, nothing to warn of
        self.process, self.unread = None, b""

    def _ensure_started(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        self._kill()
        # -P: this folder must not come before the standard library. The seed makes sympy's order of terms the same in every run.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("r1v_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        try:
            greeting = self._read_line(time.monotonic() + START_LIMIT_S)
        except (_OutOfTimeError, _DiedError) as error:
            self._kill()
            raise R1VWorkerError(f"the published grader's worker ({sys.executable}) did not start within {START_LIMIT_S:.0f} s") from error
        if not greeting["ready"]:
            self._kill()
            raise R1VWorkerError(
                f"the published grader does not work here: {greeting['error']}; reinstall mr1-bench in this environment, or install "
                '"math-verify>=0.9,<0.10" latex2sympy2==1.5.4 antlr4-python3-runtime==4.9.3'
            )

    def _ask(self, gold: str, text: str, time_limit: float) -> dict[str, Any]:
        number = next(self.ids)
        deadline = time.monotonic() + time_limit
        # ASCII escapes carry unpaired surrogates and NUL unharmed.
        request = json.dumps({"id": number, "gold": gold, "text": text, "cpu_s": time_limit + 1.0})
        self._write(request.encode("ascii") + b"\n", deadline)
        response = self._read_line(deadline)
        assert response["id"] == number
        return response

    def _write(self, data: bytes, deadline: float) -> None:
        assert self.process is not None and self.process.stdin is not None
        pipe = self.process.stdin.fileno()
        left = memoryview(data)
        while left:
            _wait_for(pipe, selectors.EVENT_WRITE, deadline)
            try:
                left = left[os.write(pipe, left) :]
            except BrokenPipeError as error:
                raise _DiedError from error

    def _read_line(self, deadline: float) -> dict[str, Any]:
        assert self.process is not None and self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        parts = [self.unread]
        while b"\n" not in parts[-1]:
            _wait_for(pipe, selectors.EVENT_READ, deadline)
            part = os.read(pipe, 1 << 16)
            if not part:
                raise _DiedError
            parts.append(part)
        line, _, self.unread = b"".join(parts).partition(b"\n")
        response: dict[str, Any] = json.loads(line)
        return response

    def _kill(self) -> None:
        process, self.process, self.unread = self.process, None, b""
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait()


def _wait_for(pipe: int, event: int, deadline: float) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, event)
        if not selector.select(max(0.0, deadline - time.monotonic())):
            raise _OutOfTimeError


def _score_of(response: dict[str, Any]) -> R1VScore:
    return R1VScore(response["correct"], response["extracted"], response["status"])


_WORKER = _Worker()
atexit.register(close_worker)
os.register_at_fork(after_in_child=_WORKER.forget)
