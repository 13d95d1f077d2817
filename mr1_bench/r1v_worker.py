"""The process in which math-verify runs: one JSON object a line in, one a line out.

math-verify limits its time with `signal.alarm`, which works in a process's main thread only, so it gets a process of its own, which
`mr1_bench.r1v` starts, feeds and kills. This file is run by its path (`python -P r1v_worker.py`) and imports nothing of this package:
it must not know tasks, parents or time limits other than the processor time it is told.

Request:  `{"id": int, "gold": str, "text": str, "cpu_s": float}`.
Response: `{"id": int, "status": "answered" | "no_answer" | "bad_gold" | "timeout", "correct": bool | null, "extracted": str | null}`.
The first line out is the greeting `{"ready": true}`, or `{"ready": false, "error": str}` where math-verify cannot be imported.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from functools import lru_cache
from typing import Any, TextIO

MEMORY_BYTES = 8 << 30
"""Address space the worker may take, in bytes: a tower of powers fails here instead of filling the machine."""


@lru_cache(maxsize=4096)
def _parse_gold(gold: str) -> tuple[Any, ...]:
    return tuple(_parse(gold))


def _parse(text: str) -> list[Any]:
    """`math_verify.parse` with its defaults, except that running out of time is raised and not taken for an empty answer."""
    from math_verify import parse

    try:
        return list(parse(text, raise_on_error=True))
    except Exception:  # noqa: BLE001 - the published grader takes any failure to parse for "no answer"; so do we
        return []


def _verify(answer: Any, gold: Any) -> bool:
    """`math_verify.verify` on one pair with its defaults, except that running out of time is raised and not taken for "different"."""
    from math_verify import verify

    try:
        return bool(verify(answer, gold, raise_on_error=True))
    except Exception:  # noqa: BLE001 - the published grader takes any failure to compare for "different"; so do we
        return False


def _text_of(answer: list[Any]) -> str | None:
    try:
        return str(answer[0])
    except Exception:  # noqa: BLE001 - printing is sympy's code on a model's output; the published grader logs None then
        return None


def judge(gold: str, text: str) -> dict[str, Any]:
    """Grade as R1-V's `test_qwen2vl_geoqa.py` does: `verify(parse(text), parse(gold))`, the model's whole output first.

    Args:
        gold: the gold string as the data set has it.
        text: the whole output of the model.

    Returns:
        The response without its id. A time limit of math-verify gives status `timeout` and `correct` None.
    """
    from math_verify.errors import TimeoutException

    try:
        answer = _parse(text)
        golds = _parse_gold(gold)
        # math-verify compares every pair and stops at the first that is equal; done here so that an error in one pair cannot hide another.
        correct = any(_verify(one, other) for one in answer for other in golds)
    except TimeoutException:
        return {"status": "timeout", "correct": None, "extracted": None}
    extracted = _text_of(answer) if answer else None
    status = "bad_gold" if not golds else "answered" if answer else "no_answer"
    return {"status": status, "correct": correct, "extracted": extracted}


def _self_check() -> str | None:
    """What is wrong with the installation, or None; also compiles math-verify's patterns, so that no request pays for it."""
    try:
        result = judge("1/2", "$\\frac{1}{2}$")
    except ImportError as error:
        return f"math-verify cannot be imported: {error}"
    if not result["correct"]:
        return "math-verify does not read \\frac{1}{2}: antlr4-python3-runtime and latex2sympy2 do not fit together"
    return None


def _serve(requests: TextIO, responses: TextIO) -> None:
    for line in requests:
        request = json.loads(line)
        # The kernel ends this process at that processor time even inside a long C computation, and even if nobody is left to kill it.
        signal.setitimer(signal.ITIMER_PROF, request["cpu_s"])
        result = judge(request["gold"], request["text"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        responses.write(json.dumps({"id": request["id"], **result}) + "\n")
        responses.flush()


def main() -> int:
    """Greet, then answer requests from standard input until it ends."""
    # Libraries print now and then (ANTLR to standard output): the pipe is moved where they cannot reach it.
    responses = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    # Ctrl-C reaches the whole process group; the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard), hard))
    error = _self_check()
    responses.write(json.dumps({"ready": False, "error": error} if error else {"ready": True}) + "\n")
    responses.flush()
    if error:
        return 1
    _serve(sys.stdin, responses)
    return 0


if __name__ == "__main__":
    sys.exit(main())
