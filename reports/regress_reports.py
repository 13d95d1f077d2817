"""The verdicts of a comparison as text: Markdown for a step summary, JUnit XML, and JSON.

Whatever models wrote, and whatever names stand in records, is hostile: in Markdown it is escaped to plain text, in XML every character
that XML 1.0 forbids is named instead. This module must not compute statistics.
"""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import mr1_bench
from mr1_bench.reports.flip_kinds import flip_name, kind_of, most_frequent
from mr1_bench.reports.page_text import count, join
from mr1_bench.reports.provenance import model_label
from mr1_bench.reports.regression import exit_code
from mr1_bench.reports.verdicts import UNUSABLE, FlakyItem, Flip, ItemScore, Regression, Snapshot, State, TaskSnapshot, Verdict
from mr1_bench.reports.wording import amount
from mr1_bench.tables import p_value

MARKER = "mr1-bench regression"
"""Value of `kind` in `regression.json`: a folder that has it may be replaced."""
FORMAT = 1
MARKS: Mapping[State, str] = {
    "pass": "✓ pass",
    "improved": "▲ improved",
    "regressed": "▼ regressed",
    "inconclusive": "? inconclusive",
    "not-comparable": "≠ not comparable",
    "no-baseline": "∅ no baseline",
}
"""How a state is written: a sign that does without colour, and the word."""
_VERBS: Mapping[State, str] = {"no-baseline": "has ", "not-comparable": "is ", "inconclusive": "is "}
NOTHING = "nothing was compared that counts for it"
_NAMED = 3
"""Failing verdicts named in the first sentence."""
_LISTED = 10
"""Lost items named in a failing JUnit case."""
_EXCERPT = 240
"""Characters of an answer shown there: its end, where the answer stands."""
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\u200b": "&#8203;"}
# An underscore within a word, or a bracket alone, is no markup.
_MARKUP = re.compile(r"[\\`*~$|&<>\u200b]|(?<!\w)_|_(?!\w)|(?<=\])[(:\[]|^(?:\[|[-+](?= ))")
_LINKS = re.compile(r"[@#!](?=\w)|:(?=//|[\w+-]+:)|\bwww(?=\.)|\bmailto(?=:)", re.IGNORECASE)
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Name the characters that cannot be seen, turn the direction of text, or may not stand in XML: `⟨U+0007⟩`."""
    return _UNSEEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def one_line(text: str) -> str:
    """Make text visible and one line."""
    return " ".join(visible(text).split())


def markdown_text(text: str) -> str:
    """Escape text so that GitHub's and GitLab's Markdown show it as it is, on one line, without links, mentions or HTML.

    Both look for mentions, addresses and shortcodes after the markup was read, where escapes and entities are gone already: a space of no
    width after the sign is what keeps them from being found.
    """
    line = _LINKS.sub(lambda match: f"{match[0]}\u200b", one_line(text))
    return _MARKUP.sub(lambda match: _ENTITIES.get(match[0], f"\\{match[0]}"), line)


# --- numbers as text


def value_text(value: float | None, unit: str) -> str:
    """A value in its unit: `65.2 %`, `118 tokens`, `2,100 tokens/s`, `512 MiB`."""
    if value is None:
        return "–"
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "bytes":
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:,.4g} {unit}" if abs(value) < 1000 else f"{value:,.0f} {unit}"


def change_text(verdict: Verdict) -> str:
    """The difference with its interval: `−6.2 [−9.8, −2.6] points`, `+4 [+1, +7] tokens`; a dash where there is none."""
    if verdict.difference is None:
        return "–"
    ends = [amount(end, verdict.unit, sign=True, bare=True) for end in (verdict.low, verdict.high) if end is not None]
    interval = f" [{', '.join(ends)}]" if len(ends) == 2 else ""
    number, _, unit = amount(verdict.difference, verdict.unit, sign=True).partition(" ")
    return f"{number}{interval} {unit}"


def p_text(verdict: Verdict) -> str:
    """The p-value, corrected where it was: `0.034 (Holm)`; a dash where nothing was tested."""
    if verdict.p_holm is not None:
        return f"{p_value(verdict.p_holm)} (Holm)"
    return "–" if verdict.p is None else p_value(verdict.p)


def fails(verdict: Verdict, regression: Regression) -> bool:
    """Whether a verdict is one of those that make the exit code not 0."""
    return verdict.gates and verdict.state in regression.settings.fail_on


def outcome(regression: Regression) -> str:
    """One sentence for the top of every report: `The gate is closed: acc of mr1_gr_synth regressed by 6.2 points.`."""
    failing = [one for one in regression.verdicts if fails(one, regression)]
    if failing:
        more = [f"{count(len(failing) - _NAMED, 'more verdict')}"] if len(failing) > _NAMED else []
        return f"The gate is closed: {join([*map(_failed, failing[:_NAMED]), *more])}."
    gating = [one.state for one in regression.verdicts if one.gates]
    if all(state in UNUSABLE for state in gating):
        return f"The gate is {'closed' if exit_code(regression) else 'open'}: {NOTHING}."
    return f"The gate is open: {join([f'{gating.count(state)} {_word(state)}' for state in MARKS if state in gating])}."


def _word(state: State) -> str:
    return MARKS[state].split(" ", 1)[1]


def _failed(verdict: Verdict) -> str:
    size = f" by {amount(abs(verdict.difference), verdict.unit)}" if verdict.state == "regressed" and verdict.difference else ""
    return f"{verdict.metric} of {verdict.task} {_VERBS.get(verdict.state, '')}{_word(verdict.state)}{size}"


# --- what both sides are


def side_name(snapshot: Snapshot) -> str:
    """A side as a person names it: its label, else its model, with its commit."""
    name = snapshot.label or model_label(snapshot.model) or Path(snapshot.source).name
    return visible(f"{name} at {snapshot.commit[:12]}" if snapshot.commit else name)


def flips_with_kinds(regression: Regression) -> list[tuple[Flip, str]]:
    """Every flip with its kind."""

    def side(snapshot: Snapshot, task: str) -> TaskSnapshot | None:
        return next(iter(snapshot.tasks.get(task, ())), None)

    return [(one, kind_of(one, (side(regression.baseline, one.task), side(regression.current, one.task)))) for one in regression.flips]


def kinds_sentence(regression: Regression) -> list[str]:
    """One sentence a direction: how many items flipped, and the three most frequent kinds; empty where none did."""
    kinds = [(flip.direction, kind) for flip, kind in flips_with_kinds(regression)]
    sentences = []
    for direction, ranked in most_frequent(kinds).items():
        total = sum(way == direction for way, _ in kinds)
        if total:
            turned = "turned from right to wrong" if direction == "lost" else "turned from wrong to right"
            sentences.append(f"{count(total, 'item')} {turned}: {join([f'{one.name} {one.count}' for one in ranked])}.")
    return sentences


# --- Markdown


def markdown(regression: Regression) -> str:
    """The comparison as GitHub's Markdown for a step summary: one line a verdict, those that count for the gate first."""
    first = [one for one in regression.verdicts if one.gates or one.headline]
    rest = [one for one in regression.verdicts if one not in first]
    sides = f"{markdown_text(side_name(regression.current))} against {markdown_text(side_name(regression.baseline))}"
    lines = ["## mr1-bench regress", "", f"**{markdown_text(outcome(regression))}** {sides}.", ""]
    lines += _table(first) if first else []
    lines += [f"- {markdown_text(sentence)}" for sentence in kinds_sentence(regression)] + [""]
    if rest:
        lines += ["<details><summary>Verdicts that do not count for the gate</summary>", "", *_table(rest), "</details>", ""]
    if regression.flaky:
        lines += [f"- {count(len(regression.flaky), 'item')} keep{'s' if len(regression.flaky) == 1 else ''} turning over the history."]
    lines += [f"- {markdown_text(note)}" for note in regression.notes]
    settings = regression.settings
    matters = amount(settings.min_effect, "share", exact=True)
    lines += [
        "",
        f"<sub>Paired by item; smallest change of accuracy that matters {matters}, level {settings.alpha:g}, "
        f"bootstrap seed {settings.bootstrap_seed}; mr1-bench {mr1_bench.__version__}.</sub>",
        "",
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _table(verdicts: Sequence[Verdict]) -> list[str]:
    head = ["| Verdict | Task | Metric | Old | New | Difference, 95 % interval | n | p | Why |", "|---|---|---|--:|--:|--:|--:|--:|---|"]
    rows = []
    for one in verdicts:
        cells = [MARKS[one.state], one.task, one.metric, value_text(one.old, one.unit), value_text(one.new, one.unit), change_text(one)]
        cells += [f"{one.n:,}" if one.n else "–", p_text(one), one.why]
        mark, *others = map(markdown_text, cells)
        rows.append(f"| {' | '.join([f'**{mark}**' if one.state in ('regressed', 'improved') else mark, *others])} |")
    return [*head, *rows, ""]


# --- JUnit XML


def junit_xml(regression: Regression) -> str:
    """The comparison as JUnit XML: one suite a task, one case a verdict.

    A verdict that fails the gate is a `failure`, or an `error` where none was reached (`not-comparable`, `no-baseline`). Any other that is
    neither `pass` nor `improved` is `skipped`, with its state in the message: a CI that reads this file and the exit code agree.
    """
    root = ET.Element("testsuites", name="mr1-bench regress")
    totals = dict.fromkeys(("tests", "failures", "errors"), 0)
    for task in dict.fromkeys(one.task for one in regression.verdicts):
        suite = ET.SubElement(root, "testsuite", name=visible(task), time="0")
        if (stamp := _timestamp(regression.current.created)) is not None:
            suite.set("timestamp", stamp)
        _properties(suite, regression, task)
        cases = [_case(suite, one, regression) for one in regression.verdicts if one.task == task]
        _count(suite, cases, totals)
    if exit_code(regression) and not any(fails(one, regression) for one in regression.verdicts):
        suite = ET.SubElement(root, "testsuite", name="mr1-bench", time="0")
        case = ET.SubElement(suite, "testcase", classname="mr1-bench", name="gate", time="0")
        ET.SubElement(case, "error", message=NOTHING, type="no-baseline").text = outcome(regression)
        _count(suite, ["error"], totals)
    for name, number in totals.items():
        root.set(name, str(number))
    root.set("time", "0")
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _count(suite: ET.Element, cases: Sequence[str], totals: dict[str, int]) -> None:
    """Write how many cases became what, and add that up."""
    counted = {"tests": len(cases), "failures": cases.count("failure"), "errors": cases.count("error"), "skipped": cases.count("skipped")}
    for name, number in counted.items():
        suite.set(name, str(number))
    for name in totals:
        totals[name] += counted[name]


def _timestamp(created: str) -> str | None:
    try:
        return datetime.fromisoformat(created).replace(tzinfo=None, microsecond=0).isoformat()
    except ValueError:
        return None


def _properties(suite: ET.Element, regression: Regression, task: str) -> None:
    properties = ET.SubElement(suite, "properties")
    for name, snapshot in (("baseline", regression.baseline), ("current", regression.current)):
        known = {"name": side_name(snapshot), "model": model_label(snapshot.model), "weights": snapshot.weights, "commit": snapshot.commit}
        seeds = [one.seed for one in snapshot.tasks.get(task, ()) if one.seed is not None]
        known["seeds"] = ", ".join(map(str, seeds))
        for key, value in known.items():
            if value:
                ET.SubElement(properties, "property", name=f"{name}.{key}", value=visible(value))


def _case(suite: ET.Element, verdict: Verdict, regression: Regression) -> str:
    """Add a case; returns the name of what it became."""
    case = ET.SubElement(suite, "testcase", classname=f"mr1-bench.{visible(verdict.task)}", name=visible(verdict.metric), time="0")
    numbers = (
        f"{value_text(verdict.old, verdict.unit)} → {value_text(verdict.new, verdict.unit)}, {change_text(verdict)}, "
        f"n = {verdict.n:,}, p {p_text(verdict)}{f', {verdict.test}' if verdict.test else ''}"
    )
    kind = _element_of(verdict, regression)
    if kind == "passed":
        ET.SubElement(case, "system-out").text = visible(f"{MARKS[verdict.state]}: {verdict.why}\n{numbers}")
        return kind
    why_not = "allowed by the settings" if verdict.gates else "which does not count for the gate"
    aside = "" if kind != "skipped" or verdict.state == "inconclusive" else f"{MARKS[verdict.state]}, {why_not}: "
    found = ET.SubElement(case, kind, message=one_line(f"{aside}{verdict.why}"))
    if kind != "skipped":
        found.set("type", verdict.state)
    lines = [f"{MARKS[verdict.state]}: {verdict.why}", numbers]
    lines += [f"{name}: {old} in the baseline, {new} now" for name, old, new in verdict.differs]
    if kind == "failure" and verdict.metric == "acc":
        lines += _lost_items(verdict.task, regression)
    found.text = visible("\n".join(lines))
    return kind


def _element_of(verdict: Verdict, regression: Regression) -> str:
    if fails(verdict, regression):
        return "error" if verdict.state in ("not-comparable", "no-baseline") else "failure"
    return "passed" if verdict.state in ("pass", "improved") else "skipped"


def _lost_items(task: str, regression: Regression) -> list[str]:
    lost = [(flip, kind) for flip, kind in flips_with_kinds(regression) if flip.task == task and flip.direction == "lost"]
    lines = ["", f"{count(len(lost), 'item')} turned from right to wrong{':' if lost else '.'}"]
    for flip, kind in lost[:_LISTED]:
        text = flip.new.text
        wrote = "(text not kept)" if text is None else f"…{text[-_EXCERPT:]}" if len(text) > _EXCERPT else text
        lines.append(f"- {item_name(flip.new)} ({flip_name(kind, 'lost')}), gold {flip.new.gold}: {wrote}")
    return [*lines, f"… and {len(lost) - _LISTED} more"] if len(lost) > _LISTED else lines


def item_name(item: ItemScore | FlakyItem) -> str:
    """An item's own name, or its position."""
    return item.item or f"item {item.doc_id}"


# --- JSON


def regression_json(regression: Regression) -> dict[str, Any]:
    """Everything that was found, as JSON: settings, both sides without their items, verdicts, flips with both answers, flaky items."""
    kinds = flips_with_kinds(regression)
    ranked = most_frequent((flip.direction, kind) for flip, kind in kinds)
    return {
        "kind": MARKER,
        "format": FORMAT,
        "version": mr1_bench.__version__,
        "exit_code": exit_code(regression),
        "outcome": outcome(regression),
        "baseline": _side(regression.baseline),
        "current": _side(regression.current),
        "settings": dataclasses.asdict(regression.settings),
        "verdicts": [dataclasses.asdict(one) for one in regression.verdicts],
        "flip_kinds": {direction: [dataclasses.asdict(one) for one in ones] for direction, ones in ranked.items()},
        "flips": [dataclasses.asdict(flip) | {"kind": kind} for flip, kind in kinds],
        "flaky": [dataclasses.asdict(one) for one in regression.flaky],
        "notes": list(regression.notes),
    }


def _side(snapshot: Snapshot) -> dict[str, Any]:
    """One side without its items, and without the folders of the machine it was made on."""
    head = {"name": side_name(snapshot), "model": model_label(snapshot.model), "weights": snapshot.weights}
    head |= {"created": snapshot.created, "commit": snapshot.commit, "label": snapshot.label, "source": Path(snapshot.source).name}
    tasks = {
        task: [
            {
                "n": len(one.items),
                "identity": dict(one.identity),
                "means": dict(one.means),
                "measures": dict(one.measures),
                "engine": one.engine,
                "seed": one.seed,
                "repeats": one.repeats,
                "weights": one.weights,
            }
            for one in snapshots
        ]
        for task, snapshots in snapshot.tasks.items()
    }
    return {**head, "tasks": tasks}
