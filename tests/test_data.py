"""Data sets: what is built from real and awkward sources, what is refused, and that a killed build leaves nothing."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mr1_bench import data, data_sources
from mr1_bench.cli import main
from mr1_bench.data import DataAbsentError, DataDamagedError, dataset_hash, load, parquet_path, read_info
from mr1_bench.data_build import DataError, build
from mr1_bench.data_sources import Fault, SourceRow, image_finder, open_folder, open_parquet, open_prompts
from mr1_bench.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def picture(colour: int = 0, size: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (colour % 256, 20, 30)).save(buffer, format="PNG")
    return buffer.getvalue()


def make_folder(folder: Path, records: list[dict[str, Any]], images: int = 3) -> Path:
    (folder / "images").mkdir(parents=True)
    for k in range(images):
        (folder / "images" / f"{k}.png").write_bytes(picture(k))
    (folder / "manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def record(k: int, **more: Any) -> dict[str, Any]:
    return {"question": f"What is {k}?", "ground_truth": f"{k}°", "image": f"images/{k}.png", **more}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "toy-source", [record(k) for k in range(3)])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MR1_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def build_toy(source: Path, home: Path, **options: Any) -> Any:
    return build("toy", "test", open_folder(source, "test"), directory=home, **options)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---------------------------------------------------------------- the stored set


def test_round_trip(toy: Path, home: Path) -> None:
    result = build_toy(toy, home)
    assert result.outcome == "built"
    examples = load("toy")
    assert [(item.id, item.question, item.gold, item.solution) for item in examples] == [
        (f"toy-test-{k:06d}", f"What is {k}?", f"{k}°", "") for k in range(3)
    ]
    assert examples[-1].image.getpixel((0, 0)) == (2, 20, 30)
    assert examples[1].meta["source_image"]["original_size"] == [40, 40]
    assert [item.id for item in examples[:2]] == ["toy-test-000000", "toy-test-000001"]
    with pytest.raises(IndexError, match="example 3 of 3"):
        examples[3]
    with multiprocessing.get_context("spawn").Pool(1) as loader:  # as a data loader's worker reads them
        assert loader.map(examples.__getitem__, [2]) == [examples[2]]
    assert parquet_path("toy") == home / "toy" / "test.parquet"


def test_datasets_library_decodes_the_images(toy: Path, home: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    build_toy(toy, home)
    rows = datasets.load_dataset("parquet", data_files=str(parquet_path("toy")), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(rows[2]["image"], Image.Image)
    assert rows[2]["image"].getpixel((0, 0)) == (2, 20, 30)
    assert set(rows.column_names) == {"id", "question", "gold", "image", "solution", "meta"}


def test_building_again_changes_nothing(toy: Path, home: Path) -> None:
    build_toy(toy, home)
    before = snapshot(home)
    assert build_toy(toy, home).outcome == "up to date"
    assert snapshot(home) == before
    assert build("toy", "test", open_folder(toy, "test"), directory=home.parent / "elsewhere").outcome == "built"
    assert snapshot(home.parent / "elsewhere" / "toy") == snapshot(home / "toy")


def test_many_row_groups_read_in_any_order(tmp_path: Path, home: Path) -> None:
    source = make_folder(tmp_path / "many", [record(k % 100, id=f"item{k}", question=f"Item {k}?") for k in range(100)], images=100)
    build_toy(source, home)
    examples = load("toy")
    assert pq.read_metadata(parquet_path("toy")).num_row_groups == 4
    for k in (99, 0, 64, 31, 32, 33, 98, 1):
        assert (examples[k].id, examples[k].question, examples[k].image.getpixel((0, 0))[0]) == (f"item{k}", f"Item {k}?", k)


def test_splits_share_a_manifest_and_other_content_needs_force(toy: Path, home: Path, tmp_path: Path) -> None:
    build_toy(toy, home)
    build("toy", "train", open_folder(toy, "train"), directory=home, limit=2)
    before = snapshot(home)
    other = make_folder(tmp_path / "other", [record(k, ground_truth="7") for k in range(3)])
    with pytest.raises(UserError, match=r"holds something else: 3 rows .* --force"):
        build_toy(other, home)
    assert snapshot(home) == before
    assert build_toy(other, home, force=True).outcome == "replaced"
    assert [item.gold for item in load("toy")] == ["7", "7", "7"]
    assert [item.gold for item in load("toy", "train")] == ["0°", "1°"]
    assert {"kind": "limit", "rows": 2} in read_info("toy", "train").sources


def test_meta_alone_counts_as_other_content_but_not_in_the_hash(toy: Path, home: Path, tmp_path: Path) -> None:
    build_toy(toy, home)
    old = dataset_hash("toy")
    other = make_folder(tmp_path / "other", [record(k, note="new") for k in range(3)])
    with pytest.raises(UserError, match="other meta columns"):
        build_toy(other, home)
    build_toy(other, home, force=True)
    assert dataset_hash("toy") == old
    assert load("toy")[0].meta["note"] == "new"


@pytest.mark.parametrize(
    "change", [{"question": "Other?"}, {"ground_truth": "8"}, {"image": "images/1.png"}, {"solution": "Because."}, {"id": "x"}]
)
def test_hash_covers(change: dict[str, Any], toy: Path, home: Path, tmp_path: Path) -> None:
    build_toy(toy, home)
    old = dataset_hash("toy")
    build_toy(make_folder(tmp_path / "other", [{**record(0), **change}, record(1), record(2)]), home, force=True)
    assert dataset_hash("toy") != old


def test_damage_is_found_and_repaired(toy: Path, home: Path) -> None:
    path = build_toy(toy, home).path
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(DataDamagedError, match="differs from the checksum"):
        load("toy")
    assert build_toy(toy, home).outcome == "repaired"
    assert path.read_bytes() == good
    path.unlink()
    with pytest.raises(DataDamagedError, match="cannot be read"):
        load("toy")
    (home / "toy" / "manifest.json").write_text('{"format": 99, "splits": {}}')
    with pytest.raises(DataDamagedError, match="format 99; this version reads 1"):
        load("toy")
    with pytest.raises(DataDamagedError):
        build_toy(toy, home)
    (home / "toy" / "manifest.json").write_text("[]")
    with pytest.raises(DataDamagedError, match="is not a manifest"):
        load("toy")
    assert build_toy(toy, home, force=True).outcome == "built"
    assert len(load("toy")) == 3


@pytest.mark.parametrize(
    ("name", "split", "wanted"),
    [
        ("vc", "test", "mr1-bench data build vc --prompts"),
        ("gr", "test", "geoqa_test_prompts.jsonl"),
        ("vc", "train", "mr1-bench data build vc-train"),
        ("gr", "train", "leonardPKU/GEOQA_R1V_Train_8K"),
        ("mine", "test", "--task-name mine --prompts FILE.jsonl"),
        ("mine", "train", "--task-name mine --split train"),
    ],
)
def test_absent_set_says_how_to_get_it(name: str, split: str, wanted: str, home: Path) -> None:
    with pytest.raises(DataAbsentError) as caught:
        load(name, split)
    assert wanted in str(caught.value)
    assert str(home) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_default_directory_is_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MR1_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/cache")
    assert data.data_dir() == Path("/some/cache/mr1-bench")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/some/home")
    assert data.data_dir() == Path("/some/home/.cache/mr1-bench")


# ---------------------------------------------------------------- interruption


KILLED = """
import os, signal, sys, pathlib
from mr1_bench import data_build
from mr1_bench.data_sources import open_folder
where, source, home = sys.argv[1:]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if where == "writing":
    normalise, seen = data_build.normalise, []
    def slow(bytes_):
        seen.append(1)
        return die() if len(seen) == 3 else normalise(bytes_)
    data_build.normalise = slow
elif where == "before moving":
    data_build._publish = die
elif where == "between the moves":
    # After the parquet file is moved and before the manifest that names it.
    write, calls = data_build._write_manifest, []
    def last(workshop, folder, name, splits):
        return die() if "test" in splits else write(workshop, folder, name, splits)
    data_build._write_manifest = last
data_build.build("toy", "test", open_folder(pathlib.Path(source), "test"), directory=pathlib.Path(home), force=True)
"""


@pytest.mark.parametrize("where", ["writing", "before moving", "between the moves"])
@pytest.mark.parametrize("replacing", [False, True])
def test_killed_build_leaves_no_half_set(where: str, replacing: bool, toy: Path, home: Path, tmp_path: Path) -> None:
    old = make_folder(tmp_path / "old", [record(k, ground_truth="old") for k in range(3)])
    if replacing:
        build_toy(old, home)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED, where, str(toy), str(home)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    # Either the old set, whole, or none: never rows that the manifest does not vouch for.
    if replacing and where != "between the moves":
        assert [item.gold for item in load("toy")] == ["old"] * 3
    else:
        with pytest.raises(DataAbsentError):
            load("toy")
    assert build_toy(toy, home, force=True).outcome in {"built", "replaced"}
    assert [item.gold for item in load("toy")] == ["0°", "1°", "2°"]
    assert sorted(path.name for path in home.iterdir()) == [".toy.lock", "toy"]
    assert sorted(path.name for path in (home / "toy").iterdir()) == ["manifest.json", "test.parquet"]


def test_kill_at_any_moment(tmp_path: Path, home: Path) -> None:
    """The command itself, killed from outside while it works: the set is then absent, or whole."""
    source = make_folder(tmp_path / "many", [record(k, id=f"item{k}") for k in range(200)], images=200)
    command = [sys.executable, "-c", "import sys; from mr1_bench.cli import main; sys.exit(main())"]
    arguments = ["data", "build", "--task-name", "toy", "--folder", str(source)]
    process = subprocess.Popen([*command, *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (home / ".building-toy").exists():
        time.sleep(0.002)
    process.kill()
    process.wait()
    if (home / "toy" / "manifest.json").exists():
        assert len(load("toy")) == 200
    else:
        with pytest.raises(DataAbsentError):
            load("toy")
    assert main(arguments) == 0
    assert len(load("toy")) == 200


def test_two_builds_of_one_set_do_not_run_together(toy: Path, home: Path) -> None:
    from mr1_bench.data_build import _locked

    home.mkdir()
    with _locked(home, "toy"), pytest.raises(UserError, match="another build of 'toy'"):
        build_toy(toy, home)
    assert build_toy(toy, home).outcome == "built"


# ---------------------------------------------------------------- bad rows


BAD_ROWS: list[tuple[Any, str]] = [
    ("{not json", "not a JSON object"),
    ("[1]", "a JSON list where an object was expected"),
    ('{"question": "q", "ground_truth": NaN, "image": "images/0.png"}', "NaN is no JSON value"),
    (
        {"prompt": "q", "ground_truth": 1, "image": "images/0.png"},
        "no question column: has prompt, ground_truth, image; expected one of question",
    ),
    ({"question": "q", "image": "images/0.png"}, "no gold column"),
    ({"question": "q", "answer": 1}, "no image column"),
    (record(0, question="  "), "question is '  ': expected a non-empty text"),
    (record(0, question=5), "question is 5"),
    (record(0, ground_truth=""), "ground_truth is ''"),
    (record(0, ground_truth="<answer>  </answer>"), "expected a non-empty text or a finite number"),
    (record(0, ground_truth=True), "ground_truth is True"),
    (record(0, ground_truth=None), "ground_truth is None"),
    (record(0, question="bad \ud800"), "unpaired surrogate"),
    (record(0, id=""), "id is ''"),
    (record(0, image="images/7.png"), r"image images/7.png is missing under toy/"),
    (record(0, image=None), "the image column is None"),
    (record(0, image="images/broken.png"), "image broken.png: broken or truncated"),
    (record(0, image="images/text.png"), "image text.png: not a picture"),
    (record(0, image="x" * 5000), "is missing"),
    (record(0, image="a\0b"), "is missing"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_ROWS)
def test_bad_row_is_named_and_nothing_is_written(bad: Any, reason: str, tmp_path: Path, home: Path) -> None:
    folder = make_folder(tmp_path / "toy", [])
    (folder / "images" / "broken.png").write_bytes(picture()[:-30])
    (folder / "images" / "text.png").write_text("hello")
    line = bad if isinstance(bad, str) else json.dumps(bad)
    (folder / "manifest.jsonl").write_text(f"{json.dumps(record(1))}\n\n{line}\n")
    with pytest.raises(DataError, match=r"(?s)1 of 2 rows cannot be used; nothing was written.\n  row 3: .*") as caught:
        build_toy(folder, home)
    assert re.search(reason, str(caught.value))
    assert sorted(path.name for path in home.iterdir()) == [".toy.lock"]


def test_repeated_id_is_an_error_and_a_repeated_row_is_kept_and_named(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = make_folder(tmp_path / "twice", [record(0, id="a"), record(1), record(2, id="a")])
    with pytest.raises(DataError, match="row 3: id a is also that of row 1"):
        build_toy(twice, home)
    equal = make_folder(tmp_path / "equal", [record(0), record(1), record(0), record(0)])
    assert main(["data", "build", "--task-name", "toy", "--folder", str(equal)]) == 0
    assert read_info("toy", "test").duplicates == ({"row": 3, "same_as": 1}, {"row": 4, "same_as": 1})
    assert "kept, row 3 equals row 1" in capsys.readouterr().out
    assert len(load("toy")) == 4


def test_missing_images_may_be_left_out_but_other_faults_may_not(tmp_path: Path, home: Path) -> None:
    folder = make_folder(tmp_path / "toy", [record(k) for k in range(15)])
    with pytest.raises(DataError, match=r"12 of 15 rows(?s:.*)row 13: (?s:.*)and 2 more\n.*--allow-missing"):
        build_toy(folder, home)
    info = build_toy(folder, home, allow_missing=True).info
    assert info.rows == 3
    assert [entry["row"] for entry in info.skipped] == list(range(4, 16))
    with pytest.raises(DataError, match="row 2"):
        build_toy(make_folder(tmp_path / "worse", [record(0), record(9, question="")]), home, allow_missing=True)
    with pytest.raises(DataError, match="no row is left of 1"):
        build_toy(make_folder(tmp_path / "none", [record(9)]), home, allow_missing=True)


# ---------------------------------------------------------------- sources


@pytest.mark.parametrize(
    ("columns", "gold", "solution"),
    [
        ({"question": "q", "ground_truth": 4, "image_path": "0.png"}, "4", ""),
        ({"problem": "q", "solution": "<answer> 6 </answer>", "image": "0.png"}, "6", ""),
        ({"problem": "q", "solution": "<think>2+4.</think> <answer> 6 </answer>", "image": "0.png"}, "6", "2+4."),
        ({"question": "q", "answer": "sqrt(3)", "image": "0.png"}, "sqrt(3)", ""),
        ({"question": "q", "gold": 2.5, "solution": "Half of five.", "image": "0.png"}, "2.5", "Half of five."),
        ({"question": "q", "solution": "12", "image": "0.png"}, "12", ""),
        ({"question": "q", "gold": "1", "answer": "2", "image": "0.png"}, "1", ""),
    ],
)
def test_column_names(columns: dict[str, Any], gold: str, solution: str, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(picture())
    (tmp_path / "manifest.jsonl").write_text(json.dumps(columns))
    (row,) = open_folder(tmp_path, "test").rows
    assert isinstance(row, SourceRow)
    assert (row.question, row.gold, row.solution) == ("q", gold, solution)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_any_question_text_is_read_as_it_is(text: str) -> None:
    made = data_sources.make_row({"question": text, "gold": "1", "image": b"x"}, 1, 0, data_sources._embedded_image)
    assert isinstance(made, SourceRow)
    assert made.question == text


def test_image_lookup(tmp_path: Path) -> None:
    for name in ("a/images/test/0.png", "a/images/train/0.png", "b/images/train/1.png", "c/t/2.png", "d/t/2.png", "3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert image_finder(tmp_path)("./G/images/test/0.png") == tmp_path / "a/images/test/0.png"
    assert image_finder(tmp_path / "a/images")("./G/images/test/0.png") == tmp_path / "a/images/test/0.png"
    assert image_finder(tmp_path / "a/images/train")("./G/images/test/0.png") == tmp_path / "a/images/train/0.png"  # as the user says
    assert image_finder(tmp_path)("/x/../3.png") == tmp_path / "3.png"
    # The training picture of the same number is not taken for the test picture.
    assert "is missing" in str(image_finder(tmp_path)("./G/images/test/1.png"))
    assert "ambiguous" in str(image_finder(tmp_path)("x/t/2.png"))
    assert "names no file" in str(image_finder(tmp_path)("../.."))
    outside = tmp_path / "a" / "images"
    assert "is missing" in str(image_finder(outside)("../../3.png"))


def test_parquet_folder_as_the_hub_has_it(tmp_path: Path, home: Path) -> None:
    image = pa.array([{"bytes": picture(k), "path": f"{k}.png"} for k in range(3)])
    table = pa.table({"image": image, "problem": ["q0", "q1", "q2"], "solution": [f"<answer> {k} </answer>" for k in range(3)]})
    (tmp_path / "hub" / "data").mkdir(parents=True)
    pq.write_table(table.slice(0, 2), tmp_path / "hub/data/train-00000-of-00002.parquet")
    pq.write_table(table.slice(2), tmp_path / "hub/data/train-00001-of-00002.parquet")
    pq.write_table(table.slice(0, 1), tmp_path / "hub/data/test-00000-of-00001.parquet")
    result = build("gr", "train", open_folder(tmp_path / "hub", "train"), directory=home)
    assert [(item.id, item.gold) for item in load("gr", "train")] == [(f"gr-train-{k:06d}", str(k)) for k in range(3)]
    assert [source["file"] for source in result.info.sources] == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    # A set of ours is itself a source: the content stays the same.
    again = build("copy", "test", open_parquet([result.path]), directory=home)
    assert [item.id for item in load("copy")] == [item.id for item in load("gr", "train")]
    assert again.info.content_hash == result.info.content_hash
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        open_folder(tmp_path / "bad", "train")


def test_hub_that_cannot_be_reached_says_how_to_do_it_by_hand(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def offline(*_: Any, **__: Any) -> str:
        raise hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"hf download leonardPKU/GEOQA_R1V_Train_8K .*--folder DIR"):
        data_sources.open_hub("leonardPKU/GEOQA_R1V_Train_8K", "train")

    folder = tmp_path / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    image = pa.array([{"bytes": picture(), "path": None}])
    pq.write_table(pa.table({"image": image, "problem": ["q"], "solution": ["<answer>1</answer>"]}), folder / "train-0.parquet")
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(folder))
    source = data_sources.open_hub("some/set", "train")
    assert source.provenance[0] == {"kind": "hub", "name": "some/set", "revision": "0123abc"}
    assert build("toy", "train", source, directory=home).info.rows == 1


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gr"], "no source was given for the test split of 'gr'. Take"),
        ([], "give either TASK"),
        (["gr", "--task-name", "x", "--folder", "."], "give either TASK"),
        (["nope", "--folder", "."], "unknown task 'nope'"),
        (["gr-train", "--split", "test", "--folder", "."], "gr-train is the train split"),
        (["mr1_gr_synth"], "embedded set"),
        (["--task-name", "vc_synth", "--folder", "."], "embedded set"),
        (["--task-name", "../up", "--folder", "."], "cannot name a data set"),
        (["--task-name", "gr", "--folder", "."], "name of a set of ours"),
        (["--task-name", "x", "--prompts", "p.jsonl"], "belong together"),
        (["--task-name", "x", "--prompts", "p.jsonl", "--images", "."], "p.jsonl is not a file"),
        (["--task-name", "x", "--folder", "/nowhere"], "is not a folder"),
        (["--task-name", "x", "--folder", str(Path(__file__).parent.parent / "docs")], "holds neither manifest.jsonl nor parquet"),
    ],
)
def test_command_refuses_with_advice(arguments: list[str], message: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "build", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not home.exists()


def test_command_builds_lists_and_locates(toy: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    assert "no data sets" in capsys.readouterr().out
    arguments = ["data", "build", "mr1_gr", "--prompts", str(toy / "manifest.jsonl"), "--images", str(toy / "images")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "gr test: built, 3 rows" in printed
    assert "the R1-V protocol has 754 items" in printed
    assert main(arguments) == 0
    assert "up to date" in capsys.readouterr().out
    assert main(["data", "list"]) == 0
    assert "manifest.jsonl, images" in capsys.readouterr().out
    assert main(["data", "path", "gr"]) == 0
    assert capsys.readouterr().out == f"{home / 'gr'}\n"


# ---------------------------------------------------------------- embedded sets


def test_embedded_sets_are_there_without_files(home: Path) -> None:
    examples = load("vc_synth", "train", level=1, n=5)
    assert len(examples) == 5
    assert examples[4].image.size == (112, 112)
    assert examples[4].gold.isdigit()
    assert examples[4].solution
    assert dataset_hash("vc_synth", n=5) == dataset_hash("vc_synth", n=5)
    assert (
        len(
            {
                dataset_hash("vc_synth", split, level=level, n=n)
                for split, level, n in [("test", 1, 5), ("train", 1, 5), ("test", 2, 5), ("test", 1, 6)]
            }
        )
        == 4
    )
    with pytest.raises(UserError, match="unknown split 'dev'"):
        load("vc_synth", "dev")
    with pytest.raises(UserError, match="0 items"):
        load("vc_synth", n=0)


# ---------------------------------------------------------------- real data


def test_real_geometry_joins_prompts_and_images(real_data: Path, home: Path) -> None:
    prompts, images = real_data / "r1v_prompts" / "geoqa_test_prompts.jsonl", real_data / "geoqa_test610" / "images"
    with pytest.raises(
        DataError, match=r"144 of 754 rows(?s:.*)row 28: image ./Geo170K/images/test/27.png is missing under images/(?s:.*)and 134 more"
    ):
        build("gr", "test", open_prompts(prompts, images), directory=home)
    joined = build("gr", "test", open_prompts(prompts, images), directory=home, allow_missing=True).info
    assert (joined.rows, len(joined.skipped)) == (610, 144)
    # The folder's own questions and golds are the protocol's, so the items, their ids and their hash are the same.
    folder = build("gr", "test", open_folder(real_data / "geoqa_test610", "test"), directory=home / "other").info
    assert folder.content_hash == joined.content_hash
    by_id = {item.id: item for item in load("gr")}
    assert by_id["gr-test-000053"].gold == "17.5°"  # one of the twelve whose answer differs in the source of the pictures


@pytest.mark.parametrize(
    ("folder", "split", "rows", "first"),
    [
        ("clevr80", "train", 80, ("How many items are there in the image?", "6")),
        ("superclevr10", "test", 10, ("How many different items are there in the image?", "7")),
        ("geoqa_train1000", "train", 1000, None),
    ],
)
def test_real_folders(folder: str, split: str, rows: int, first: tuple[str, str] | None, real_data: Path, home: Path) -> None:
    build("real", split, open_folder(real_data / folder, split), directory=home)
    examples = load("real", split)
    assert len(examples) == rows
    assert all(min(item.image.size) >= 28 and item.gold for item in examples[:: rows // 10])
    if first:
        assert (examples[0].question, examples[0].gold) == first
        assert examples[0].meta["objects"]


def test_real_prompts_read_whole(real_data: Path, tmp_path: Path) -> None:
    """All 754 and 200 rows read; without images each is a fault of its image alone."""
    for name, count in (("geoqa_test_prompts", 754), ("superclevr_test200_counting_problems", 200)):
        rows = list(open_prompts(real_data / "r1v_prompts" / f"{name}.jsonl", tmp_path).rows)
        assert len(rows) == count
        assert all(isinstance(row, Fault) and row.image for row in rows)


def test_counts_must_be_whole_numbers(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (56, 56), "white").save(tmp_path / "images" / "1.png")
    (tmp_path / "p.jsonl").write_text('{"question": "?", "ground_truth": "140°", "image_path": "1.png"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="row 1: gold '140°' is not a whole number"):
        build("vc", "test", open_prompts(tmp_path / "p.jsonl", tmp_path / "images"), directory=tmp_path / "data")
