"""Studies read from folders: what belongs together, what is left out and why, and what may not stand in one table."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mr1_bench.records import RecordError
from mr1_bench.reports.collect import read_study, survey
from mr1_bench.reports.study import Missing, Study
from tests.studies import make_run, make_study, write_evaluation, write_missing, write_run, write_study

VC, GR = "mr1_vc_synth", "mr1_gr_synth"


@pytest.fixture(scope="module")
def small() -> Study:
    return make_study(n=12, seeds=2, steps=5)


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def one_run(folder: Path, method="grpo", task=GR, seed=0, cell=True, **more) -> Path:
    return write_run(make_run(method, task, seed, n=6, steps=3, root=folder, **more), folder, cell=cell)


def at(study: Study, root: Path) -> Study:
    """The study as it is when its folder is `root`."""
    runs = []
    for run in study.runs:
        folder = root / "cells" / run.name
        results = {task: replace(one, folder=folder / "eval" / "main") for task, one in run.results.items()}
        runs.append(replace(run, folder=folder, results=results))
    return replace(study, runs=tuple(runs))


def test_what_is_written_is_what_is_read(small, tmp_path):
    write_study(small, tmp_path)
    assert read_study([tmp_path]) == at(small, tmp_path)


def test_hostile_text_survives(tmp_path):
    run = make_run("base", n=11, hostile=True, root=tmp_path)
    odd = replace(run.results[GR].answers[1], text="a\u2028b\x85\x0b\ud800 </script>")
    answers = (run.results[GR].answers[0], odd, *run.results[GR].answers[2:])
    run = replace(run, results={GR: replace(run.results[GR], answers=answers)})
    write_run(run, tmp_path)
    assert read_study([tmp_path]).runs[0].results[GR].answers == answers


def test_runs_made_by_hand_find_their_arms(small, tmp_path):
    write_study(small, tmp_path, cells=False)
    read = read_study([tmp_path])
    assert {run.folder.name: run.arm for run in read.runs if run.method != "base"} == {
        run.name: run.arm for run in small.runs if run.method != "base"
    }
    names = [run.name for run in read.runs]
    assert len(set(names)) == len(names)
    assert "sft-gr-synth-s1" in names
    assert "grpo-gr-synth-s1" in names


def test_a_change_in_two_things_is_no_sweep(tmp_path):
    for seed in (0, 1):
        one_run(tmp_path, seed=seed, cell=False)
    one_run(tmp_path, changes={"beta_max": 0.2, "format_weight": 0.1}, cell=False)
    one_run(tmp_path, changes={"lr": 1.0}, cell=False)
    one_run(tmp_path, "grpo-d", seed=1, cell=False)
    one_run(tmp_path, "grpo-d", cell=False)
    one_run(tmp_path, "grpo-d", changes={"kl_schedule": "adaptive", "beta_min": 0.01, "kl_target": 0.1}, cell=False)
    one_run(tmp_path, "grpo-d", changes={"beta_min": 0.01}, cell=False)
    arms = {run.folder.name: run.arm for run in read_study([tmp_path]).runs}
    assert arms.pop("grpo-d-gr-synth-s0-kl-schedule-adaptive-beta-min-0.01-kl-target-0.1") == "schedule"
    assert {name for name, arm in arms.items() if arm == "other"} == {
        "grpo-gr-synth-s0-beta-max-0.2-format-weight-0.1",
        "grpo-gr-synth-s0-lr-1.0",
        "grpo-d-gr-synth-s0-beta-min-0.01",
    }


def test_settings_without_effect_do_not_split_an_arm(tmp_path):
    one_run(tmp_path, cell=False)
    one_run(tmp_path, seed=1, changes={"beta_min": 0.04, "kl_target": 0.9, "keep": 1, "device": "cpu"}, cell=False)
    assert [run.arm for run in read_study([tmp_path]).runs] == ["main", "main"]


def test_tie_between_arms_asks_for_a_name(tmp_path):
    first = one_run(tmp_path, cell=False)
    one_run(tmp_path, changes={"beta_max": 0.16}, cell=False)
    with pytest.raises(RecordError, match=r"differ in beta_max \(0.04 and 0.16\), with 1 seed each.*main arm cannot be told.*cell.json"):
        read_study([tmp_path])
    assert {run.arm for run in survey([tmp_path])[0].runs} == {"other"}
    (first / "cell.json").write_text('{"arm": "main"}')
    assert [run.arm for run in read_study([tmp_path]).runs] == ["main", "beta"]
    (first / "cell.json").write_text('{"arm": "best"}')
    with pytest.raises(RecordError, match=r"cell.json: expected .* main, beta"):
        read_study([tmp_path])


def test_level_and_several_tasks_are_in_the_name(tmp_path):
    folder = one_run(tmp_path, cell=False)

    def change(run):
        run["config"] |= {"task": "vc-synth,vc-synth,gr-synth", "level": 3}
        run["task"] = run["config"]["task"]

    edit(folder / "run.json", change)
    edit(folder / "eval/main/run.json", lambda run: run["model"]["training"].update(task="vc-synth,vc-synth,gr-synth"))
    (run,) = read_study([tmp_path]).runs
    assert (run.task, run.name) == ("mr1_vc_synth_l3,mr1_gr_synth_l3", "grpo-vc-synth-l3+gr-synth-l3-s0")


class TestMissing:
    """What is not finished is listed with its reason and never read."""

    def test_failed_cell(self, tmp_path):
        one_run(tmp_path)
        write_missing(Missing("sft-gr-synth-s0", tmp_path, "loss is not finite at step 7"), tmp_path)
        folder = one_run(tmp_path, "sft")
        edit(folder / "run.json", lambda run: run.update(status="running"))  # its files may be there all the same
        write_missing(Missing("sft-gr-synth-s0", tmp_path, "loss is not finite at step 7"), tmp_path)
        study = read_study([tmp_path])
        assert [run.name for run in study.runs] == ["grpo-gr-synth-s0"]
        assert study.missing == (Missing("sft-gr-synth-s0", folder, "loss is not finite at step 7"),)

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"status": "running"}, "under way or was killed"),
            ({"status": "stopped", "results": {"stopped": "KL spike at step 3"}}, "stopped before its last step: KL spike at step 3"),
        ],
    )
    def test_unfinished_training(self, tmp_path, change, why):
        one_run(tmp_path)
        folder = one_run(tmp_path, seed=1, cell=False)
        edit(folder / "run.json", lambda run: run.update(change))
        study = read_study([tmp_path])
        assert [run.seed for run in study.runs] == [0]
        assert why in study.missing[0].why

    def test_failure_that_was_mended(self, small, tmp_path):
        """The records of the run and its evaluation tell more than an older attempt's `cell.json`."""
        write_study(small, tmp_path)
        for run in small.runs:
            write_missing(Missing(run.name, tmp_path, "no disk"), tmp_path)
            edit(tmp_path / f"cells/{run.name}/cell.json", lambda cell, arm=run.arm: cell.update(arm=arm))
        assert read_study([tmp_path]) == at(small, tmp_path)
        (tmp_path / "cells/base/cell.json").write_text('{"format": 1, "na')
        assert "base" in {run.name for run in read_study([tmp_path]).runs}
        (tmp_path / "cells/base/eval/main/run.json").write_text("{")
        assert "half-written" in read_study([tmp_path]).missing[0].why

    def test_cut_off_cell_record(self, tmp_path):
        one_run(tmp_path)
        folder = one_run(tmp_path, seed=1)
        (folder / "eval/main/run.json").unlink()
        (folder / "cell.json").write_text('{"format": 1, "na')
        study = read_study([tmp_path])
        assert [run.seed for run in study.runs] == [0]
        assert "half-written" in study.missing[0].why

    def test_unfinished_evaluation(self, tmp_path):
        one_run(tmp_path)
        folder = one_run(tmp_path, seed=1, cell=False)
        (folder / "eval/main/run.json").unlink()
        study = read_study([tmp_path])
        assert [run.seed for run in study.runs] == [0]
        assert {one.why.partition(":")[0] for one in study.missing} == {"unfinished evaluation", "trained, but not evaluated yet"}

    def test_trained_but_not_evaluated(self, tmp_path):
        """A cell is known by its place, without any plan or `cell.json`."""
        for seed in (0, 1):
            folder = one_run(tmp_path, seed=seed, cell=False)
        shutil.rmtree(folder / "eval")
        study = read_study([tmp_path])
        assert [run.seed for run in study.runs] == [0]
        assert study.missing[0].folder == folder and study.missing[0].why.startswith("trained, but not evaluated yet")

    def test_sampled_answers_are_not_compared(self, tmp_path):
        folder = one_run(tmp_path)
        shutil.copytree(folder / "eval/main", folder / "eval/sampled")
        edit(folder / "eval/sampled/run.json", lambda run: run["config"].update(temperature=1.0, repeats=4))
        study = read_study([tmp_path])
        assert study.runs[0].results[GR].folder.name == "main"
        assert study.missing[0].why.startswith("not comparable: its answers were sampled")

    def test_plan_names_what_was_not_run_and_arms(self, tmp_path):
        one_run(tmp_path, cell=False)
        one_run(tmp_path, changes={"beta_max": 0.16}, cell=False)  # a tie, were it not for the plan
        shutil.copytree(tmp_path / "cells/grpo-gr-synth-s0", tmp_path / "replaced/grpo-gr-synth-s0-1")
        cells = {"grpo-gr-synth-s0": "main", "grpo-gr-synth-s0-beta-max-0.16": "beta", "sft-gr-synth-s0": "main"}
        (tmp_path / "reproduce.json").write_text(json.dumps({"format": 1, "kind": "grid", "cells": cells}))
        study = read_study([tmp_path])
        assert {run.name: run.arm for run in study.runs} == {name: arm for name, arm in cells.items() if not name.startswith("sft")}
        assert study.missing == (Missing("sft-gr-synth-s0", tmp_path / "cells/sft-gr-synth-s0", "planned, but not run yet"),)

    def test_nothing_but_missing_runs(self, tmp_path):
        write_missing(Missing("base", tmp_path, "no disk"), tmp_path)
        with pytest.raises(RecordError, match=r"no finished run or evaluation\n.*no disk"):
            read_study([tmp_path])


class TestBadInput:
    """Named, with what to do; nothing is averaged that should not be."""

    def test_empty_folder(self, tmp_path):
        one_run(tmp_path / "full")
        (tmp_path / "empty").mkdir()
        with pytest.raises(RecordError, match=r"empty holds no run and no evaluation: make one"):
            read_study([tmp_path / "full", tmp_path / "empty"])
        with pytest.raises(RecordError, match="nowhere is not a folder"):
            read_study([tmp_path / "nowhere"])

    @pytest.mark.parametrize(
        "key, value, place",
        [
            *((key, "feed", "task") for key in ("dataset_sha256", "pixels_sha256", "prompt_sha256")),
            ("decoding", {"temperature": 0.0}, "task"),
            ("limit", 5, "task"),
            ("backend", "vllm", "config"),
            ("max_pixels", 50176, "config"),
            ("code_sha256", "feed", "run"),
        ],
    )
    def test_other_versions_name_both_folders_and_values(self, tmp_path, key, value, place):
        one_run(tmp_path)
        folder = one_run(tmp_path, seed=1)
        if place != "task":
            edit(folder / "eval/main/run.json", lambda run: (run if place == "run" else run["config"]).update({key: value}))
        edit(folder / "eval/main/run.json", lambda run: run["tasks"][GR].update({key: value}) if place == "task" else None)
        (tmp_path / "first").mkdir()
        with pytest.raises(RecordError) as caught:
            read_study([tmp_path])
        message = str(caught.value)
        assert f"{GR} was evaluated differently in {tmp_path}/cells/grpo-gr-synth-s0/eval/main ({key} " in message
        assert f"{folder / 'eval/main'} ({key} {value}; 1 so): they may not stand in one table; evaluate one of them again, or" in message
        assert len(message.splitlines()) == (1 if place == "task" else 2), "a task each"

    @pytest.mark.parametrize("arm", ["main", "beta"])
    @pytest.mark.parametrize("key", ["code_sha256", "prompts_sha256"])
    def test_seeds_trained_by_other_code_or_with_other_prompts_are_not_averaged(self, tmp_path, key, arm):
        first = one_run(tmp_path, arm=arm)
        folder = one_run(tmp_path, seed=1, arm=arm)
        edit(folder / "run.json", lambda run: run["identity"].update({key: "feed"}))
        with pytest.raises(RecordError) as caught:
            read_study([tmp_path])
        said = f"{first} and {folder} are both in the {arm} arm of grpo on {GR}, but differ in {key} ("
        assert str(caught.value).startswith(said)
        assert " and feed); their mean would mean nothing: train one of them again, leave one out, or " in str(caught.value)
        edit(folder / "cell.json", lambda cell: cell.update(arm="other"))
        assert len(read_study([tmp_path]).runs) == 2

    def test_sft_is_no_point_of_a_sweep(self, tmp_path):
        one_run(tmp_path, "sft", arm="beta")
        with pytest.raises(RecordError, match=r"sft-gr-synth-s0 is sft, which has no beta to sweep"):
            read_study([tmp_path])

    def test_trainings_that_end_in_the_same_weights_are_two_all_the_same(self, tmp_path):
        weights = "b" * 64
        for changes in ({"beta_max": 0.0}, {"beta_max": 0.01}):
            folder = one_run(tmp_path, changes=changes, arm="beta")
            edit(folder / "eval/main/run.json", lambda run: run["model"].update(checkpoint_sha256=weights))
        assert [run.weights for run in read_study([tmp_path]).runs] == [weights, weights]

    @pytest.mark.parametrize("name", ["metrics.jsonl", "eval/main/*samples_mr1_gr_synth.jsonl", "run.json", "eval/main/run.json"])
    def test_files_cut_inside_a_character(self, tmp_path, name):
        path = next(one_run(tmp_path).glob(name))
        path.write_bytes(path.read_bytes() + "°".encode()[:1])
        with pytest.raises(RecordError, match=rf"{path}.*cut off"):
            read_study([tmp_path])

    @pytest.mark.parametrize("content", ["[]", "{}", '{"kind": "evil"}', '{"kind": null}', "3", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
    def test_a_run_record_that_is_none_is_named(self, tmp_path, content):
        folder = one_run(tmp_path)
        (folder / "eval/main/run.json").write_text(content)
        with pytest.raises(
            RecordError, match=rf"{folder}/eval/main/run.json is no(t readable as JSON|.*expected train, eval or checkpoint)"
        ):
            read_study([tmp_path])

    def test_same_run_in_two_folders(self, tmp_path):
        one_run(tmp_path / "a", cell=False)
        one_run(tmp_path / "b", cell=False)
        with pytest.raises(RecordError, match=r"a/cells/grpo-gr-synth-s0 and .*b/cells/grpo-gr-synth-s0 are the same run twice.*name one"):
            read_study([tmp_path])

    def test_same_settings_and_seed_with_other_weights(self, tmp_path):
        one_run(tmp_path, name="x", cell=False)
        one_run(tmp_path, name="y", cell=False)
        with pytest.raises(RecordError, match=r"the same run twice: grpo on mr1_gr_synth, seed 0, the same settings"):
            read_study([tmp_path])

    def test_same_folder_by_several_ways_is_read_once(self, small, tmp_path, monkeypatch):
        write_study(small, tmp_path / "real")
        (tmp_path / "link").symlink_to(tmp_path / "real")
        monkeypatch.chdir(tmp_path)
        inside = Path("real/cells/base/eval")
        study = read_study([inside, Path("real"), tmp_path / "link", tmp_path / "real/cells"])
        assert len(study.runs) == len(small.runs)

    def test_two_evaluations_of_one_checkpoint(self, tmp_path):
        folder = one_run(tmp_path)
        shutil.copytree(folder / "eval/main", folder / "eval/again")
        with pytest.raises(RecordError, match=r"eval/again and .*eval/main both evaluate mr1_.*with the same weights; name one"):
            read_study([tmp_path])

    def test_two_checkpoints_of_one_run(self, tmp_path):
        folder = one_run(tmp_path)
        other = make_run("grpo", GR, n=6, tasks=("mr1_gr_synth_l2",), root=tmp_path)
        write_evaluation(folder / "eval/l2", "x", "other", {"method": "grpo", "task": "gr-synth", "seed": 0}, other.results)
        with pytest.raises(RecordError, match="evaluate different checkpoints of the run"):
            read_study([tmp_path])

    def test_samples_cut_in_the_middle_of_a_line(self, tmp_path):
        path = next(one_run(tmp_path).glob(f"eval/main/*samples_{GR}.jsonl"))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(RecordError, match=rf"samples_{GR}.jsonl, line 3 of 3: not JSON.*cut off"):
            read_study([tmp_path])

    def test_samples_cut_at_a_line(self, tmp_path):
        path = next(one_run(tmp_path).glob(f"eval/main/*samples_{GR}.jsonl"))
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
        with pytest.raises(RecordError, match=rf"samples_{GR}.jsonl has 4 answers, but run.json says 6"):
            read_study([tmp_path])

    def test_samples_gone_or_changed(self, tmp_path):
        path = next(one_run(tmp_path).glob(f"eval/main/*samples_{GR}.jsonl"))
        text = path.read_text()
        path.write_text(text.replace('"format": 1.0', '"format": 0.0', 1))
        with pytest.raises(RecordError, match=r"format of its answers is 0\.\d+, but run.json says"):
            read_study([tmp_path])
        path.write_text(text.replace('"acc": 1.0', '"acc": 0.5').replace('"acc": 0.0', '"acc": 0.5'))
        with pytest.raises(RecordError, match=r"line 1: not a sample of lmms-eval .*a verdict is 0 or 1"):
            read_study([tmp_path])
        path.unlink()
        with pytest.raises(RecordError, match=r"which its run\.json names"):
            read_study([tmp_path])

    def test_metric_missing_in_a_sample(self, tmp_path):
        path = next(one_run(tmp_path).glob(f"eval/main/*samples_{GR}.jsonl"))
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        del rows[4]["acc"]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(RecordError, match=r"line 5: the sample has no `acc`; evaluate again"):
            read_study([tmp_path])

    def test_no_verdict_of_the_published_grader_is_no_error(self, tmp_path):
        run = make_run("base", n=6, root=tmp_path)
        answers = list(run.results[VC].answers)
        answers[2] = replace(answers[2], scores={key: value for key, value in answers[2].scores.items() if key != "acc_r1v"})
        verdicts = [answer.scores["acc_r1v"] for answer in answers if "acc_r1v" in answer.scores]
        means = dict(run.results[VC].means) | {"acc_r1v": sum(verdicts) / 5}
        run = replace(run, results={VC: replace(run.results[VC], answers=tuple(answers), means=means)})
        write_run(run, tmp_path)
        assert len(read_study([tmp_path]).runs[0].results[VC].correct("acc_r1v")) == 5

    def test_several_answers_an_item(self, tmp_path):
        path = next(one_run(tmp_path).glob(f"eval/main/*samples_{GR}.jsonl"))
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join([*lines[:5], lines[0]]))
        with pytest.raises(RecordError, match="line 6: a second answer to item 0; several answers an item are not averaged"):
            read_study([tmp_path])

    def test_metrics_file_cut_off(self, tmp_path):
        path = one_run(tmp_path) / "metrics.jsonl"
        path.write_text(path.read_text()[:-30])
        with pytest.raises(RecordError, match=r"metrics.jsonl, line 3 of 3: not JSON"):
            read_study([tmp_path])

    def test_run_record_cut_off(self, tmp_path):
        path = one_run(tmp_path) / "run.json"
        path.write_text(path.read_text()[:200])
        with pytest.raises(RecordError, match=r"run.json is not readable as JSON.*may be cut off"):
            read_study([tmp_path])

    def test_run_without_a_seed(self, tmp_path):
        run = make_run("grpo", GR, n=6, root=tmp_path)
        write_evaluation(tmp_path / "x", "x", "w", {"method": "grpo", "task": "gr-synth", "seed": None}, run.results)
        with pytest.raises(RecordError, match=r'x: grpo on mr1_gr_synth without a training seed.*"seed": N'):
            read_study([tmp_path])

    def test_main_arm_of_several_settings(self, tmp_path):
        one_run(tmp_path)
        one_run(tmp_path, seed=1, changes={"lr": 0.5})
        with pytest.raises(RecordError, match=r"both in the main arm of grpo on mr1_gr_synth, but differ in lr \(0.0002 and 0.5\)"):
            read_study([tmp_path])

    def test_main_arms_from_several_starts(self, tmp_path):
        one_run(tmp_path)
        folder = one_run(tmp_path, "sft")
        edit(folder / "run.json", lambda run: run["identity"].update(weights_sha256="another"))
        with pytest.raises(RecordError, match=r"started from weights .* \(tiny\) and .* from another \(tiny\): .*reports of their own"):
            read_study([tmp_path])
        edit(folder / "cell.json", lambda cell: cell.update(arm="other"))
        assert len(read_study([tmp_path]).runs) == 2

    def test_two_bases(self, tmp_path):
        for name in ("a", "b"):
            write_evaluation(tmp_path / name, name, f"weights-{name}", None, make_run("base", n=6, name=name).results)
        with pytest.raises(RecordError, match=r"2 models without a training record: .*training.json"):
            read_study([tmp_path])

    def test_many_problems_are_cut_short(self, tmp_path):
        for seed in range(12):
            run = make_run("grpo", GR, n=6, root=tmp_path)
            write_evaluation(tmp_path / str(seed), "x", f"w{seed}", {"method": "grpo", "task": "gr-synth", "seed": None}, run.results)
        with pytest.raises(RecordError, match=r"(?s)^[^\n]*(\n[^\n]*){7}\n… and 4 more$"):
            read_study([tmp_path])
