"""The gallery: what it collects, what it writes, and that its filters work in a real browser on 2,000 items of hostile text."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mr1_bench.reports import gallery as g
from mr1_bench.reports.page_frame import POLICY, write_assets
from mr1_bench.reports.study import Answer, Study
from tests import browser, studies

HOSTILE = (
    '<think></script><script>parent.owned = window.owned = 1</script><img src=x onerror="window.owned = 1">'
    "<a href='javascript:window.owned=1'>go</a>\u2028\u202e\x00\x07]]>--><!--\ud800</think><svg onload=window.owned=1><b>17</b>"
)


def answer(doc_id: int, right: bool, text: str = "<think>so</think><answer>1</answer>", **more: Any) -> Answer:
    scores = {"acc": float(right), "acc_r1v": float(right), "format": 1.0, "answered": 1.0}
    return Answer(doc_id, f"item-{doc_id}", "1", text, scores | more.pop("scores", {}), "1", "1", **more)


def page_of(gallery: g.Gallery, folder: Path) -> Path:
    """A page with nothing but the gallery, as another report would use it."""
    g.write_gallery(gallery, folder)
    write_assets(folder)
    page = folder / "index.html"
    page.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<title>x</title><link rel="stylesheet" href="assets/page.css"></head><body><main>{g.gallery_html(gallery)}</main>'
        '<script src="assets/gallery.js" defer></script></body></html>',
        encoding="utf-8",
    )
    return page


def parts(folder: Path) -> dict[str, Any]:
    """The data that the scripts assign."""
    found = {}
    for path in (folder / "gallery").glob("*.js"):
        value = path.read_text(encoding="ascii").partition(" = ")[2].rstrip().removesuffix(";")
        found[path.stem] = json.loads(value)
    return found


@given(st.text(st.characters(), max_size=60))
def test_script_json_gives_the_value_back_and_holds_nothing_that_html_or_javascript_reads(text: str) -> None:
    written = g.script_json({"text": text + HOSTILE})
    assert json.loads(written)["text"] == text + HOSTILE
    assert written.isascii()
    assert not re.search(r"[<>&\x00-\x1f]", written)


@given(st.integers(1, 400), st.integers(1, 400))
def test_spread_takes_distinct_positions_of_every_part(size: int, limit: int) -> None:
    chosen = g.spread(size, limit)
    assert len(chosen) == min(size, limit) == len(set(chosen))
    assert chosen == sorted(chosen) and chosen[0] >= 0 and chosen[-1] < size
    gaps = [b - a for a, b in itertools.pairwise(chosen)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_a_study_gives_pictures_questions_and_the_figure_3_pair() -> None:
    study = studies.make_study(n=12, seeds=1, sweeps=False)
    gallery = g.study_gallery(study, 5)
    assert gallery is not None
    assert {task: len(items) for task, items in gallery.items.items()} == {"mr1_vc_synth": 5, "mr1_gr_synth": 5}
    assert gallery.totals == {"mr1_vc_synth": 12, "mr1_gr_synth": 12}
    assert [item.doc_id for item in gallery.items["mr1_vc_synth"]] == [0, 2, 4, 7, 9]
    for item in gallery.items["mr1_gr_synth"]:
        assert item.question and item.level == 1 and item.family and item.image and item.image.startswith(b"\x89PNG") and not item.note
    shown = {side.name: side for side in gallery.sides}
    assert (shown[gallery.a].method, shown[gallery.b].method) == ("sft", "grpo-d")
    assert shown[gallery.a].group == shown[gallery.b].group
    assert set(shown[gallery.a].answers["mr1_gr_synth"]) == {item.doc_id for item in gallery.items["mr1_gr_synth"]}


def test_every_checkpoint_has_a_name_of_its_own() -> None:
    gallery = g.study_gallery(studies.make_study(n=6, seeds=2), 3)
    assert gallery is not None
    labels = [side.label for side in gallery.sides]
    assert len(set(labels)) == len(labels)
    assert "SFT on Counting (synthetic), seed 1" in labels
    assert any("kl-schedule-cosine" in label for label in labels)


def test_nothing_to_show_gives_no_gallery() -> None:
    study = studies.make_study(n=6, seeds=1, sweeps=False)
    assert g.study_gallery(study, 0) is None
    bare = [dataclasses.replace(run, results={}) for run in study.runs]
    assert g.study_gallery(Study(tuple(bare)), 5) is None


def test_absent_data_is_said_and_items_are_shown_without_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MR1_DATA_DIR", str(tmp_path / "nothing"))
    gallery = g.study_gallery(studies.make_study(n=6, seeds=1, sweeps=False, tasks=("mr1_vc", "mr1_gr")), 4)
    assert gallery is not None
    assert "vc was not at hand" in gallery.notes["mr1_vc"]
    assert all(item.image is None and not item.question and item.note for item in gallery.items["mr1_gr"])
    assert str(tmp_path) not in " ".join(gallery.notes.values())


def test_other_data_than_was_evaluated_is_never_shown() -> None:
    study = studies.make_study(n=6, seeds=1, sweeps=False)
    runs = []
    for run in study.runs:
        result = run.results["mr1_gr_synth"]
        other = tuple(dataclasses.replace(one, gold="999°") if one.doc_id == 3 else one for one in result.answers)
        runs.append(dataclasses.replace(run, results=dict(run.results) | {"mr1_gr_synth": dataclasses.replace(result, answers=other)}))
    gallery = g.study_gallery(Study(tuple(runs)), 6)
    assert gallery is not None
    assert "another gold at item 3" in gallery.notes["mr1_gr_synth"]
    assert all(item.image is None for item in gallery.items["mr1_gr_synth"])
    assert all(item.image for item in gallery.items["mr1_vc_synth"])


def test_large_pictures_are_made_small_and_small_ones_kept() -> None:
    noise = Image.effect_noise((1200, 900), 80).convert("RGB")
    buffer = io.BytesIO()
    noise.save(buffer, format="PNG")
    smaller = g.small_image(buffer.getvalue())
    with Image.open(io.BytesIO(smaller)) as opened:
        assert opened.size == (512, 384)
    assert len(smaller) < len(buffer.getvalue()) / 4
    assert g.small_image(smaller[:100]) == smaller[:100]


def test_what_is_written_is_what_was_answered(tmp_path: Path) -> None:
    study = studies.make_study(n=8, seeds=1, sweeps=False, hostile=True)
    gallery = g.study_gallery(study, 8)
    assert gallery is not None
    g.write_gallery(gallery, tmp_path)
    found = parts(tmp_path)
    sides = {side["key"]: side for side in found["index"]["sides"]}
    for run in study.runs:
        for number, task in enumerate(gallery.items):
            rows = found[sides[run.name]["parts"][task]]
            assert [row["text"] for row in rows] == [one.text for one in run.results[task].answers]
            assert [row["scores"]["acc"] for row in rows] == [one.scores["acc"] for one in run.results[task].answers]
            for row in found[f"items-{number}"]:
                assert (tmp_path / row["image"]).read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "gallery" / "images").iterdir())) == 16, "a picture is stored once, whoever answered it"


def two_sides(n: int) -> g.Gallery:
    """Items of two tasks in which B is right on even ones and A on every third, with hostile texts."""
    pairs = []
    for index in range(n):
        task = "mr1_vc_synth" if index % 2 else "mr1_gr_synth_l3"
        item = g.Item(index, f"item-{index}", "1", f"Question {index} </script>", 1 if index % 2 else 3, "x_y" if index % 5 else "z")
        a = answer(index, index % 3 == 0, HOSTILE if index % 7 == 0 else "<think>a b c</think><answer>1</answer>")
        b = answer(index, index % 4 == 0, "no tags at all", scores={"acc_r1v": 1.0, "format": 0.0})
        pairs.append(g.Pair(task, item, a, b if index != 5 else None))
    return g.gallery_of_pairs(pairs, ("before <b>", "sft"), ("after", "grpo-d"))


READY = 'const app = doc.querySelector("#gallery-app"); const form = app.querySelector("form").elements;\n'
READY += 'const ready = () => until(() => app.dataset.state === "ready", "the gallery"); await ready();\n'
READY += 'const set = (name, value) => { form[name].value = value; form[name].dispatchEvent(new page.Event("change")); return ready(); };\n'


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> browser.Visit:
    """One visit to a gallery of 2,000 pairs that tries every filter."""
    work = tmp_path_factory.mktemp("gallery")
    page = page_of(two_sides(2000), work / "report")
    script = (
        READY
        + """
    const counts = {all: app.dataset.shown, cards: doc.querySelectorAll(".card").length};
    const labels = [...form.verdict.options].map((one) => one.textContent);
    for (const verdict of ["fixed", "broken", "both", "neither", "graders", "unread", "form"]) {
      await set("verdict", verdict);
      counts[verdict] = app.dataset.shown;
    }
    await set("verdict", "fixed"); await set("metric", "acc_r1v"); counts.fixedR1v = app.dataset.shown;
    await set("metric", "acc"); await set("verdict", "");
    await set("level", "3"); counts.level3 = app.dataset.shown;
    await set("level", ""); await set("family", "z"); counts.familyZ = app.dataset.shown; await set("family", "");
    await set("task", "mr1_vc_synth"); counts.vc = app.dataset.shown;
    const levelHidden = form.level.closest("label").hidden;
    await set("task", "");
    form.text.value = "question 1999 "; form.text.dispatchEvent(new page.Event("input")); counts.text = app.dataset.shown;
    form.text.value = ""; form.text.dispatchEvent(new page.Event("input"));
    const first = doc.querySelector(".card .question").textContent;
    doc.querySelector(".pager button:last-child").click();
    const second = doc.querySelector(".card .question").textContent;
    const place = doc.querySelector(".pager span").textContent;
    return {counts, labels, levelHidden, first, second, place};"""
    )
    began = time.monotonic()
    found = browser.visit(page, script, work / "browser")
    found.value["seconds"] = time.monotonic() - began
    return found


def test_filters_count_what_they_should(driven: browser.Visit) -> None:
    indices = [index for index in range(2000) if index != 5]
    a, b = {index: index % 3 == 0 for index in range(2000)}, {index: index % 4 == 0 for index in range(2000)}
    counts = {key: int(value) for key, value in driven.value["counts"].items()}
    assert counts["all"] == 2000 and counts["cards"] == 12
    assert counts["fixed"] == sum(b[index] and not a[index] for index in indices)
    assert counts["broken"] == sum(a[index] and not b[index] for index in indices)
    assert counts["both"] == sum(a[index] and b[index] for index in indices)
    assert counts["neither"] == sum(not a[index] and not b[index] for index in indices)
    assert counts["graders"] == sum(not b[index] for index in indices)
    assert counts["unread"] == 0
    assert counts["form"] == 1999
    assert counts["fixedR1v"] == sum(not a[index] for index in indices)
    assert (counts["level3"], counts["vc"], counts["familyZ"], counts["text"]) == (1000, 1000, 400, 1)


def test_fixed_and_broken_name_grpo_d(driven: browser.Visit) -> None:
    assert "fixed by GRPO-D (SFT wrong)" in driven.value["labels"]
    assert "broken by GRPO-D (SFT right)" in driven.value["labels"]


def test_pages_turn_and_2000_items_stay_fast(driven: browser.Visit) -> None:
    assert driven.value["place"] == "Page 2 of 167"
    assert driven.value["first"] != driven.value["second"]
    assert driven.value["seconds"] < 20, "16 filters and the browser's start; about 1.5 s on two idle cores"
    assert driven.value["levelHidden"] is True, "with one level there is nothing to choose"


def test_no_console_message_and_no_request(driven: browser.Visit) -> None:
    assert driven.console == []
    assert driven.requests == []


def test_hostile_text_is_text(tmp_path: Path) -> None:
    page = page_of(two_sides(8), tmp_path / "report")
    script = (
        READY
        + """
    await set("task", "mr1_gr_synth_l3");
    for (const fold of doc.querySelectorAll(".card details")) fold.open = true;
    await new Promise((go) => setTimeout(go, 300));
    const inside = [...app.querySelectorAll("*")];
    return {
      owned: page.owned || window.owned || null,
      bad: inside.filter((one) => ["SCRIPT", "IMG", "A", "SVG", "svg", "B"].includes(one.tagName) && one.closest(".model")).length,
      handlers: inside.filter((one) => [...one.attributes].some((at) => at.name.startsWith("on") || /javascript:/i.test(at.value))).length,
      text: doc.querySelector(".model").textContent, rest: doc.querySelector(".model.answer").textContent,
      heading: doc.querySelector(".given h3").textContent, question: doc.querySelector(".question").textContent};"""
    )
    found = browser.visit(page, script, tmp_path / "browser")
    assert found.value["owned"] is None
    assert found.value["bad"] == found.value["handlers"] == 0
    assert "<script>parent.owned = window.owned = 1</script>" in found.value["text"]
    assert "javascript:window.owned=1" in found.value["text"]
    assert "⟨U+2028⟩⟨U+202E⟩␀␇" in found.value["text"], "characters that cannot be seen are named"
    assert found.value["rest"] == "<svg onload=window.owned=1><b>17</b>"
    assert "before <b>" in found.value["heading"] and "</script>" in found.value["question"]
    assert found.console == []
    assert found.requests == []


def test_an_item_that_one_side_was_not_asked_says_so(tmp_path: Path) -> None:
    page = page_of(two_sides(8), tmp_path / "report")
    script = READY + 'return [...doc.querySelectorAll(".given")].filter((one) => one.textContent.includes("Not evaluated")).length;'
    assert browser.visit(page, script, tmp_path / "browser").value == 1


def test_the_grpo_d_side_is_the_one_that_fixes_wherever_it_stands(tmp_path: Path) -> None:
    study = studies.make_study(n=40, seeds=1, sweeps=False)
    gallery = g.study_gallery(study, 40)
    assert gallery is not None
    page = page_of(gallery, tmp_path / "report")
    script = (
        READY
        + """
    await set("task", "mr1_gr_synth"); await set("verdict", "fixed");
    const before = app.dataset.shown; const label = form.verdict.selectedOptions[0].textContent;
    form.swap.click(); await ready();
    const swapped = app.dataset.shown, a = form.a.value;
    await set("a", "base"); await set("b", "sft-vc-synth-s0");
    return {before, label, swapped, a, other: form.verdict.selectedOptions[0].textContent, shown: app.dataset.shown,
            loaded: [...doc.images].filter((one) => one.complete && one.naturalWidth > 0).length};"""
    )
    found = browser.visit(page, script, tmp_path / "browser").value
    runs = {run.name: run.results["mr1_gr_synth"].correct() for run in study.runs}

    def fixed(worse: str, better: str) -> int:
        return sum(runs[better][item] and not runs[worse][item] for item in runs[better])

    assert int(found["before"]) == int(found["swapped"]) == fixed(gallery.a, gallery.b) > 0
    assert found["a"] == gallery.b
    assert found["label"] == "fixed by GRPO-D (SFT wrong)" and found["other"] == "fixed by SFT (Base wrong)"
    assert int(found["shown"]) == fixed("base", "sft-vc-synth-s0")
    assert found["loaded"] > 0


def test_a_missing_data_file_is_said(tmp_path: Path) -> None:
    page = page_of(two_sides(8), tmp_path / "report")
    (page.parent / "gallery" / "answers-1-1.js").unlink()
    script = 'await until(() => doc.querySelector("#gallery-app").dataset.state === "failed", "the failure");'
    script += 'return doc.querySelector(".gallery-count").textContent;'
    said = browser.visit(page, script, tmp_path / "browser").value
    assert said == "gallery/answers-1-1.js is missing: copy the whole folder of the report"
