"""The report as a folder: what it holds and says, and its page in a real browser."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from mr1_bench.records import write_json
from mr1_bench.reports import analysis, page_text, report
from mr1_bench.reports.gallery import gallery_html, study_gallery
from mr1_bench.reports.page import title_of, write_page
from mr1_bench.reports.provenance import Places
from mr1_bench.reports.study import Missing, Study
from mr1_bench.tables import p_value
from tests import browser, studies

NASTY = '<script>window.owned=1</script><img src=x onerror="window.owned=1">'


@pytest.fixture(scope="module")
def study() -> Study:
    made = studies.make_study(n=30, seeds=3, hostile=True)
    failed = Missing("grpo-vc-synth-s9", Path("study/cells/grpo-vc-synth-s9"), f"ended with code 1 in /home/someone/runs/x.py {NASTY}")
    return dataclasses.replace(made, missing=(failed,))


@pytest.fixture(scope="module")
def made(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a report over base, main grid and sweeps."""
    root = tmp_path_factory.mktemp("somewhere-secret")
    studies.write_study(study, root / "study")
    for record in (root / "study").rglob("run.json"):
        said = json.loads(record.read_text(encoding="utf-8"))
        evaluated = {"commit": "evaluated-at", "code_sha256": studies.fake_hash("evaluating code")}
        write_json(record, said | (evaluated if said.get("kind") == "eval" else {"commit": "trained-at"}))
    path, _ = report.write_report([root / "study"], root / "report", gallery_items=10)
    assert path == root / "report" / "index.html"
    return root / "report"


class Page(HTMLParser):
    """The parts of a page that tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def text(made: Path) -> str:
    return (made / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_the_folder_holds_what_is_promised(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == {"assets", "figures", "gallery", "index.html", "report.json", "tables"}
    assert {path.suffix for path in (made / "figures").iterdir()} == {".png", ".svg", ".pdf"}
    assert {path.suffix for path in (made / "tables").iterdir()} >= {".md", ".csv", ".tex"}
    assert sorted(path.name for path in made.parent.iterdir()) == ["report", "study"], "nothing is left beside it"


def test_every_address_is_a_file_of_the_folder_or_a_place_of_the_page(made: Path, page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    addresses = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("href", "src") and value]
    assert len(addresses) > 100
    for address in addresses:
        if address.startswith("#"):
            assert unquote(address[1:]) in ids, address
        elif not address.startswith("data:,"):
            assert (made / unquote(address)).is_file(), address


def test_nothing_of_the_machine_is_in_any_file(made: Path) -> None:
    for path in made.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in (b"somewhere-secret", b"/home/someone", str(Path.home()).encode() + b"/"):
                assert secret not in content, path


def test_no_script_style_or_handler_stands_in_the_page(page: Page) -> None:
    assert all(attributes.get("src") for attributes in page.all("script"))
    assert not page.all("style")
    for _, attributes in page.tags:
        assert "style" not in attributes
        assert not [key for key in attributes if key.startswith("on")]
    policy = next(one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy and "default-src 'none'" in policy and "http" not in policy and "unsafe" not in policy and "*" not in policy


def test_the_page_is_accessible(page: Page, text: str) -> None:
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == len(page.all("main")) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels)), levels
    assert all(attributes.get("alt") for attributes in page.all("img"))
    assert all(attributes.get("scope") for attributes in page.all("th"))
    assert all(attributes.get("aria-label") or "aria-hidden" in attributes for attributes in page.all("svg"))
    assert text.count("<nav") == text.count("<nav class")


def test_every_number_of_table_1_links_to_its_runs(study: Study, text: str) -> None:
    section = text.partition('id="table-1"')[2].partition("<section")[0]
    for run in study.runs:
        if run.arm == "main":
            assert f'href="#run-{run.name}"' in section
    assert text.count('<details class="fold" id="run-') == len(study.runs)


def test_provenance_is_in_the_page_and_in_report_json(made: Path, study: Study, text: str) -> None:
    data = json.loads((made / "report.json").read_text(encoding="utf-8"))
    assert data["kind"] == report.MARKER
    assert set(data["runs"]) == {run.name for run in study.runs}
    run = next(run for run in study.runs if run.method == "grpo-d")
    known = data["runs"][run.name]
    assert known["folder"] == f"study/cells/{run.name}"
    for value in (run.weights, run.start, known["code_sha256"], known["prompts_sha256"], known["packages"]["torch"]):
        assert value and value in text
    assert known["seed"] == run.seed
    (evaluation,) = known["evaluations"].values()
    assert evaluation["code_sha256"] == studies.fake_hash("evaluating code") and evaluation["code_sha256"] in text
    assert (known["commit"], evaluation["commit"]) == ("trained-at", "evaluated-at")
    assert "trained-at" in text and "evaluated-at" in text
    assert evaluation["packages"] == known["packages"] and evaluation["when"].startswith("2026-01-01 00:02")
    assert data["runs"]["base"]["commit"] == "evaluated-at"
    identity = known["results"]["mr1_gr_synth"]["identity"]
    assert identity["dataset_sha256"] == run.results["mr1_gr_synth"].identity["dataset_sha256"]
    assert identity["dataset_sha256"] in text and identity["prompt_sha256"] in text


def test_report_json_holds_the_numbers_of_the_analysis(made: Path, study: Study) -> None:
    data = json.loads((made / "report.json").read_text(encoding="utf-8"))
    cell = analysis.table1(study).cell("grpo-d", "mr1_gr_synth")
    found = next(one for one in data["table1"]["cells"] if (one["method"], one["task"]) == ("grpo-d", "mr1_gr_synth"))
    assert cell.acc and found["acc"]["mean"] == pytest.approx(cell.acc.mean)
    assert [seed["run"] for seed in found["acc"]["seeds"]] == [f"grpo-d-gr-synth-s{seed}" for seed in range(3)]
    assert data["sweeps"].keys() == {"beta", "format", "schedule"}
    assert {"matrix", "comparisons", "pairs", "gains", "curves", "confusions", "slices", "unpublished", "published"} <= data.keys()

    def runs_in(value: object) -> Iterator[str]:
        if isinstance(value, dict):
            yield from (str(one) for key, one in value.items() if key == "run")
            for one in value.values():
                yield from runs_in(one)
        elif isinstance(value, list):
            for one in value:
                yield from runs_in(one)

    numbers = {key: value for key, value in data.items() if key not in ("runs", "missing")}
    assert set(runs_in(numbers)) <= set(data["runs"])


def test_missing_runs_are_named_and_hostile_words_are_text(text: str) -> None:
    assert "1 run is not in these numbers" in text
    section = text.partition('id="missing"')[2].partition("</section>")[0]
    assert "grpo-vc-synth-s9" in section and "ended with code 1 in x.py" in section
    assert "&lt;script&gt;window.owned=1" in section and "<script>window" not in text


def test_what_the_paper_does_not_say_is_said(text: str) -> None:
    for sentence in analysis.unpublished():
        assert sentence.partition(":")[0].replace("'", "&#39;") in text
    assert "the paper has no number for it" in text
    assert "61.63" not in text.partition('id="gains"')[2].partition("<section")[0], "a published gain never stands beside other tasks"


def test_the_same_runs_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    report.write_report([made.parent / "study"], again, gallery_items=10)
    files = {path.relative_to(made) for path in made.rglob("*") if path.is_file()}
    assert files == {path.relative_to(again) for path in again.rglob("*") if path.is_file()}
    assert [str(name) for name in sorted(files) if (made / name).read_bytes() != (again / name).read_bytes()] == []


# --- the summary


def sentences(study: Study) -> list[str]:
    return page_text.summary(study, report.analyse(study), "tiny")


def test_only_the_papers_own_tasks_are_called_a_reproduction() -> None:
    made = studies.make_study(n=4, seeds=1, sweeps=False, steps=2)
    assert title_of(made) == "OThink-MR1's grid in miniature"
    assert title_of(dataclasses.replace(made, runs=made.runs[:1])) == "mr1-bench evaluation"
    trained = made.runs[1]
    real = dataclasses.replace(trained, results=dict(trained.results) | {"mr1_gr": trained.results["mr1_gr_synth"]})
    assert title_of(dataclasses.replace(made, runs=(*made.runs, real))) == "OThink-MR1, reproduced"


def test_the_summary_says_what_seeds_allow() -> None:
    one = sentences(studies.make_study(n=30, seeds=1, sweeps=False))
    assert 2 <= len(one) <= 4
    assert "nothing is said about methods" in one[2]
    assert not re.search(r"highest|best|before|over ", " ".join(one)), "no winner is named where no test says so"
    apart = {"base": 0.3, "sft": 0.5, "grpo": 0.6, "grpo-d": 0.9}
    truth = {method: {"same": share, "cross": 0.4} for method, share in apart.items()}
    clear = sentences(studies.make_study(n=400, seeds=4, sweeps=False, accuracy=truth, spread=0.001))
    assert re.search(r"^Same-task accuracy \(acc\) on Counting \(synthetic\): Base 3\S+ %, SFT 5\S+ %, GRPO 5\S+ % and GRPO-D 8", clear[1])
    assert "the seeds suffice to put GRPO-D over GRPO on Counting (synthetic)" in clear[2]
    level = {method: {"same": 0.5, "cross": 0.5} for method in apart}
    same = sentences(studies.make_study(n=60, seeds=3, accuracy=level, spread=0.03))
    assert "do not suffice to tell apart" in same[2]
    assert same[3] == "11 more runs sweep the constant KL weight, the weight of the format reward and the course of the KL weight."


def test_a_study_of_one_checkpoint_is_reported() -> None:
    alone = studies.make_study(n=10, seeds=1, sweeps=False)
    found = sentences(Study(alone.runs[:1]))
    assert found[0] == "This report is of 1 evaluated checkpoint (Base) and asked the same 10 items of each task."


def test_published_numbers_stand_beside_acc_r1v_of_the_papers_model(tmp_path: Path) -> None:
    real = studies.make_study(n=40, seeds=2, sweeps=False, tasks=("mr1_vc", "mr1_gr"))
    model = "/somewhere/else/Qwen2-VL-2B-Instruct"
    runs = [dataclasses.replace(run, model=model if run.method == "base" else run.model) for run in real.runs]
    runs = [dataclasses.replace(run, config=dict(run.config) | {"model": model} if run.config else {}) for run in runs]
    named = Study(tuple(runs))
    findings = report.analyse(named)
    assert findings.table1.model == "Qwen2-VL-2B-Instruct"
    path = write_page(tmp_path, named, findings, [], None, Places([]), ["One.", "Two."])
    text = path.read_text(encoding="utf-8")
    assert "76.50" in text and "34.35" in text and "153/200" in text
    assert "/somewhere/else" not in text
    assert text.count("more than 5.72") == text.count("more than 13.59") == 1


def test_results_of_others_with_means_alone_and_a_task_of_theirs(tmp_path: Path) -> None:
    base = studies.make_study(n=6, seeds=1, sweeps=False).runs[0]
    known = base.results["mr1_gr_synth"]
    bare = dataclasses.replace(known, answers=(), identity={}, engine="", tokens_per_s=None, foreign=True)
    theirs = dataclasses.replace(known, task="blink_counting", means={"exact_match": 0.5}, foreign=True)
    other = dataclasses.replace(base, record={}, weights=NASTY, results={"mr1_gr_synth": bare, "blink_counting": theirs})
    alone = Study((other,))
    gallery = study_gallery(alone, 3)
    assert gallery is not None and list(gallery.items) == ["blink_counting"]
    assert "other projects" in gallery.notes["blink_counting"]
    path = write_page(tmp_path, alone, report.analyse(alone), [], gallery_html(gallery), Places([]), sentences(alone))
    text = path.read_text(encoding="utf-8")
    assert text.count("results of plain lmms-eval") == 2
    assert "exact_match" in text and "<script>window" not in text
    json.dumps(report.as_json(alone, report.analyse(alone), Places([]), [], ""), allow_nan=False)


# --- words and names


@pytest.mark.parametrize(("value", "shown"), [(0.041, "+4.1"), (-0.003, "−0.3"), (0.0, "0.0"), (-0.00001, "0.0")])
def test_points_have_a_true_minus_and_no_signed_zero(value: float, shown: str) -> None:
    assert page_text.points(value) == shown


@pytest.mark.parametrize(("p", "shown"), [(0.5, "0.500"), (0.0042, "0.0042"), (0.00001, "< 0.0001"), (1.0, "1.000")])
def test_p_values(p: float, shown: str) -> None:
    assert p_value(p) == shown


# --- in a real browser


@pytest.fixture(scope="module")
def moved(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report's page after its folder was copied elsewhere: it stands alone."""
    target = tmp_path_factory.mktemp("moved") / "a folder with spaces"
    shutil.copytree(made, target)
    return target / "index.html"


def test_opened_from_a_file_by_itself_it_works_and_says_nothing(moved: Path, tmp_path: Path) -> None:
    document, console = browser.dump(moved, tmp_path)
    assert console == []
    assert 'data-state="ready"' in document and document.count('class="card"') == 12


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_it_fits_the_width_asks_no_network_and_shows_every_picture(moved: Path, tmp_path: Path, width: int) -> None:
    script = """
    await until(() => doc.querySelector("#gallery-app").dataset.state === "ready", "the gallery");
    for (const image of doc.images) image.loading = "eager";
    const shown = () => [...doc.images].filter((one) => page.getComputedStyle(one).display !== "none");
    await until(() => shown().every((one) => one.complete), "the pictures");
    return {
      width: doc.documentElement.scrollWidth,
      broken: shown().filter((one) => !one.naturalWidth).map((one) => one.getAttribute("src")),
      small: [...doc.querySelectorAll("main p, main td, main th, main li, main small, main summary")]
        .filter((one) => one.offsetParent && parseFloat(page.getComputedStyle(one).fontSize) < 11).map((one) => one.outerHTML.slice(0, 80)),
      owned: page.owned || window.owned || null};"""
    found = browser.visit(moved, script, tmp_path, width=width)
    assert found.value == {"width": width, "broken": [], "small": [], "owned": None}
    assert found.console == []
    assert found.requests == []


LOOK = """
const channel = (c) => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
const light = (color) => {
  const [r, g, b] = color.match(/[\\d.]+/g).map(Number);
  return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
};
const contrast = (one, other) => {
  const [a, b] = [light(one), light(other)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
};
const behind = (one) => {
  for (; one; one = one.parentElement) {
    const color = page.getComputedStyle(one).backgroundColor;
    if (!color.endsWith(", 0)")) return color;
  }
  return "rgb(255, 255, 255)";
};
const WORDS = "p, td, th, li, a, small, summary, button:not(:disabled), code, label, h2, h3, .verdict, .interval";
const look = () => {
  const texts = [...doc.querySelectorAll(WORDS)].filter((one) => one.offsetParent && one.textContent.trim());
  const contrasts = texts.map((one) => [contrast(page.getComputedStyle(one).color, behind(one)), one.outerHTML.slice(0, 90)]);
  return {
    background: page.getComputedStyle(doc.body).backgroundColor,
    worst: contrasts.sort((x, y) => x[0] - y[0])[0],
    dark: [...doc.querySelectorAll("img.only-dark")].filter((one) => one.offsetParent).length,
    light: [...doc.querySelectorAll("img.only-light")].filter((one) => one.offsetParent).length};
};
"""


def test_light_and_dark_by_the_button_with_readable_contrast(moved: Path, tmp_path: Path) -> None:
    script = (
        LOOK
        + """
    await until(() => doc.querySelector("#gallery-app").dataset.state === "ready", "the gallery");
    const first = look();
    doc.getElementById("theme").click();
    const second = look();
    doc.getElementById("theme").click();
    return {first, second, third: look(), label: doc.getElementById("theme").getAttribute("aria-label")};"""
    )
    found = browser.visit(moved, script, tmp_path).value
    assert found["first"]["background"] == found["third"]["background"] == "rgb(255, 255, 255)"
    assert found["second"]["background"] == "rgb(21, 23, 26)"
    assert found["first"]["dark"] == found["second"]["light"] == 0
    assert found["first"]["light"] == found["second"]["dark"] > 5
    for one in (found["first"], found["second"]):
        assert one["worst"][0] >= 4.5, one["worst"]
    assert found["label"] == "Show the page in dark colours"


def test_a_link_to_a_run_opens_it(moved: Path, tmp_path: Path) -> None:
    script = """
    const link = doc.querySelector('#table-1 a[href^="#run-grpo-d"]');
    for (let fold = link.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    link.click();
    const target = doc.getElementById(link.hash.slice(1));
    await until(() => target.open, "the fold");
    return target.textContent.includes("run folder");"""
    assert browser.visit(moved, script, tmp_path).value is True


def test_the_policy_stops_what_would_leave_the_folder(moved: Path, tmp_path: Path) -> None:
    script = """
    const seen = [];
    doc.addEventListener("securitypolicyviolation", (event) => seen.push(event.effectiveDirective));
    new page.Image().src = "http://example.invalid/x.png";
    const script = doc.createElement("script"); script.src = "https://example.invalid/x.js"; doc.head.append(script);
    const inline = doc.createElement("script"); inline.textContent = "window.owned = 1"; doc.head.append(inline);
    await page.fetch("http://example.invalid/y").catch(() => 0);
    await until(() => seen.length >= 4, "the violations");
    return {seen: seen.sort(), owned: page.owned || null};"""
    found = browser.visit(moved, script, tmp_path)
    assert found.value == {"seen": ["connect-src", "img-src", "script-src-elem", "script-src-elem"], "owned": None}
    assert found.requests == []


def test_the_browser_of_these_tests_would_tell(tmp_path: Path) -> None:
    careless = tmp_path / "careless.html"
    careless.write_text('<img src="http://example.invalid/x.png"><script>console.error("oops")</script>')
    found = browser.visit(careless, "return await new Promise((go) => setTimeout(() => go(1), 500));", tmp_path / "browser")
    assert found.requests == ["http://example.invalid/x.png"]
    assert "oops" in found.console[0]


def test_paper_has_the_report_without_the_gallery(moved: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.pdf"
    browser.print_pdf(moved, out, tmp_path / "browser")
    pages = re.findall(rb"/Type\s*/Page\b", out.read_bytes())
    assert 4 <= len(pages) <= 25


def test_parity_records_become_a_row_each_and_odd_ones_a_list(study, tmp_path):
    whole = {
        "model": {"path": NASTY},
        "task": "mr1_gr_synth",
        "gate": {"verdict": "passed"},
        "items": 48,
        "texts": {"identical": 47, "of": 48},
        "answers": {"identical": 48, "of": 48},
        "accuracy": {"vllm": 0.4375, "hf": 0.4583, "difference": -0.0208, "low": -0.11, "high": 0.04, "McNemar p": 1.0},
        "log-probability difference": {"mean size": 3.4e-08, "largest": 2.9e-06},
        "worst items": {"gr-7": f"token 5: {NASTY}"},
    }
    odd = [{"differing": 2}, whole | {"accuracy": None}, whole | {"texts": {"identical": "47", "of": 48}}, whole | {"worst items": 3}]
    study = dataclasses.replace(study, parity=(whole, *odd))
    page = write_page(tmp_path, study, report.analyse(study), [], None, Places([]), ["One.", "Two."]).read_text(encoding="utf-8")
    section = page[page.index('<section id="parity">') :]
    section = section[: section.index("</section>")]
    assert section.count("<tbody><tr>") == 1
    row = section[section.index("<tbody>") : section.index("</tbody>")]
    for shown in ("47 of 48", "48 of 48", "43.8 %", "45.8 %", "−2.1", "[−11.0, +4.0]", "3.4e-08", "2.9e-06", "gate: passed"):
        assert shown in row
    assert section.count("A record of another version") == len(odd)
    assert NASTY not in section
