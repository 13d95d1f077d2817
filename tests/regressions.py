"""Comparisons for tests of the views: verdicts of every state, and flipped items of every kind, with hostile texts and names."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mr1_bench import prompts
from mr1_bench.reports.verdicts import (
    FlakyItem,
    Flip,
    HistoryEntry,
    HistoryTask,
    ItemScore,
    Regression,
    Settings,
    Snapshot,
    TaskSnapshot,
    Verdict,
)
from mr1_bench.specs import get_spec
from tests.study_answers import fake_hash, item_of

VC, GR = "mr1_vc_synth", "mr1_gr_synth"
HOSTILE = (
    '<think></script><script>parent.owned = window.owned = 1</script><img src=x onerror="window.owned = 1">'
    "\u2028\u202e\x00\x07\x1b[31m]]>--><!--<![CDATA[ &amp; \ud800 \ufffe\uffff</think><svg onload=window.owned=1><b>17</b>"
)
NASTY_NAME = "a|b`<img src=x onerror=alert(1)> [x](javascript:alert(1)) @someone https://evil.example \x07]]>"
ANSWERS = {
    "format": "So the answer is 4, clearly.",
    "cut off": "<think>one two three four five",
    "value": prompts.worked_answer("Counted wrongly.", "97"),
    "refusal": "<think>Hm.</think> <answer>I'm sorry, I cannot determine this.</answer>",
    "empty": " \n",
    "unreadable": prompts.worked_answer("No idea.", "blue or so"),
    "unit": prompts.worked_answer("In centimetres.", "{gold}cm"),
}
"""Wrong answers by the kind of flip that they are."""
LIMIT = 64


def task_snapshot(task: str, items: Sequence[ItemScore] = ()) -> TaskSnapshot:
    decoding = {"max_new_tokens": LIMIT, "temperature": 0.0, "top_p": 1.0}
    identity = {"dataset_sha256": fake_hash("data", task), "prompt_sha256": fake_hash("prompt", task), "decoding": decoding}
    means = {"acc": sum(one.scores["acc"] for one in items) / len(items)} if items else {}
    return TaskSnapshot(identity, tuple(items), means, {"tokens_per_s": 2000.0}, "qwen2_vl, device cpu", 0)


def item(task: str, index: int, right: bool, kind: str = "value", *, keep: bool = True) -> ItemScore:
    """One item answered rightly, or wrongly in one of the ways of `ANSWERS`."""
    real = item_of(task, index)
    text = prompts.worked_answer(real.solution, real.gold) if right else ANSWERS[kind].replace("{gold}", real.gold.rstrip("°"))
    tagged = "<answer>" in text
    value = real.gold.rstrip("°") if right else {"value": "97", "unit": real.gold.rstrip("°")}.get(kind)
    scores = {"acc": float(right), "acc_r1v": float(right), "format": float(tagged), "answered": float(tagged)}
    tokens = float(LIMIT if kind == "cut off" and not right else 20)
    return ItemScore(index, real.id, real.gold, text if keep else None, scores, value, tokens)


def flip(task: str, index: int, direction: str, kind: str, *, keep: bool = True) -> Flip:
    right, wrong = item(task, index, True, keep=keep), item(task, index, False, kind, keep=keep)
    return Flip(task, "lost", right, wrong) if direction == "lost" else Flip(task, "won", wrong, right)


VERDICTS = (
    Verdict(
        GR,
        "acc",
        "regressed",
        "fell by 6.2 points, more than noise explains",
        True,
        True,
        tolerance=0.01,
        old=0.64,
        new=0.578,
        difference=-0.062,
        low=-0.093,
        high=-0.031,
        n=600,
        p=0.0001,
        p_holm=0.0002,
        test="exact McNemar",
        detectable=0.04,
        lost=61,
        won=24,
    ),
    Verdict(
        VC,
        "acc",
        "inconclusive",
        "600 items show drops from 4.1 points on; 9,800 would do for 1 point",
        True,
        True,
        tolerance=0.01,
        old=0.61,
        new=0.6,
        difference=-0.01,
        low=-0.033,
        high=0.0131,
        n=600,
        p=0.48,
        p_holm=0.48,
        test="exact McNemar",
        detectable=0.041,
        needed=9800,
    ),
    Verdict(
        GR,
        "format",
        "pass",
        "did not fall",
        False,
        True,
        tolerance=0.01,
        old=0.97,
        new=0.975,
        difference=0.005,
        low=-0.004,
        high=0.014,
        n=600,
        p=0.4,
    ),
    Verdict(
        VC,
        "format",
        "improved",
        "rose by 4 points",
        False,
        True,
        tolerance=0.01,
        old=0.93,
        new=0.97,
        difference=0.04,
        low=0.02,
        high=0.06,
        n=600,
        p=0.001,
    ),
    Verdict(
        "mr1_gr_synth_l3",
        "acc",
        "not-comparable",
        "another prompt was asked; evaluate the baseline again",
        True,
        True,
        old=0.4,
        new=0.41,
        differs=(("prompt", "a" * 64, "b" * 64),),
    ),
    Verdict("mr1_vc_synth_l2", "acc", "no-baseline", "the baseline does not have this task: save a new one", True, True, new=0.5),
    Verdict(GR, "tokens_per_s", "regressed", "fell by 30 %", unit="tokens/s", tolerance=0.2, old=2000.0, new=1400.0, difference=-600.0),
    Verdict(
        GR,
        "tokens",
        "pass",
        "answers are as long",
        unit="tokens",
        better="lower",
        tolerance=0.1,
        old=31.4,
        new=32.0,
        difference=0.6,
        low=-0.3,
        high=1.5,
        n=600,
        p=0.2,
    ),
    Verdict(
        VC,
        "peak_memory_bytes",
        "pass",
        "within 10 %",
        unit="bytes",
        better="lower",
        tolerance=0.1,
        old=2.0**30,
        new=1.02 * 2**30,
        difference=0.02 * 2**30,
    ),
)


def make_regression(*, hostile: bool = False, keep: bool = True, verdicts: Sequence[Verdict] = VERDICTS, flips: int = 40) -> Regression:
    """A comparison with every state, `flips` flips and a flaky item; hostile in every recorded text if wanted."""
    kinds = ["value", "format", "value", "cut off", "format", "value", "refusal", "unreadable", "empty"]
    found = [flip(GR, index, "lost" if index < 0.7 * flips else "won", kinds[index % len(kinds)], keep=keep) for index in range(flips)]
    if hostile:
        bad = ItemScore(700, NASTY_NAME, NASTY_NAME, HOSTILE, {"acc": 0.0, "answered": 0.0}, HOSTILE, 20)
        good = ItemScore(700, NASTY_NAME, NASTY_NAME, HOSTILE + "<answer>1</answer>", {"acc": 1.0, "answered": 1.0}, "1", 20)
        found.insert(0, Flip("mr1_gr_synth", "lost", good, bad))
        verdicts = [
            *verdicts,
            Verdict(NASTY_NAME, "acc", "regressed", NASTY_NAME + HOSTILE, True, True, old=0.5, new=0.4, difference=-0.1, n=9),
        ]
    found.sort(key=lambda one: (one.direction, one.task, one.old.doc_id))
    name = NASTY_NAME if hostile else "tiny"
    sides = []
    for label, weights in (("main", "old"), ("", "new")):
        tasks = {task: (task_snapshot(task),) for task in (VC, GR)}
        sides.append(
            Snapshot(
                f"/somewhere/secret/{label or 'run'}",
                f"/home/someone/{name}",
                fake_hash(weights),
                "2026-01-02T03:04:05+00:00",
                tasks,
                commit=fake_hash("commit", weights)[:40],
                label=label,
            )
        )
    flaky = (FlakyItem(GR, 17, NASTY_NAME if hostile else item_of(GR, 17).id, item_of(GR, 17).gold, 9, 5, 6),)
    notes = ("The engine is recorded on neither side.", *([HOSTILE] if hostile else []))
    return Regression(sides[0], sides[1], tuple(verdicts), tuple(found), flaky, Settings(), notes)


def make_history(
    truth: Sequence[float], *, n: int = 600, wobble: float = 0.0, seed: int = 0, task: str = GR, asked: Sequence[str] | None = None
) -> list[HistoryEntry]:
    """Versions with true accuracies `truth` on the same items, some harder than others, each off by a normal wobble."""
    draw = random.Random(f"{seed}-{task}")
    hard = [draw.gauss(0, 0.2) for _ in range(n)]
    entries = []
    for index, true in enumerate(truth):
        level = true + draw.gauss(0, wobble)
        scores = tuple(float(draw.random() < min(1.0, max(0.0, level + one))) for one in hard)
        means = {"acc": sum(scores) / n}
        one = HistoryTask(n, asked[index] if asked else "same", means, {"acc": scores})
        entries.append(
            HistoryEntry(
                fake_hash("commit", index), f"2026-01-{index % 28 + 1:02d}T00:00:00+00:00", "tiny", fake_hash(index), "", {task: one}
            )
        )
    return entries


__all__ = ["get_spec", "make_history", "make_regression"]
