"""Answers on disk as they come, so that an evaluation killed at any moment goes on where it was.

The journal is a JSON-lines file whose first line holds the evaluation's identity: checkpoint contents, data, prompts and decoding. Under
another identity it is refused, so an answer of other weights or another prompt can never be served.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mr1_bench.errors import UserError

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


def journaled(
    generate: Callable[[Sequence[Any]], list[str]],
    journal: Journal,
    *,
    chunk: int,
    seed_all: Callable[[str], None],
    count_tokens: Callable[[str], int],
    advance: Callable[[int, bool], None],
) -> Callable[[Sequence[Any]], list[str]]:
    """Wrap a model's `generate_until`: answers come from the journal where it has them, and go there as they are made.

    Requests are answered in fixed chunks, each with a random state of its own, so that an evaluation that was interrupted, sampled or
    greedy, gives the answers of one that was not.

    Args:
        generate: answers some requests, in order.
        journal: where answers are kept.
        chunk: requests a call of `generate`.
        seed_all: seeds every random generator from a text.
        count_tokens: length of an answer in tokens.
        advance: called after each chunk with its size and whether it came from the journal.
    """
    from lmms_eval.api.instance import unwrap_generation_output

    def generate_until(requests: Sequence[Any]) -> list[str]:
        seen: Counter[int] = Counter()
        keys = []
        for request in requests:
            keys.append(request_key(request, seen[id(request)]))
            seen[id(request)] += 1
        for start in range(0, len(requests), chunk):
            part = keys[start : start + chunk]
            if not all(key in journal.answers for key in part):
                seed_all(part[0])
                texts = [unwrap_generation_output(output)[0] for output in generate(requests[start : start + chunk])]
                journal.add({key: {"text": text, "tokens": count_tokens(text)} for key, text in zip(part, texts, strict=True)})
                advance(len(part), False)
            else:
                advance(len(part), True)
        return [str(journal.answers[key]["text"]) for key in keys]

    return generate_until
