"""Answers for made studies: real items of the embedded tasks, texts in the think/answer form, verdicts drawn around a true accuracy."""

from __future__ import annotations

import hashlib
import random
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist

from mr1_bench import prompts
from mr1_bench.reports.study import Answer, Result
from mr1_bench.specs import get_spec
from mr1_bench.synth import SynthItem, make_item

_NORMAL = NormalDist()


def fake_hash(*parts: object) -> str:
    """A hash that stands for one of contents."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


def seeded(*parts: object) -> random.Random:
    """A source of draws that are the same every time."""
    return random.Random(fake_hash(*parts))


@lru_cache(maxsize=20_000)
def item_of(task: str, index: int) -> SynthItem:
    """An item of a task; those of the real tasks are generated ones of level 1."""
    spec = get_spec(task)
    return make_item(spec.family, "test", spec.level or 1, index)


@lru_cache(maxsize=32)
def _hardness(task: str, n: int) -> tuple[float, ...]:
    """How hard each item is for every checkpoint alike, standard normal; that is what makes answers of two checkpoints hang together."""
    draw = seeded("hard", task)
    return tuple(draw.gauss(0, 1) for _ in range(n))


def _wrong(item: SynthItem, draw: random.Random) -> str:
    number = item.gold.rstrip("°")
    if number.isdigit():
        shifted = int(number) + draw.choice((-2, -1, 1, 2) if item.id.startswith("vc") else (-20, -10, 10, 18))
        return f"{abs(shifted) if shifted != -int(number) else 99}{item.gold[len(number) :]}"
    return "17"


def make_answers(task: str, n: int, accuracy: float, *, name: str, form: float = 1.0, hostile: bool = False) -> tuple[Answer, ...]:
    """Draw a checkpoint's answers to the first n items of a task.

    Args:
        task: full name of the task.
        n: number of items.
        accuracy: true share of right answers (of those in form).
        name: seeds the draws.
        form: true share of answers in the think/answer form; the others have no tags and count as wrong for `acc`.
        hostile: put HTML, script and control characters into every tenth answer.
    """
    draw = seeded("answers", name, task)
    limit = _NORMAL.inv_cdf(min(max(accuracy, 1e-9), 1 - 1e-9))
    tagged = get_spec(task).tagged
    answers = []
    for index, hard in enumerate(_hardness(task, n)):
        item = item_of(task, index)
        right = 0.7 * hard + 0.51**0.5 * draw.gauss(0, 1) < limit
        in_form = draw.random() < form
        value = item.gold if right else _wrong(item, draw)
        worked = item.solution.removesuffix(".").removesuffix(item.gold) + f"{value}."
        if hostile and index % 10 == 0:
            worked = f"<script>alert({index})</script><img src=x onerror=alert(1)> [go](javascript:alert(2)) </div>\u2028\x07 {worked}"
        text = prompts.worked_answer(worked, value) if in_form else worked
        if not tagged:
            text = value
        # The published grader misses a few right answers, and credits a few whose tags are broken.
        right_r1v = (right and index % 23 != 5) if in_form else (right and item.id.startswith("gr"))
        scores = {"acc": float(right and in_form), "answered": float(in_form)}
        if tagged:
            scores |= {"format": float(in_form), "acc_r1v": float(right_r1v)}
        real = not get_spec(task).synthetic
        answers.append(
            Answer(
                doc_id=index,
                item=f"{get_spec(task).data}-test-{index:06d}" if real else item.id,
                gold=item.gold,
                text=text,
                scores=scores,
                value=value.rstrip("°") if in_form else None,
                value_r1v=value.rstrip("°") if in_form or item.id.startswith("gr") else None,
                tokens=max(4, len(text) // 3),
            )
        )
    return tuple(answers)


def make_result(folder: Path, task: str, answers: tuple[Answer, ...]) -> Result:
    """Wrap answers as an evaluation of ours."""
    spec = get_spec(task)
    names = dict.fromkeys(metric for answer in answers for metric in answer.scores)
    means = {}
    for metric in names:
        values = [answer.scores[metric] for answer in answers if metric in answer.scores]
        means[metric] = sum(values) / len(values)
    n = len(answers)
    identity = {
        "dataset_sha256": fake_hash("data", task),
        "pixels_sha256": fake_hash("pixels") if spec.synthetic else None,
        "prompt_sha256": prompts.prompt_hash(spec.prompt),
        "decoding": {"max_new_tokens": spec.max_new_tokens, "temperature": 0.0, "top_p": 1.0},
        "limit": None if n == spec.size else n,
        "backend": "qwen2_vl",
        "max_pixels": None,
        "code_sha256": fake_hash("code"),
    }
    return Result(task, folder, answers, means, identity, engine="qwen2_vl, device cpu, batch_size 100", tokens_per_s=2000.0)
