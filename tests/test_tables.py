"""The report's tables: every number of the analysis in all three formats, hostile names harmless, LaTeX that compiles."""

import csv
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mr1_bench.reports import analysis, tables
from mr1_bench.reports.study import Study
from mr1_bench.reports.table_files import Table, csv_text, latex, latex_text, markdown, write_tables
from tests.studies import make_study

HOSTILE = "a|b_$%&#{}~^\\ <script>alert('x')</script> `c` [d](javascript:e) β 不 \"q\"\x07\n\\input{/etc/passwd}"


@pytest.fixture(scope="module")
def tiny():
    return make_study(n=40)


@pytest.fixture(scope="module")
def paper():
    """A study of the paper's 2B model on the real tasks, with the direct-answer baseline."""
    made = make_study(n={"mr1_vc": 200, "mr1_gr": 120, "mr1_vc_direct": 50}, tasks=("mr1_vc", "mr1_gr"), more_tasks=("mr1_vc_direct",))
    name = "Qwen/Qwen2-VL-2B-Instruct"
    runs = [replace(run, model=name) if run.method == "base" else replace(run, config=run.config | {"model": name}) for run in made.runs]
    return Study(tuple(runs))


def all_of(study):
    return tables.make_tables(study, analysis.analyse(study))


def named(study):
    return {table.name: table for table in all_of(study)}


def records(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_files_of_a_report(tiny, tmp_path):
    paths = tables.write_tables(tiny, tmp_path / "tables", analysis.analyse(tiny))
    names = ["table1", "table1_seeds", "gains", "matrix", "comparisons", "pairs", "sweep_beta", "sweep_format", "sweep_schedule"]
    names += ["difficulty", "confusion", "unpublished"]
    expected = [f"{name}.{ending}" for name in names for ending in ("md", "csv", "tex")] + ["all.tex"]
    assert [path.name for path in paths] == expected
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == sorted(expected), "and no leftovers"


def test_what_was_not_run_has_no_table():
    alone = make_study(n=10, seeds=1, sweeps=False)
    assert not {"sweep_beta", "sweep_format", "sweep_schedule"} & set(named(alone))


def test_table1_says_what_the_analysis_says(tiny, tmp_path):
    tables.write_tables(tiny, tmp_path, analysis.analyse(tiny))
    cell = analysis.table1(tiny).cell("grpo-d", "mr1_gr_synth").acc
    (row,) = [
        one for one in records(tmp_path / "table1.csv") if (one["task"], one["method"], one["metric"]) == ("mr1_gr_synth", "grpo-d", "acc")
    ]
    assert (float(row["mean"]), float(row["low"]), float(row["high"])) == (cell.mean, cell.low, cell.high)
    assert (row["interval"], row["seeds"], row["n"]) == ("seeds", "3", "40")
    text = f"{100 * cell.mean:.1f} [{100 * cell.low:.1f}, {100 * cell.high:.1f}]"
    assert text in (tmp_path / "table1.md").read_text() and text in (tmp_path / "table1.tex").read_text()


def test_nothing_published_beside_the_synthetic_tasks(tiny):
    made = named(tiny)
    for name in ("table1", "table1_seeds", "gains", "matrix"):
        assert not any("published" in title for title in made[name].header)
        assert not any("published" in key and record[key] is not None for record in made[name].records for key in record)
    for value in ("76.5", "34.35", "5.72", "13.59", "61.63"):
        assert not any(value in text for name in ("table1", "gains") for row in made[name].rows for text in row)


def test_published_numbers_stand_beside_acc_r1v_only(paper):
    made = named(paper)["table1"]
    assert made.header[6:8] == ("published %", "difference, points")
    row = next(row for row in made.rows if row[:2] == ("mr1_vc", "GRPO-D"))
    assert row[6].startswith("76.5 [")
    assert {record["metric"] for record in made.records if record["published"] is not None} == {"acc_r1v"}
    direct = next(row for row in made.rows if row[0] == "mr1_vc_direct")
    assert direct[6:8] == ("", "")
    assert "measured on 120 items, published on 754" in {row[-1] for row in made.rows}


def test_headline_gains_beside_the_published_ones(paper):
    rows = {(row[0], row[1], row[2]): row for row in named(paper)["gains"].rows}
    assert rows["same-task, GRPO-D over SFT", "mr1_gr", "acc_r1v"][4:6] == ("> 5.72", "5.72")
    assert rows["same-task, GRPO-D over GRPO", "mr1_gr", "acc_r1v"][4:6] == ("> 13.59", "13.59")
    assert rows["cross-task, GRPO-D over SFT", "mr1_vc and mr1_gr", "acc_r1v"][4:6] == ("> 61.63", "")
    assert rows["same-task, GRPO-D over SFT", "mr1_gr", "acc"][4:6] == ("", "")


def test_under_three_seeds_no_statement_about_methods():
    made = named(make_study(n=20, seeds=2, sweeps=False))["comparisons"]
    assert all(row[4:9] == ("", "", "", "", "") and "at least 3 training seeds" in row[9] for row in made.rows)


def test_rows_fit_their_headers(tiny, paper):
    for study in (tiny, paper):
        for table in all_of(study):
            assert all(len(row) == len(table.header) for row in table.rows), table.name
            assert len({tuple(record) for record in table.records}) == 1, table.name


@pytest.mark.parametrize("rows", [1, 60])
def test_every_format_has_as_many_columns_as_the_table(rows):
    table = Table(
        "t_1", f"Title {HOSTILE}", HOSTILE, ("name", HOSTILE, "n"), ((HOSTILE, "[x]", "1"),) * rows, ({"a": HOSTILE, "n": 1},) * rows
    )
    body = [line for line in markdown(table).splitlines() if line.startswith("|")]
    assert len(body) == rows + 2
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in body} == {4}
    text = latex(table)
    lines = [line for line in text.splitlines() if line.endswith(r"\\") and "caption" not in line]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {2}
    assert re.search(r"\{(l|p\{60mm\})(l|p\{60mm\})r\}", text)
    assert ("longtable" in text) == (rows > 30)
    back = list(csv.DictReader(csv_text(table).splitlines(keepends=True)))
    assert len(back) == rows and back[0]["a"] == HOSTILE


def test_hostile_text_does_nothing_in_markdown_and_latex():
    table = Table("t", "T", "N", ("x",), ((HOSTILE,),), ({"x": HOSTILE},))
    assert "<script>" not in markdown(table) and "](javascript" not in markdown(table)
    text = latex_text(HOSTILE)
    for command in (r"\input", "$%", "\x07", "不"):
        assert command not in text
    assert r"\textbackslash{}input\{/etc/passwd\}" in text and r"$\beta$" in text and "U+4E0D" in text
    assert all(ord(char) < 128 for char in text)


def test_a_second_report_replaces_the_first_whole(tmp_path):
    table = Table("t", "T", "N", ("x",), (("1",),), ({"x": 1},))
    write_tables([table], tmp_path)
    write_tables([replace(table, rows=(("2",),), records=({"x": 2},))], tmp_path)
    assert records(tmp_path / "t.csv") == [{"x": "2"}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.tex", "t.csv", "t.md", "t.tex"]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here: install texlive-latex-base and texlive-latex-recommended")
def test_latex_compiles(tiny, paper, tmp_path):
    hostile = Table("hostile", HOSTILE, HOSTILE, ("name", HOSTILE), ((HOSTILE, "[2] 1"),) * 40, ({"x": 1},))
    for number, found in enumerate((all_of(tiny), all_of(paper), [hostile])):
        folder = tmp_path / str(number)
        write_tables(found, folder)
        _compile(folder)


def _compile(folder: Path) -> None:
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "all.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "all.pdf").stat().st_size > 10_000
