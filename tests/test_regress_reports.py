"""The reports of a comparison as Markdown, JUnit XML and JSON: what they say, and that hostile text stays text in each."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mr1_bench.reports import regress_page
from mr1_bench.reports import regress_reports as reports
from mr1_bench.reports.flip_kinds import KIND_NAMES, kind_of, most_frequent
from mr1_bench.reports.regress_files import write_reports
from mr1_bench.reports.regression import compare, exit_code
from mr1_bench.reports.verdicts import STATES, Regression, Settings, State, Verdict
from mr1_bench.reports.wording import amount, explain_measure, explain_verdict
from tests.regressions import ANSWERS, GR, HOSTILE, LIMIT, NASTY_NAME, VERDICTS, flip, make_regression, task_snapshot

SECRETS = ("/somewhere", "secret", "/home/someone")
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
SPACE = "\u200b"
"""Of no width; keeps what hosts look for after the markup was read from being found."""
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


# --- Markdown


def cells(text: str) -> list[list[str]]:
    """The body rows of all tables as a Markdown reader sees them."""
    rows: list[list[str]] = []
    tokens = MARKDOWN.parse(text)
    for token, inner in itertools.pairwise(tokens):
        if token.type == "tr_open":
            rows.append([])
        if token.type == "td_open":
            rows[-1].append("".join(child.content for child in inner.children or []))
    return [row for row in rows if row]


def test_markdown_has_one_line_a_verdict_with_every_number() -> None:
    text = reports.markdown(make_regression())
    rows = cells(text)
    assert len(rows) == len(VERDICTS) and {len(row) for row in rows} == {9}
    assert rows[0][1:] == [
        GR,
        "acc",
        "64.0 %",
        "57.8 %",
        "−6.2 [−9.3, −3.1] points",
        "600",
        "0.0002 (Holm)",
        "fell by 6.2 points, more than noise explains",
    ]
    assert [row[0] for row in rows[:6]] == [
        "▼ regressed",
        "? inconclusive",
        "✓ pass",
        "▲ improved",
        "≠ not comparable",
        "∅ no baseline",
    ]
    gating, _, rest = text.partition("<details>")
    assert "tokens_per_s" not in gating and "tokens_per_s" in rest  # what does not count stands apart


@pytest.mark.parametrize("gates", [True, False])
@pytest.mark.parametrize("fail_on", [(), *((state,) for state in STATES)])
def test_the_outcome_says_what_the_exit_code_does(gates: bool, fail_on: tuple[State, ...]) -> None:
    found = make_regression()
    verdicts = tuple(dataclasses.replace(one, gates=one.gates and gates) for one in found.verdicts)
    found = dataclasses.replace(found, verdicts=verdicts, settings=Settings(fail_on=fail_on))
    assert ("closed" in reports.outcome(found)) == (exit_code(found) != 0) == bool(fail_on)
    assert gates or reports.NOTHING in reports.outcome(found)


def test_markdown_says_the_outcome_and_the_three_most_frequent_kinds_first() -> None:
    lines = reports.markdown(make_regression()).splitlines()
    assert lines[2].startswith(
        "**The gate is closed: acc of mr1_gr_synth regressed by 6.2 points, acc of mr1_gr_synth_l3 is not comparable and"
    )
    assert "- 28 items turned from right to wrong: wrong value 10, format lost 6 and empty output 3." in lines
    assert "- 12 items turned from wrong to right: value put right 4, format regained 3 and no longer cut off 2." in lines


def test_hostile_text_is_neither_html_nor_link_nor_cell_in_markdown() -> None:
    text = reports.markdown(make_regression(hostile=True))
    inner = [child for token in MARKDOWN.parse(text) for child in [token, *(token.children or [])]]
    assert not [one for one in inner if one.type in ("link_open", "image", "code_inline", "fence", "code_block")]
    html = "".join(one.content for one in inner if one.type.startswith("html"))
    assert not re.sub(r"</?(?:details|summary|sub)>|Verdicts that do not count for the gate|\s", "", html)
    rows = cells(text)
    assert {len(row) for row in rows} == {9}
    assert reports.visible(NASTY_NAME) in [row[1].replace(SPACE, "") for row in rows]


@given(
    st.one_of(
        st.text(st.characters(), max_size=60), st.text("[](){}<>@#!*_`~|\\&;:/.-+=$ wa1\n", max_size=60), st.just(NASTY_NAME + HOSTILE)
    )
)
def test_markdown_text_reads_as_it_was(text: str) -> None:
    expected = " ".join(reports.visible(text).split())
    for begin in ("a ", "- "):
        tokens = MARKDOWN.parse(begin + reports.markdown_text(text))
        shown = [child for token in tokens for child in token.children or []]
        assert {child.type for child in shown} <= {"text", "text_special"}
        plain = "".join(child.content for child in shown)
        assert not re.search(r"[@#!]\w|://|\bwww\.|\bmailto:|:[\w+-]+:", plain)
        assert begin == "- " or plain.replace(SPACE, "").removeprefix("a").strip() == expected


@pytest.mark.parametrize(
    "text", ["@someone", "see #12 and !3", "a@b.example", "https://a.example", "www.a.example", ":smile:", "mailto:a@b"]
)
def test_what_hosts_look_for_after_the_markup_is_taken_apart(text: str) -> None:
    assert "&#8203;" in reports.markdown_text(text)


# --- JUnit XML

ALLOWED: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": ({"testsuite"}, set(), {"name", "tests", "failures", "errors", "time"}),
    "testsuite": (
        {"properties", "testcase"},
        {"name", "tests", "failures", "errors"},
        {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"},
    ),
    "properties": ({"property"}, set(), set()),
    "property": (set(), {"name", "value"}, {"name", "value"}),
    "testcase": ({"failure", "error", "skipped", "system-out"}, {"name", "classname"}, {"name", "classname", "time"}),
    "failure": (set(), {"message"}, {"message", "type"}),
    "error": (set(), {"message"}, {"message", "type"}),
    "skipped": (set(), {"message"}, {"message", "type"}),
    "system-out": (set(), set(), set()),
}
"""Element -> children, attributes it must have, attributes it may have: what GitHub's, GitLab's and Jenkins' readers have in common."""


def check_junit(text: str) -> ET.Element:
    """Check a file against `ALLOWED` and its own counts; returns the root."""
    assert not NOT_XML.search(text)
    root = ET.fromstring(text.encode())
    assert root.tag == "testsuites"
    for element in root.iter():
        children, required, allowed = ALLOWED[element.tag]
        assert {child.tag for child in element} <= children
        assert required <= set(element.attrib) <= allowed
        if element.tag == "testcase":
            assert len(element) == 1  # one outcome a case
    for suite in root:
        found = {"tests": len(suite.findall("testcase"))}
        found |= {f"{name}s": len(suite.findall(f"testcase/{name}")) for name in ("failure", "error")}
        assert found | {"skipped": len(suite.findall("testcase/skipped"))} == {
            name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")
        }
    for name in ("tests", "failures", "errors"):
        assert int(root.attrib[name]) == sum(int(suite.attrib[name]) for suite in root)
    cases = [(case.get("classname"), case.get("name")) for case in root.iter("testcase")]
    assert len(set(cases)) == len(cases)
    return root


def outcome_of(root: ET.Element, task: str, metric: str) -> ET.Element:
    case = root.find(f"testsuite[@name='{task}']/testcase[@name='{metric}']")
    assert case is not None
    return case[0]


def test_junit_has_one_case_a_verdict() -> None:
    root = check_junit(reports.junit_xml(make_regression()))
    assert len(list(root.iter("testcase"))) == len(VERDICTS)
    failed = outcome_of(root, GR, "acc")
    assert failed.tag == "failure" and failed.get("type") == "regressed" and failed.get("message") == VERDICTS[0].why
    assert "−6.2 [−9.3, −3.1] points" in (failed.text or "") and "28 items turned from right to wrong:" in (failed.text or "")
    assert (failed.text or "").count("(wrong value), gold") > 1 and "… and 18 more" in (failed.text or "")
    assert outcome_of(root, "mr1_gr_synth_l3", "acc").tag == "error"
    assert outcome_of(root, "mr1_vc_synth_l2", "acc").tag == "error"
    assert outcome_of(root, "mr1_vc_synth", "acc").tag == "skipped"
    assert outcome_of(root, GR, "format").tag == "system-out"
    assert "does not count for the gate" in outcome_of(root, GR, "tokens_per_s").attrib["message"]


@pytest.mark.parametrize("fail_on", [(), ("regressed",), ("regressed", "inconclusive", "not-comparable", "no-baseline"), STATES])
def test_junit_and_the_exit_code_agree(fail_on: tuple[Any, ...]) -> None:
    for state, gates in itertools.product(STATES, (True, False)):
        verdict = Verdict(GR, "acc", state, "so", True, gates, old=0.5, new=0.4, difference=-0.1, n=10)
        one = dataclasses.replace(make_regression(verdicts=[verdict], flips=3), settings=Settings(fail_on=fail_on))
        root = check_junit(reports.junit_xml(one))
        bad = int(root.attrib["failures"]) + int(root.attrib["errors"])
        assert (bad > 0) == (exit_code(one) != 0) == reports.outcome(one).startswith("The gate is closed")


def test_nothing_compared_is_an_error_everywhere() -> None:
    empty = compare(*(dataclasses.replace(side, tasks={}) for side in (make_regression().baseline, make_regression().current)))
    assert exit_code(empty) == 2
    assert check_junit(reports.junit_xml(empty)).attrib["errors"] == "1"
    assert reports.outcome(empty) == "The gate is closed: nothing was compared that counts for it."
    assert "nothing was compared" in reports.markdown(empty)
    assert reports.regression_json(empty)["exit_code"] == 2


@given(st.text(st.characters(), max_size=80))
def test_any_text_is_legal_xml_and_comes_back(text: str) -> None:
    verdict = Verdict(f"t{text}", f"m{text}", "regressed", f"w{text}", True, True, old=0.5, new=0.4, difference=-0.1)
    root = check_junit(reports.junit_xml(make_regression(verdicts=[verdict], flips=0)))
    case = next(root.iter("testcase"))
    assert case.attrib["name"] == reports.visible(f"m{text}")
    assert case[0].attrib["message"] == " ".join(reports.visible(f"w{text}").split())


def test_hostile_answers_are_text_in_xml() -> None:
    text = outcome_of(check_junit(reports.junit_xml(make_regression(hostile=True, flips=5))), GR, "acc").text or ""
    assert "<svg onload=window.owned=1>" in text and "⟨U+FFFE⟩⟨U+FFFF⟩" in text and "<b>17</b>" in text


# --- JSON


def test_json_holds_everything_but_folders_of_the_machine() -> None:
    content = json.loads(json.dumps(reports.regression_json(make_regression(hostile=True)), allow_nan=False))
    assert content["kind"] == reports.MARKER and content["format"] == reports.FORMAT and content["exit_code"] == 2
    assert len(content["verdicts"]) == len(VERDICTS) + 1 and len(content["flips"]) == 41
    assert content["verdicts"][0]["low"] == -0.093 and content["settings"]["min_effect"] == 0.01
    assert [one["count"] for one in content["flip_kinds"]["lost"]] == [10, 7, 3]
    first = content["flips"][0]
    assert {"kind", "direction", "old", "new", "task"} <= set(first) and {"text", "gold", "value", "scores"} <= set(first["old"])


@pytest.mark.parametrize("render", [reports.markdown, reports.junit_xml, lambda one: json.dumps(reports.regression_json(one))])
def test_no_report_names_a_folder_of_the_machine(render: Any) -> None:
    text = render(make_regression())
    assert not [secret for secret in SECRETS if secret in text]


# --- words


def test_amounts() -> None:
    assert amount(-0.062, "share") == "−6.2 points" and amount(0.062, "share", sign=True) == "+6.2 points"
    assert amount(-0.0001, "share", sign=True) == "0.0 points"
    assert amount(0.01, "share", exact=True) == "1 point" and amount(0.0025, "share", exact=True) == "0.25 points"
    assert amount(2.0**30, "bytes", sign=True) == "+1,024 MiB" and amount(-600, "tokens/s", bare=True) == "−600.0"
    assert amount(3.14, "tokens", exact=True) == "3.14 tokens" and amount(1, "tokens", exact=True) == "1 token"


def test_the_line_that_says_why() -> None:
    tested = dataclasses.replace(VERDICTS[1], test="exact McNemar", lost=30, won=24)
    assert explain_verdict(tested, 2, Settings()) == (
        "too few items: [−3.3, +1.3] points does not rule out 1 point for the worse; "
        "600 items show a drop of 4.1 points (80 % power); an unchanged model passes with about 9,800"
    )
    assert explain_verdict(tested, 2, Settings(), had_enough=True).endswith("; if it stays so, about 9,800 settle it")
    assert explain_verdict(VERDICTS[0], 1, Settings()) == "down 6.2 points (61 lost, 24 won), more than 1 point; exact McNemar: p = 0.0001"
    passed = dataclasses.replace(VERDICTS[2], p_holm=0.4)
    assert (
        explain_verdict(passed, 1, Settings()) == "up 0.5 points; the interval's worse end, −0.4 points, is within the tolerance of 1 point"
    )
    assert explain_measure(VERDICTS[8]).startswith("up 2 %, within the tolerance of ")
    assert explain_measure(dataclasses.replace(VERDICTS[8], difference=0.0)).startswith("unchanged, within")
    with pytest.raises(ValueError):
        explain_verdict(VERDICTS[6], 1, Settings())


def test_outcomes() -> None:
    def said(*verdicts: Verdict, **settings: Any) -> str:
        return reports.outcome(dataclasses.replace(make_regression(verdicts=verdicts), settings=Settings(**settings)))

    assert said(*VERDICTS[2:4]) == "The gate is open: 1 pass and 1 improved."
    assert said(VERDICTS[1], fail_on=("inconclusive",)) == "The gate is closed: acc of mr1_vc_synth is inconclusive."
    assert said(*VERDICTS[:1] * 5).endswith("and 2 more verdicts.")
    assert said(VERDICTS[6], fail_on=()) == "The gate is open: nothing was compared that counts for it."


def test_a_single_number_has_no_interval() -> None:
    assert reports.change_text(VERDICTS[6]) == "−600.0 tokens/s" and reports.p_text(VERDICTS[6]) == "–"
    assert reports.change_text(VERDICTS[8]) == "+20 MiB" and reports.value_text(2.0**30, "bytes") == "1,024 MiB"


# --- kinds of flip


@pytest.mark.parametrize("kind", [kind for kind in ANSWERS if kind != "unit"])
@pytest.mark.parametrize("direction", ["lost", "won"])
def test_each_kind_is_named(kind: str, direction: Any) -> None:
    sides = (task_snapshot(GR), task_snapshot(GR))
    assert kind_of(flip(GR, 3, direction, kind), sides) == kind
    assert most_frequent([(direction, kind)])[direction][0].name == KIND_NAMES[kind][direction == "won"]


def wrong(text: str, value: str | None = None, *, gold: str = "5cm", tokens: float | None = 20) -> Any:
    one = flip(GR, 3, "lost", "value")
    new = dataclasses.replace(one.new, text=text, value=value, gold=gold, tokens=tokens)
    return dataclasses.replace(one, new=new)


@pytest.mark.parametrize(
    ("one", "kind"),
    [
        (wrong("<think>a</think><answer>5m</answer>", "5 m"), "unit"),
        (wrong("<think>a</think><answer>6cm</answer>", "6 cm"), "value"),
        (wrong("<think>I'm sorry, I cannot see it", tokens=LIMIT), "cut off"),
        (wrong("<think>I cannot tell yet, so I look again.</think> 5cm"), "format"),
        (wrong("I am sorry, but I can't help with that."), "refusal"),
        (wrong("<think>not closed", tokens=None), "cut off"),
        (wrong("<think>not closed", tokens=20), "format"),
        (wrong("5cm"), "format"),
    ],
)
def test_kinds_by_hand(one: Any, kind: str) -> None:
    assert kind_of(one, (task_snapshot(GR), task_snapshot(GR))) == kind


def test_kinds_without_texts_come_from_the_scores() -> None:
    sides = (task_snapshot(GR), task_snapshot(GR))
    found = {kind: kind_of(flip(GR, 3, "lost", kind, keep=False), sides) for kind in ("value", "format", "cut off")}
    assert found == {"value": "value", "format": "format", "cut off": "cut off"}


def test_the_three_most_frequent_kinds_in_order() -> None:
    kinds: list[Any] = [("lost", kind) for kind in ["value"] * 2 + ["unit"] * 5 + ["refusal"] * 2 + ["format"] * 3]
    assert [one.kind for one in most_frequent(kinds)["lost"]] == ["unit", "format", "refusal"] and most_frequent(kinds)["won"] == ()


def test_a_regression_of_thousands_of_flips_stays_small_and_quick(tmp_path: Any) -> None:
    big: Regression = make_regression(flips=2000)
    page = write_reports(big, tmp_path / "out")
    assert {path.name for path in page.parent.iterdir()} == {
        "summary.md",
        "junit.xml",
        "regression.json",
        "index.html",
        "assets",
        "gallery",
    }
    assert (tmp_path / "out" / "summary.md").stat().st_size < 20_000 and (tmp_path / "out" / "junit.xml").stat().st_size < 60_000


def test_a_report_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_reports(make_regression(), tmp_path / "out").parent
    before = (first / "regression.json").read_bytes()

    def full(*_: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(regress_page, "write_page", full)
    for name in ("out", "new"):
        with pytest.raises(OSError, match="No space"):
            write_reports(make_regression(flips=3), tmp_path / name)
    assert (first / "regression.json").read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interval_without_end_is_null_in_json(tmp_path: Path) -> None:
    found = make_regression()
    endless = dataclasses.replace(found.verdicts[0], low=-math.inf, high=math.inf, p=math.nan)
    write_reports(dataclasses.replace(found, verdicts=(endless, *found.verdicts[1:])), tmp_path / "out")

    def refuse(name: str) -> None:
        raise AssertionError(name)

    content = json.loads((tmp_path / "out/regression.json").read_text(), parse_constant=refuse)
    assert content["verdicts"][0]["low"] is None and content["verdicts"][1]["low"] is not None
