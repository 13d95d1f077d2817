"""The page of a comparison: what it says, and that it works in a real browser without console errors, network or owned scripts."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mr1_bench.reports import regress_page
from mr1_bench.reports.page_frame import POLICY
from mr1_bench.reports.regress_files import write_reports
from mr1_bench.reports.verdicts import Settings
from tests import browser
from tests.regressions import GR, VC, VERDICTS, flip, make_history, make_regression

READY = 'await until(() => doc.querySelectorAll("#gallery-app .card").length, "cards");'


def write(folder: Path, regression: Any, history: Any = ()) -> Path:
    return write_reports(regression, folder / "report", history)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every state, hostile text in every place that is recorded, and a trend with a change point and a break."""
    truth, asked = [0.62] * 6 + [0.5] * 6, ["before"] * 3 + ["after"] * 9
    history = make_history(truth)
    other = make_history([0.6] * 12, task=VC, asked=asked)
    both = [dataclasses.replace(one, tasks={**one.tasks, **two.tasks}) for one, two in zip(history, other, strict=True)]
    return write(tmp_path_factory.mktemp("page"), make_regression(hostile=True), both)


def test_the_page_asks_for_nothing_runs_nothing_of_models_and_fits(page: Path, tmp_path: Path) -> None:
    script = (
        READY
        + """
    const wide = doc.querySelector("#summary .scroll");
    const shown = doc.querySelector("#summary").textContent + doc.querySelector("#gallery-app").textContent;
    return {owned: [page.owned, window.owned], width: doc.documentElement.scrollWidth, table: [wide.scrollWidth, wide.clientWidth],
            foreign: doc.querySelectorAll("main script:not([src]), main svg[onload], main img[onerror], main b b").length,
            text: shown.includes("<svg onload=window.owned=1>"),
            images: [...doc.images].filter((one) => one.complete && !one.naturalWidth).length,
            dots: [...doc.querySelectorAll(".verdicts-table .dot")].map((one) => +one.getAttribute("x1")), title: doc.title};"""
    )
    for width in (400, 1280):
        visit = browser.visit(page, script, tmp_path / str(width), width=width)
        assert visit.console == [] and visit.requests == []
        found = visit.value
        assert found["owned"] == [None, None] and found["foreign"] == 0 and found["images"] == 0 and found["text"]
        assert found["width"] <= width and found["table"][0] <= found["table"][1]
        assert found["dots"][0] < 50 and all(0 <= place <= 100 for place in found["dots"])
        assert found["title"].startswith("Gate closed: ")
    document, console = browser.dump(page, tmp_path / "alone")
    assert console == [] and "<h1>Regression gate: closed</h1>" in document


def test_filters_and_buttons_show_the_items_of_a_direction_and_of_a_kind(page: Path, tmp_path: Path) -> None:
    script = (
        READY
        + """
    const form = doc.querySelector("#gallery-app form"), count = () => doc.querySelector(".gallery-count").textContent;
    const change = (control, value) => { control.value = value; control.dispatchEvent(new page.Event("change")); };
    const set = (name, value) => { change(form.elements[name], value); return count(); };
    const [lost, won] = doc.querySelectorAll(".show-flips");
    const found = {all: count(), kinds: [...form.elements.kind.options].map((one) => one.text)};
    lost.click(); found.lost = count();
    found.first = doc.querySelector("#gallery-app .card").textContent;
    won.click(); found.won = count();
    set("verdict", ""); found.format = set("kind", "format lost"); found.regained = set("kind", "format regained");
    won.click(); found.again = count(); found.kind = form.elements.kind.value;
    return found;"""
    )
    visit = browser.visit(page, script, tmp_path)
    assert visit.console == [] and visit.requests == []
    found = visit.value
    assert [found[name].split(" of ")[0] for name in ("all", "lost", "won", "format", "regained", "again")] == [
        "41",
        "29",
        "12",
        "7",
        "3",
        "12",
    ]
    assert found["kind"] == "" and {"every kind", "wrong value", "format lost", "cut off", "refusal", "value put right"} <= set(
        found["kinds"]
    )
    assert "right" in found["first"] and "wrong" in found["first"]


def test_both_answers_and_the_picture_stand_side_by_side(page: Path) -> None:
    parts = {path.stem: path.read_text(encoding="ascii") for path in (page.parent / "gallery").glob("*.js")}
    items, old, new = (
        json.loads(parts[name].partition(" = ")[2].rstrip().removesuffix(";")) for name in ("items-0", "answers-0-0", "answers-0-1")
    )
    plain = next(row for row, one in enumerate(items) if one["id"] == 0)
    assert "hostile" not in items[plain]["name"] and items[plain]["kind"] == "wrong value"
    assert old[plain]["scores"]["acc"] == 1 and new[plain]["scores"]["acc"] == 0 and "97" in new[plain]["text"]


def test_pictures_are_shown_where_the_data_is_at_hand(tmp_path: Path) -> None:
    page = write(tmp_path, make_regression(flips=3))
    assert len(list((page.parent / "gallery" / "images").iterdir())) == 3


def test_an_open_gate_without_flips_and_without_history(tmp_path: Path) -> None:
    page = write(tmp_path, make_regression(verdicts=VERDICTS[2:4], flips=0))
    text = page.read_text(encoding="utf-8")
    assert "Regression gate: open" in text and "No item turned by" in text
    assert 'href="#trend"' not in text and 'id="trend"' not in text and not (page.parent / "figures").exists()
    visit = browser.visit(page, "return doc.querySelectorAll('.verdicts-table tbody').length;", tmp_path / "b")
    assert visit.value == 2 and visit.console == [] and visit.requests == []


def test_a_page_without_any_verdict_is_closed(tmp_path: Path) -> None:
    text = write(tmp_path, make_regression(verdicts=(), flips=0)).read_text(encoding="utf-8")
    assert "Regression gate: closed" in text and "nothing was compared" in text


def test_the_page_is_closed_only_where_the_command_fails(tmp_path: Path) -> None:
    allowed = dataclasses.replace(make_regression(), settings=Settings(fail_on=()))
    assert "Regression gate: open" in write(tmp_path, allowed).read_text(encoding="utf-8")


def test_answers_that_were_not_kept_are_said_to_be_missing(tmp_path: Path) -> None:
    page = write(tmp_path, make_regression(keep=False, flips=3))
    assert regress_page.NOT_KEPT in (page.parent / "gallery" / "answers-0-0.js").read_text(encoding="ascii")


def test_a_task_of_another_project_has_no_pictures_and_says_so(tmp_path: Path) -> None:
    foreign = dataclasses.replace(flip(GR, 1, "lost", "value"), task="some_task")
    gallery, notes = regress_page.flip_gallery(dataclasses.replace(make_regression(flips=0), flips=(foreign,)))
    assert gallery is not None and gallery.items["some_task"][0].image is None and "other projects" in notes["some_task"]


def test_the_page_is_whole_in_its_folder_and_names_no_folder_of_the_machine(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r'(?:href|src|srcset)="([^"#]+)"', text):
        assert link.startswith("data:") or (page.parent / link).is_file(), link
    assert POLICY in html.unescape(text)
    for path in page.parent.rglob("*"):
        if path.suffix in (".html", ".js", ".json", ".md", ".xml", ".css"):
            assert not re.search(r"/somewhere|/home/someone|/tmp/", path.read_text(encoding="utf-8", errors="replace")), path


def test_the_trend_stands_in_the_page_with_its_change_point(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.search(r"a change from 6\d\.\d % to 5\d\.\d %", text) and "Something else was asked from" in text
    assert {path.suffix for path in (page.parent / "figures").iterdir()} >= {".png", ".svg"}
