"""Answers on disk as they come, so that an evaluation killed at any moment goes on where it was.

The journal is a JSON-lines file whose first line holds the evaluation's identity: checkpoint contents, data, prompts and decoding. Under
another identity it is refused, so an answer of other weights or another prompt can never be served.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mr1_bench.errors import UserError
from mr1_bench.tasks.ranks import Ranks, ShareDone

Answer = dict[str, Any]
"""`{"text": str, "tokens": int}`: an answer and its length in tokens."""


def request_key(request: Any, occurrence: int) -> str:
    """Return what one lmms-eval request asks: task, item, which repeat of it, and the prompt text's hash."""
    prompt, task, doc_id = request.args[0], request.task_name, request.doc_id
    return f"{task}/{doc_id}/{occurrence}/{hashlib.sha256(prompt.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


class Journal:
    """The answers of one evaluation so far."""

    def __init__(self, path: Path, identity: str) -> None:
        """Open a journal, or begin one.

        Raises:
            UserError: the file belongs to another evaluation, or another process is writing it.
        """
        self.path = path
        self.answers: dict[str, Answer] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the kernel when the process ends, however it ends
            self._read(identity)
        except BlockingIOError:
            self._file.close()
            raise UserError(f"another process is writing {path}: wait for it, or stop it, then run this again") from None
        except UserError:
            self._file.close()
            raise

    def _read(self, identity: str) -> None:
        """Take over what an earlier process wrote, up to its last whole line."""
        self._file.seek(0)
        lines = self._file.readlines()
        kept = b""
        for number, line in enumerate(lines):
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except json.JSONDecodeError:
                row = None
            if row is None:  # the process was killed in the middle of this line
                break
            if number == 0 and row.get("identity") != identity:
                raise UserError(
                    f"{self.path} belongs to another evaluation (other weights, data, prompt or decoding); choose another --out or --name"
                )
            self.answers.update(row.get("answers", {}))
            kept += line
        self._file.truncate(len(kept))
        if not kept:
            self._append({"identity": identity})

    def _append(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()

    def add(self, answers: dict[str, Answer]) -> None:
        """Record some answers, all of them or none."""
        self.answers.update(answers)
        self._append({"answers": answers})

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _keys(requests: Sequence[Any]) -> list[str]:
    seen: Counter[int] = Counter()
    keys = []
    for request in requests:
        keys.append(request_key(request, seen[id(request)]))
        seen[id(request)] += 1
    return keys


def _by_task(requests: Sequence[Any]) -> list[list[Any]]:
    """Split requests where the task changes: lmms-eval's qwen2_vl takes the pictures of a batch all from the task of its first request."""
    return [list(alike) for _, alike in itertools.groupby(requests, key=lambda request: request.task_name)]


def journaled(
    generate: Callable[[Sequence[Any]], list[str]],
    journal: Journal | None,
    *,
    chunk: int,
    seed_all: Callable[[str], None],
    count_tokens: Callable[[str], int],
    advance: Callable[[int, bool], None],
    ranks: Ranks | None = None,
) -> Callable[[Sequence[Any]], list[str]]:
    """Wrap a model's `generate_until`: answers come from the journal where it has them, and go there as they are made.

    Requests are answered in fixed chunks, each with a random state of its own, so that an evaluation that was interrupted or shared among
    processes, sampled or greedy, gives the answers of one that was not.

    Args:
        generate: answers some requests, in order.
        journal: where answers are kept; None in a process that hands its answers to the first one.
        chunk: requests a call of `generate`.
        seed_all: seeds every random generator from a text.
        count_tokens: length of an answer in tokens.
        advance: called after each chunk with its size and whether it came from the journal.
        ranks: the processes among which the chunks are divided.

    Raises:
        ShareDone: by what is returned, where there is no journal and this process's share is done.
    """
    from lmms_eval.api.instance import unwrap_generation_output

    ranks = ranks or Ranks()
    lock = threading.Lock()

    def keep(_: int, answers: dict[str, Answer]) -> None:
        if journal is not None:
            with lock:
                journal.add(answers)
                advance(len(answers), False)

    def generate_until(requests: Sequence[Any]) -> list[str]:
        keys = _keys(requests)
        parts = [keys[start : start + chunk] for start in range(0, len(keys), chunk)]
        ranks.agree("questions and prompts", hashlib.sha256("\n".join(keys).encode()).hexdigest())
        known = journal.answers if journal is not None else {}
        missing = [number for number, part in enumerate(parts) if not all(key in known for key in part)]
        for number in set(range(len(parts))).difference(missing):
            advance(len(parts[number]), True)
        for number in ranks.divide(missing, keep):
            part = parts[number]
            seed_all(part[0])
            outputs = [one for alike in _by_task(requests[number * chunk : number * chunk + len(part)]) for one in generate(alike)]
            texts = [unwrap_generation_output(output)[0] for output in outputs]
            ranks.hand_in(number, {key: {"text": text, "tokens": count_tokens(text)} for key, text in zip(part, texts, strict=True)})
        if journal is None:
            raise ShareDone
        return [str(journal.answers[key]["text"]) for key in keys]

    return generate_until
