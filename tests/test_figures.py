"""The figures: what is drawn and said must be the measured values, legible, in the methods' colours, and the same bytes every time."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib import rcParams
from matplotlib.figure import Figure as Canvas
from matplotlib.text import Text
from PIL import Image

from mr1_bench.reports import figures, figures_items, figures_results
from mr1_bench.reports.analysis import MatrixCell, Slice
from mr1_bench.reports.figure_style import DARK, LIGHT, METHOD_STYLES, THEMES, WIDTH, Drawing, Theme, method_order, save, task_name, themed
from mr1_bench.reports.measures import Measured, SeedValue
from mr1_bench.reports.study import METHOD_NAMES, Study
from tests.studies import make_run, make_study

VC, GR = "mr1_vc_synth", "mr1_gr_synth"
ALL = [
    "figure-1-accuracy-over-training",
    "figure-4-format-weight",
    "figure-5-rewards",
    "figure-6-kl-weight",
    "figure-7-cross-task",
    "train-by-test",
    "kl-schedules",
    "beta-and-kl",
    "confusion-counting",
    "accuracy-by-level",
    "accuracy-by-family",
]


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study(n=40, more_tasks=("mr1_gr_synth_l3", "mr1_vc_synth_l4"))


@pytest.fixture(scope="module")
def drawings(study: Study) -> list[Drawing]:
    return figures.drawings(study)


@pytest.fixture(scope="module")
def laid_out(drawings: list[Drawing]) -> list[tuple[Drawing, Canvas]]:
    """Every figure painted and laid out; the layout is the same in both themes."""
    return [(drawing, paint(drawing)) for drawing in drawings]


@pytest.fixture(scope="module")
def painted(drawings: list[Drawing]) -> list[tuple[Drawing, Theme, Canvas]]:
    """Every figure painted in both themes, not laid out."""
    return [(drawing, theme, paint(drawing, theme, lay_out=False)) for theme in THEMES for drawing in drawings]


def paint(drawing: Drawing, theme: Theme = LIGHT, *, lay_out: bool = True) -> Canvas:
    with themed(theme):
        canvas = Canvas(figsize=(WIDTH, drawing.height), layout="constrained")
        drawing.paint(canvas, theme)
        if lay_out:
            canvas.draw_without_rendering()
    return canvas


# What is drawn, and what is not


def test_every_figure_is_written_in_all_its_formats(study: Study, tmp_path: Path) -> None:
    before = dict(rcParams)
    drawn = figures.draw_all(study, tmp_path / "report" / "figures")
    assert [figure.name for figure in drawn] == ALL
    assert dict(rcParams) == before
    for figure in drawn:
        assert set(figure.files) == {"png", "svg", "pdf", "svg-dark"}
        files = {kind: (tmp_path / "report" / "figures" / name) for kind, name in figure.files.items()}
        with Image.open(files["png"]) as picture:
            assert picture.width == 1280 and picture.mode in ("RGB", "RGBA")
            assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
            assert picture.info["Description"] == figure.alt
        assert files["pdf"].read_bytes().startswith(b"%PDF")
        light, dark = (files[kind].read_text(encoding="utf-8") for kind in ("svg", "svg-dark"))
        assert LIGHT.ink.lower() in light and DARK.ink.lower() not in light
        assert DARK.ink.lower() in dark and LIGHT.ink.lower() not in dark
        for text in (light, dark):
            assert not re.search(r"<script|<image|href=\"(?!#)|url\((?!#)", text)
        assert figure.caption.endswith(".") and len(figure.alt) > 40
        assert "nan" not in f"{figure.caption}{figure.alt}".lower().split()
    assert len(list((tmp_path / "report" / "figures").iterdir())) == 4 * len(ALL)


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    base = make_run("base")
    assert figures.draw_all(Study((base,)), tmp_path) == []
    assert figures.drawings(Study(())) == []
    small = make_study(n=20, sweeps=False, tasks=(GR,))
    names = [drawing.name for drawing in figures.drawings(small)]
    assert names == ["figure-1-accuracy-over-training", "figure-5-rewards", "train-by-test", "beta-and-kl", "accuracy-by-family"]
    bare = Study(tuple(dataclasses.replace(run, metrics=(), evals=(), config={}) for run in small.runs))
    assert [drawing.name for drawing in figures.drawings(bare)] == ["train-by-test", "accuracy-by-family"]


_TWO = ("figure-7-cross-task", "train-by-test")


def words_and_files(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Captions of a small study's figures, and hashes of the files of two of them."""
    found = figures.drawings(make_study(n=20, seeds=2))
    for drawing in found:
        if drawing.name in _TWO:
            save(drawing, folder)
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    return [f"{one.name} {one.caption} {one.alt}" for one in found], hashes


def test_the_same_study_gives_the_same_bytes_in_any_process_and_needs_no_pyplot(tmp_path: Path) -> None:
    code = (
        "import json, pathlib, sys; from tests.test_figures import words_and_files;"
        "print(json.dumps(words_and_files(pathlib.Path(sys.argv[1]))));"
        "assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules)"
    )
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    environment = os.environ | {"PYTHONHASHSEED": "1", "SOURCE_DATE_EPOCH": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", code, there], env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    words, hashes = words_and_files(here)
    assert json.loads(ran.stdout) == [words, hashes]
    assert len(hashes) == 4 * len(_TWO)


# How it looks


def texts(canvas: Canvas) -> Iterator[Text]:
    """Every text that is drawn; labels of ticks outside the axes are not."""
    hidden = {
        label
        for axes in canvas.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    for one in canvas.findobj(Text):
        if isinstance(one, Text) and one not in hidden and one.get_text().strip() and one.get_visible():
            yield one


def test_text_is_large_enough_inside_the_figure_and_not_on_other_text(laid_out: list[tuple[Drawing, Canvas]]) -> None:
    for drawing, canvas in laid_out:
        boxes = []
        for text in texts(canvas):
            assert text.get_fontsize() >= 9, (drawing.name, text)
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.y0 >= 0, (drawing.name, text)
            assert box.x1 <= canvas.bbox.x1 and box.y1 <= canvas.bbox.y1, (drawing.name, text)
            boxes.append((text.get_text(), box.padded(-1)))
        for (one, a), (other, b) in itertools.combinations(boxes, 2):
            assert not a.overlaps(b), (drawing.name, one, other)


def test_a_legend_never_lies_over_data(laid_out: list[tuple[Drawing, Canvas]]) -> None:
    found = 0
    for drawing, canvas in laid_out:
        for legend in canvas.legends:
            found += 1
            box = legend.get_window_extent()
            assert not any(box.overlaps(axes.get_window_extent()) for axes in canvas.axes), drawing.name
        assert not any(axes.get_legend() for axes in canvas.axes)
    assert found >= 7


def test_axes_say_what_they_show_and_in_which_unit(laid_out: list[tuple[Drawing, Canvas]]) -> None:
    labels = {one.name: {label for axes in canvas.axes for label in (axes.get_xlabel(), axes.get_ylabel())} for one, canvas in laid_out}
    assert {"Training step", "Test accuracy (%)"} <= labels[ALL[0]]
    assert {"Weight of the format reward", "Accuracy (%)", "Format accuracy (%)"} <= labels[ALL[1]]
    assert {"Training step", "Accuracy reward (%)", "Format reward (%)"} <= labels[ALL[2]]
    assert {"Constant KL weight β (values equally spaced)", "Accuracy (%)"} <= labels[ALL[3]]
    assert {"Training step", "KL weight β", "KL (nats a token)"} <= labels["beta-and-kl"]
    assert {"True count", "Answered"} <= labels["confusion-counting"]


def test_a_method_has_one_colour_marker_and_line_in_every_figure(painted: list[tuple[Drawing, Theme, Canvas]]) -> None:
    names = {name: method for method, name in METHOD_NAMES.items()}
    looks: dict[tuple[str, str], set[str]] = {}
    for _, theme, canvas in painted:
        for axes in canvas.axes:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                looks.setdefault((theme.name, names[label]), set()).add(handle.get_color())
                assert handle.get_marker() in (METHOD_STYLES[names[label]].marker, "None")
    assert looks == {(theme.name, method): {theme.colour(method)} for theme in THEMES for method in METHOD_STYLES}
    assert len({style.marker for style in METHOD_STYLES.values()}) == len({str(style.line) for style in METHOD_STYLES.values()}) == 4


# Machado, Oliveira and Fernandes 2009, table 1: severity 1.0, on linear RGB.
_BLINDNESS = {
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def linear(colour: str) -> list[float]:
    shares = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    return [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]


def luminance(colour: str) -> float:
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True))


def lab(rgb: list[float]) -> tuple[float, float, float]:
    """CIE L*a*b* (D65) of linear RGB."""
    rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    white = (0.9505, 1.0, 1.089)
    xyz = [sum(weight * share for weight, share in zip(row, rgb, strict=True)) for row in rows]
    x, y, z = (
        max(0.0, value / top) ** (1 / 3) if value / top > 0.008856 else 7.787 * value / top + 16 / 116
        for value, top in zip(xyz, white, strict=True)
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
@pytest.mark.parametrize("kind", _BLINDNESS)
def test_colours_stay_apart_for_the_colour_blind(theme: Theme, kind: str) -> None:
    seen = {}
    for method in METHOD_STYLES:
        rgb = linear(theme.colour(method))
        seen[method] = lab([min(1.0, max(0.0, sum(w * c for w, c in zip(row, rgb, strict=True)))) for row in _BLINDNESS[kind]])
    for a, b in itertools.combinations(seen, 2):
        assert math.dist(seen[a], seen[b]) > 14, (a, b)


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_text_and_marks_stand_out_from_the_page(theme: Theme) -> None:
    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    assert contrast(theme.ink, theme.paper) > 7 and contrast(theme.muted, theme.paper) > 4.5
    for method in METHOD_STYLES:
        # GRPO's orange is Okabe and Ito's; on white it reaches 2.2, which is why it has a marker and a line style too.
        assert contrast(theme.colour(method), theme.paper) > (2.1 if method == "grpo" and theme is LIGHT else 3), method


def test_numbers_on_a_heat_map_are_legible(painted: list[tuple[Drawing, Theme, Canvas]]) -> None:
    checked = 0
    for drawing, _, canvas in painted:
        if drawing.name not in ("train-by-test", "confusion-counting"):
            continue
        for axes in canvas.axes:
            cells = {(round(patch.get_x() + 0.48), round(patch.get_y() + 0.47)): patch for patch in axes.patches if patch.get_fill()}
            for text in axes.texts:
                place = (round(text.get_position()[0]), round(text.get_position()[1]))
                if text.get_position()[1] < -0.5 or place not in cells:
                    continue
                behind = "#" + "".join(f"{round(255 * part):02x}" for part in cells[place].get_facecolor()[:3])
                low, high = sorted((luminance(behind), luminance(text.get_color())))
                assert (high + 0.05) / (low + 0.05) > 4.4, (drawing.name, text)
                checked += 1
    assert checked > 100


def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    hostile = "$\\frac{1$<script>alert(1)</script>\x07\ud800"
    half = Measured("acc", 0.5, 0.4, 0.6, "items", None, (SeedValue("run0", 0, 0.5, 50, 100, 0.4, 0.6),))
    slices = [Slice(method, GR, GR, "family", value, half) for method in ("grpo", hostile) for value in (hostile, "plain")]
    (drawing,) = figures_items.breakdowns(slices)
    save(drawing, tmp_path)
    assert "<script" not in (tmp_path / "accuracy-by-family.svg").read_text(encoding="utf-8")
    assert "\x07" not in drawing.caption + drawing.alt
    odd = [
        MatrixCell(method, train, "another $task$", "cross-task", half, None, None)
        for method, train in ((hostile, "somebody's task"), ("sft", GR))
    ]
    heat_map = figures_results.heat_map(odd)
    assert heat_map is not None
    save(heat_map, tmp_path)


def test_direct_answers_are_not_a_difficulty_level() -> None:
    def part(task: str, level: str, share: float) -> Slice:
        value = Measured("acc", share, None, None, "none", None, (SeedValue("run0", 0, share, None, None, None, None),))
        return Slice("grpo", GR, task, "level", level, value)

    slices = [part(GR, "1", 0.5), part(f"{GR}_l3", "3", 0.4), part(f"{GR}_direct", "1", 0.9)]
    (drawing,) = figures_items.breakdowns(slices)
    assert "50.0 % at level 1 and 40.0 % at level 3" in drawing.alt and "90.0" not in drawing.alt
    assert figures_items.breakdowns(slices[::2]) == []


def test_names_and_orders() -> None:
    assert task_name("mr1_gr_synth_direct") == "Geometry (synthetic, direct answer)"
    assert task_name("mr1_vc_direct") == "Counting (direct answer)"
    assert task_name("mr1_gr_synth_l3") == "Geometry (synthetic, level 3)"
    assert task_name("mr1_vc,mr1_gr") == "Counting + Geometry"
    assert task_name("countbenchqa") == "countbenchqa"
    assert method_order(["ppo", "grpo-d", "base", "sft", "sft"]) == ["base", "sft", "grpo-d", "ppo"]
