"""`mr1-bench reproduce-tables` end to end on an untrained checkpoint: killed and begun again, failing cells, and what it refuses."""

import fcntl
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from mr1_bench import cli, records
from mr1_bench.errors import UserError
from mr1_bench.reports import cells as on_disk
from mr1_bench.reports import reproduce
from mr1_bench.reports.grid import make_grid
from mr1_bench.reports.preset import read_preset, shipped
from mr1_bench.reports.workers import Ended
from tests.processes import children, is_running

PRESET = """
device = "cpu"
tasks = "mr1_vc_synth"
limit = 4
batch_size = 4
seeds = [0]

[recipes]
vc = "tiny-vc"
gr = "tiny-gr"

[settings]
steps = 6
warmup_steps = 3
prompts_per_step = 2
max_new_tokens = 8
eval_every = 6
eval_items = 2
save_every = 1

[settings.sft]
prompts_per_step = 2

[cost]
cell = 1.0
item = 0.01
[cost.vc]
sft = 0.1
grpo = 0.1
grpo-d = 0.1
[cost.gr]
sft = 0.1
grpo = 0.1
grpo-d = 0.1
"""
TRAINED = "grpo-gr-s0"

# Two cells are enough to see every way there is, and a grid has seven at least; the report has tests of its own.
DRIVER = f"""
import sys
from mr1_bench import cli
from mr1_bench.reports import reproduce
whole = reproduce.make_grid
reproduce.make_grid = lambda *args: tuple(cell for cell in whole(*args) if cell.name in ("base", "{TRAINED}"))
reproduce._report = lambda folders, out: print("report of", *sorted(folder.name for folder in folders))
sys.exit(cli.main(["reproduce-tables", *sys.argv[1:]]))
"""


def arguments(preset, checkpoint, out, *more):
    return ["--preset", str(preset), "--model", str(checkpoint), "--out", str(out), "--workers", "1", *more]


def reproduce_tables(*arguments):
    return subprocess.run([sys.executable, "-c", DRIVER, *arguments], capture_output=True, text=True, timeout=300, check=False)


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def data_directory(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MR1_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    path = tmp_path_factory.mktemp("preset") / "mini.toml"
    path.write_text(PRESET)
    return path


@pytest.fixture(scope="module")
def story(tmp_path_factory, preset, tiny_checkpoint):
    """A grid that was killed in the middle of a training, with its workers left to themselves, and begun again."""
    out = tmp_path_factory.mktemp("grid") / "out"
    words = arguments(preset, tiny_checkpoint, out)
    parent = subprocess.Popen([sys.executable, "-c", DRIVER, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: (out / "cells" / TRAINED / "checkpoints" / "step-000002").is_dir() or parent.poll() is not None)
        workers = children(parent.pid)
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not any(is_running(pid) for pid in workers), 20)
    step = rows(out / "cells" / TRAINED / "metrics.jsonl")[-1]["step"]
    base = (out / "cells" / "base" / "cell.json").read_text()
    return {"out": out, "workers": workers, "step": step, "base": base, "again": reproduce_tables(*words), "words": words}


@pytest.fixture
def cell(story, preset, tiny_checkpoint, tmp_path):
    """The trained cell, in a copy that may be spoiled: its folder and what its records must say."""
    grid = make_grid(read_preset(preset), story["out"], str(tiny_checkpoint))
    (found,) = (one for one in grid if one.name == TRAINED)
    copy = tmp_path / "cells" / TRAINED
    shutil.copytree(found.folder, copy, symlinks=True)
    return replace(found, folder=copy), on_disk.want(found, records.checkpoint_sha256(tiny_checkpoint))


def look(cell):
    return on_disk.look(cell[0].folder, cell[1])


def change(path, **values):
    records.write_json(path, records.read_json(path) | values)


def record_of(cell):
    (path,) = cell[0].folder.glob("eval/*/run.json")
    return path


def test_killed_grid_goes_on_where_it_was(story):
    assert len(story["workers"]) == 1
    again = story["again"]
    assert again.returncode == 0, again.stderr
    assert "skip base" in again.stderr
    assert f"go on {TRAINED}: training is at step" in again.stderr
    assert f"report of base {TRAINED}" in again.stdout
    folder = story["out"] / "cells" / TRAINED
    assert 2 <= story["step"] < 6, "the kill came too late to test anything"
    assert [row["step"] for row in rows(folder / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert records.read_json(folder / "run.json")["status"] == "finished"
    assert records.read_json(folder / "cell.json")["resumed"] is True
    assert (story["out"] / "cells" / "base" / "cell.json").read_text() == story["base"]  # made before the kill, and not again
    log = (folder / "log.txt").read_text()
    assert log.count("$ mr1-bench train grpo") == 2
    assert log.count("$ mr1-bench eval") == 1


def test_complete_grid_is_left_as_it_is(story):
    before = {
        path: path.stat().st_mtime_ns
        for path in story["out"].rglob("*")
        if path.is_file() and path.name not in ("cell.json", "reproduce.json")
    }
    done = reproduce_tables(*story["words"])
    assert done.returncode == 0
    assert done.stderr.count("skip ") == 2
    assert before == {path: path.stat().st_mtime_ns for path in before}
    plan = reproduce_tables(*story["words"], "--plan")
    assert [line.rpartition(", ")[2] for line in plan.stdout.splitlines()] == ["skip", "skip"]


def test_cell_json_says_what_the_report_needs(story):
    cell = records.read_json(story["out"] / "cells" / TRAINED / "cell.json")
    assert (cell["format"], cell["name"], cell["arm"], cell["status"]) == (1, TRAINED, "main", "done")
    assert len(cell["plan"]) == 64
    assert cell["cpu_seconds"] > 0


def test_a_cell_that_was_run_elsewhere_is_taken_as_it_is(story, tmp_path, preset, tiny_checkpoint):
    elsewhere = tmp_path / "elsewhere"
    for name in ("base", TRAINED):
        shutil.copytree(story["out"] / "cells" / name, elsewhere / name, symlinks=True)
        (elsewhere / name / "cell.json").unlink()  # as a run by hand, which has none
    done = reproduce_tables(*arguments(preset, tiny_checkpoint, tmp_path / "new", "--also", str(elsewhere)))
    assert done.returncode == 0, done.stderr
    assert f"skip {TRAINED}: run in {elsewhere / TRAINED}" in done.stderr
    assert f"report of base {TRAINED}" in done.stdout
    copied = tmp_path / "copied" / "cells"
    shutil.copytree(elsewhere, copied, symlinks=True)
    done = reproduce_tables(*arguments(preset, tiny_checkpoint, tmp_path / "copied"))
    assert done.stderr.count("skip ") == 2, done.stderr
    assert records.read_json(copied / TRAINED / "cell.json")["arm"] == "main"


def test_finished_cell_is_done_whatever_cell_json_says(cell):
    assert look(cell).status == "done"
    change(cell[0].folder / "cell.json", status="failed", why="bad luck", plan="another")
    assert look(cell).status == "done"


def test_cell_json_alone_is_nothing(cell):
    folder = cell[0].folder
    kept = (folder / "cell.json").read_text()
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "cell.json").write_text(kept)
    assert look(cell).status == "new"
    assert on_disk.make_room(cell[0], folder.parent.parent / "replaced", look(cell)) is None


def spoil_settings(folder, record, status="finished", **values):
    run = records.read_json(folder / "run.json")
    change(folder / "run.json", config=run["config"] | (values or {"lr": 0.5}), status=status)


def spoil_identity(key, value="another"):
    def spoil(folder, record):
        run = records.read_json(folder / "run.json")
        change(folder / "run.json", identity=run["identity"] | {key: value})

    return spoil


def cut(name, count=40):
    def spoil(folder, record):
        path = folder / name
        path.write_bytes(path.read_bytes()[:-count])

    return spoil


def spoil_line(folder, record):
    """Damage a sample and keep the number of lines."""
    (path,) = record.parent.glob("*_samples_*.jsonl")
    path.write_text(path.read_text()[50:])


def spoil_line_of_old_record(folder, record):
    """The same where no hash is recorded, as before there were any: seen by the number of lines only."""
    records.write_json(record, {key: value for key, value in records.read_json(record).items() if key != "sha256"})
    spoil_samples(folder, record)


def spoil_samples(folder, record):
    (path,) = record.parent.glob("*_samples_*.jsonl")
    path.write_bytes(path.read_bytes()[:-5])


def spoil_task(folder, record):
    tasks = records.read_json(record)["tasks"]
    change(record, tasks={name: entry | {"prompt_sha256": "another"} for name, entry in tasks.items()})


@pytest.mark.parametrize(
    ("spoil", "status", "why"),
    [
        (lambda folder, record: change(folder / "run.json", status="running"), "resume", "training is at step 6 of 6"),
        (lambda folder, record: (folder / "run.json").write_text('{"kind": "tra'), "redo", "not readable as JSON"),
        (lambda folder, record: (folder / "run.json").unlink(), "redo", "and no run.json"),
        (spoil_settings, "differs", "lr was 0.5 and is now"),
        (lambda folder, record: spoil_settings(folder, record, "stopped"), "redo", "lr was 0.5 and is now"),
        (spoil_identity("weights_sha256"), "differs", "it started from other weights"),
        (spoil_identity("data_sha256", {"vc": "another"}), "differs", "it was trained on other data"),
        (spoil_identity("code_sha256"), "differs", "the code has changed since"),
        (spoil_identity("code_sha256", ["odd"]), "redo", "expected a text"),
        (lambda folder, record: change(folder / "run.json", config=None), "redo", "expected a object"),
        (lambda folder, record: change(folder / "run.json", last="best", status="running"), "resume", "training is at step"),
        (cut("metrics.jsonl"), "redo", "metrics.jsonl, line 6 of 6: not JSON"),
        (cut("evals.jsonl"), "redo", "evals.jsonl, line"),
        (lambda folder, record: (folder / "last" / "chat_template.jinja").write_text("other"), "evaluate", "it is of other weights"),
        (lambda folder, record: record.unlink(), "evaluate", "it has not been evaluated yet"),
        (lambda folder, record: record.write_text('{"kind": "ev'), "evaluate", "not readable as JSON"),
        (lambda folder, record: change(record, code_sha256="another"), "evaluate", "the code has changed since"),
        (lambda folder, record: next(record.parent.glob("*_results.json")).unlink(), "evaluate", "is missing"),
        (spoil_samples, "evaluate", "is damaged or was changed"),
        (spoil_line, "evaluate", "is damaged or was changed"),
        (spoil_line_of_old_record, "evaluate", "is cut off"),
        (lambda folder, record: next(record.parent.glob("*_results.json")).write_text("{}"), "evaluate", "is damaged or was changed"),
        (lambda folder, record: change(record, model="tiny"), "evaluate", "expected a object"),
        (lambda folder, record: change(record, tasks={"mr1_vc_synth": None}), "evaluate", "expected a object"),
        (lambda folder, record: record.write_text("[]"), "evaluate", "no record of an evaluation"),
        (spoil_task, "evaluate", "prompt_sha256 of mr1_vc_synth has changed since"),
    ],
)
def test_what_is_half_written_or_another_is_never_taken_for_the_cell(cell, spoil, status, why):
    spoil(cell[0].folder, record_of(cell))
    state = look(cell)
    assert state.status == status
    assert why in state.why


def test_settings_that_decide_nothing_do_not_make_a_finished_cell_another(cell):
    changed = {"model": "elsewhere", "device": "cuda:1", "images": "there", "show_every": 99, "save_every": 7, "trust_remote_code": True}
    spoil_settings(cell[0].folder, None, **changed)
    assert look(cell).status == "done"
    spoil_settings(cell[0].folder, None, eval_every=3)
    assert "eval_every was 3" in look(cell).why


def test_finished_cells_of_other_settings_are_listed_and_left_alone_without_redo(
    story, preset, tiny_checkpoint, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    shutil.copytree(story["out"], out, symlinks=True)
    spoil_settings(out / "cells" / TRAINED, None)
    whole = make_grid(read_preset(preset), out, str(tiny_checkpoint))
    ran = []
    monkeypatch.setattr(reproduce, "make_grid", lambda *_: tuple(one for one in whole if one.name in ("base", TRAINED)))
    monkeypatch.setattr(reproduce, "_report", lambda folders, out: None)
    monkeypatch.setattr(reproduce, "run_cells", lambda jobs, *_: ran.extend(jobs) or iter(()))
    words = arguments(preset, tiny_checkpoint, out)
    assert cli.main(["reproduce-tables", *words]) == 2
    said = capsys.readouterr().err
    assert f"{TRAINED}: lr was 0.5 and is now" in said
    assert "add --redo to do them again" in said
    assert ran == []
    assert not (out / "replaced").exists()
    assert cli.main(["reproduce-tables", *words, "--redo"]) == 0
    assert [job.name for job in ran] == [TRAINED]
    assert (out / "replaced" / f"{TRAINED}-1" / "run.json").is_file()


def test_other_limit_is_another_evaluation(cell):
    record = record_of(cell)
    change(record, config=records.read_json(record)["config"] | {"limit": 3})
    assert "limit was 3 and is now 4" in look(cell).why


def test_another_run_is_moved_aside_not_removed(cell, tmp_path):
    spoil_settings(cell[0].folder, None)
    aside = tmp_path / "replaced"
    moved = on_disk.make_room(cell[0], aside, look(cell))
    assert moved == aside / f"{TRAINED}-1"
    assert (moved / "run.json").is_file()
    assert not cell[0].folder.exists()
    shutil.copytree(moved, cell[0].folder, symlinks=True)
    assert on_disk.make_room(cell[0], aside, look(cell)) == aside / f"{TRAINED}-2"


def test_second_evaluation_of_the_same_tasks_is_moved_aside(cell, tmp_path):
    record = record_of(cell)
    shutil.copytree(record.parent, record.parent.with_name("older"))
    change(record.parent.with_name("older") / "run.json", code_sha256="another")
    assert look(cell).status == "done"
    assert on_disk.drop_other_evaluations(cell[0], cell[1], tmp_path / "replaced") == [tmp_path / "replaced" / f"{TRAINED}-older-1"]
    assert look(cell).status == "done"


def test_one_of_two_good_evaluations_stays_and_others_are_not_touched(cell, tmp_path):
    record = record_of(cell)

    def copy(name, **values):
        shutil.copytree(record.parent, record.parent.with_name(name))
        change(record.parent.with_name(name) / "run.json", **values)

    run = records.read_json(record)
    copy("zz")
    copy("other-task", tasks={"mr1_gr_synth_l3": run["tasks"]["mr1_vc_synth"]})
    copy("sampled", config=run["config"] | {"temperature": 1.0})
    shutil.copytree(record.parent, record.parent.with_name("damaged"))
    (record.parent.with_name("damaged") / "run.json").write_text("{")
    moved = on_disk.drop_other_evaluations(cell[0], cell[1], tmp_path / "replaced")
    assert [path.name for path in moved] == [f"{TRAINED}-damaged-1", f"{TRAINED}-zz-1"]
    assert {path.name for path in record.parent.parent.iterdir()} == {record.parent.name, "other-task", "sampled"}
    assert look(cell).status == "done"


def test_cell_of_another_process_is_left_alone(cell):
    with (cell[0].folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert look(cell).status == "busy"
    assert look(cell).status == "done"


def test_dropping_the_optimisers_state_keeps_the_cell(cell):
    assert list(cell[0].folder.glob("checkpoints/*/trainer_state"))
    on_disk.drop_optimizer_state(cell[0].folder)
    assert not list(cell[0].folder.glob("checkpoints/*/trainer_state"))
    assert look(cell).status == "done"


def test_failed_cell_is_recorded_and_the_rest_reported(story, preset, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    """The base fails here, without a worker: what counts is what is written and said."""
    whole = make_grid(read_preset(preset), tmp_path / "out", str(tiny_checkpoint))
    shutil.copytree(story["out"] / "cells" / TRAINED, tmp_path / "out" / "cells" / TRAINED, symlinks=True)
    reported = []
    monkeypatch.setattr(reproduce, "make_grid", lambda *_: tuple(one for one in whole if one.name in ("base", TRAINED)))
    monkeypatch.setattr(reproduce, "_report", lambda folders, out: reported.extend(folders))
    monkeypatch.setattr(reproduce, "run_cells", lambda jobs, *_: iter([Ended(one.name, "failed", "no luck", 1.0, 1.0) for one in jobs]))
    assert cli.main(["reproduce-tables", *arguments(preset, tiny_checkpoint, tmp_path / "out")]) == reproduce.FAILED
    base = records.read_json(tmp_path / "out" / "cells" / "base" / "cell.json")
    assert (base["status"], base["why"]) == ("failed", "no luck")
    assert {folder.name for folder in reported} == {"base", TRAINED}
    shown = capsys.readouterr().err
    assert "1 of 2 cells failed; the same command tries them again" in shown
    assert "base: no luck" in shown
    # A worker that claims success is not believed either.
    monkeypatch.setattr(reproduce, "run_cells", lambda jobs, *_: iter([Ended(one.name, "done", "", 1.0, 1.0) for one in jobs]))
    assert cli.main(["reproduce-tables", *arguments(preset, tiny_checkpoint, tmp_path / "out")]) == reproduce.FAILED
    shown = capsys.readouterr().err
    assert "evaluate base: it failed before: no luck" in shown
    assert "and yet the cell is not complete" in shown


def refuse(*words):
    return cli.main(["reproduce-tables", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "tinny"], "did you mean tiny?"),
        (["--preset", "smoke", "--workers", "0"], "--workers 0"),
        (["--preset", "smoke", "--also", "nowhere"], "--also nowhere is not a folder"),
        (["--preset", "smoke", "--model", "./nowhere"], "no such folder"),
    ],
)
def test_bad_usage_is_one_line_and_nothing_is_made(words, message, tmp_path, capsys):
    assert refuse("--out", str(tmp_path / "out"), *words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_absent_data_is_said_before_any_time_is_spent(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MR1_DATA_DIR", str(tmp_path / "empty"))
    text = shipped()["paper-2b"].read_text().replace('device = "cuda"', 'device = "cpu"')  # without a GPU that is said first
    (tmp_path / "mine.toml").write_text(text)
    assert refuse("--preset", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "out")) == 2
    assert "mr1-bench data build vc" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert refuse("--preset", "paper-2b", "--out", str(tmp_path / "out"), "--plan") == 0  # a plan needs neither data nor model
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 30
    assert "which are done is not known" in captured.err


def test_folder_with_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert refuse("--preset", "smoke", "--out", str(tmp_path)) == 2
    assert "holds other files (mine.txt)" in capsys.readouterr().err
    assert refuse("--preset", "smoke", "--out", str(tmp_path / "mine.txt")) == 2
    assert "is a file" in capsys.readouterr().err


def test_folder_with_another_grid_is_refused(story, preset, tiny_checkpoint, capsys):
    assert refuse("--preset", "smoke", "--out", str(story["out"])) == 2
    assert "holds the grid of another preset: mini, not smoke" in capsys.readouterr().err
    assert refuse("--preset", str(preset), "--model", "tiny", "--out", str(story["out"])) == 2
    assert "holds the grid of another model" in capsys.readouterr().err


def test_two_processes_do_not_share_a_folder(tmp_path):
    with (
        reproduce._only_one(tmp_path),
        pytest.raises(UserError, match="another reproduce-tables is running"),
        reproduce._only_one(tmp_path),
    ):
        pass
    with reproduce._only_one(tmp_path):
        pass
