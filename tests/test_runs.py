"""Evaluations apart from their runs, results of others, the DataFrame, and `mr1-bench runs`."""

import csv
import io
import json
import shutil
from dataclasses import replace

import pytest

from mr1_bench import records
from mr1_bench.cli import main
from mr1_bench.records import RecordError
from mr1_bench.reports.collect import read_study
from mr1_bench.reports.frames import COLUMNS, run_frame
from mr1_bench.reports.study import Missing, Study
from tests.studies import make_run, make_study, write_evaluation, write_missing, write_run, write_study
from tests.test_collect import GR, VC, edit, one_run
from tests.test_records import write_evaluation as write_plain

GRPO_GR = {"method": "grpo", "task": "gr-synth", "seed": 0}


@pytest.fixture(scope="module")
def small() -> Study:
    return make_study(n=12, seeds=2, steps=5)


class TestEvaluationsAlone:
    """Evaluations outside a run's folder: joined with their run where that is certain."""

    def split(self, tmp_path, model):
        """A run whose evaluation lies elsewhere and names its checkpoint as `model`."""
        folder = one_run(tmp_path / "runs", cell=False)
        away = tmp_path / "elsewhere"
        shutil.move(folder / "eval/main", away)
        edit(away / "run.json", lambda run: run["model"].update(path=str(model)))
        return folder

    @pytest.mark.parametrize("model", ["{folder}/last", "{out}/best", "relative"])
    def test_joined_by_the_path_of_the_checkpoint(self, tmp_path, monkeypatch, model):
        monkeypatch.chdir(tmp_path)
        folder = self.split(tmp_path, "")
        edit(folder / "run.json", lambda run: run["config"].update(out="runs-elsewhere/x"))
        path = {"relative": "runs/cells/grpo-gr-synth-s0/last"}.get(model, model.format(folder=folder, out="runs-elsewhere/x"))
        edit(tmp_path / "elsewhere/run.json", lambda run: run["model"].update(path=path))
        (run,) = read_study([tmp_path]).runs
        assert run.folder == folder
        assert run.metrics
        assert set(run.results) == {VC, GR}

    def test_uncertain_is_refused(self, tmp_path):
        folder = self.split(tmp_path, "/moved/away")
        with pytest.raises(RecordError, match=rf"elsewhere evaluates a checkpoint of grpo .*move the evaluation to {folder}/eval"):
            read_study([tmp_path])

    def test_retrained_with_another_method_is_not_joined(self, tmp_path):
        folder = self.split(tmp_path, tmp_path / "runs/cells/grpo-gr-synth-s0/last")
        edit(tmp_path / "elsewhere/run.json", lambda run: run["model"]["training"].update(method="sft"))
        study = read_study([tmp_path])
        assert [(run.method, run.folder == folder, len(run.results)) for run in study.runs] == [("sft", False, 2)]
        assert [one.folder for one in study.missing] == [folder]

    def test_evaluations_of_one_checkpoint_are_one_run(self, tmp_path):
        run = make_run("grpo", GR, n=6, root=tmp_path)
        for task in (VC, GR):
            write_evaluation(tmp_path / task, "gone", "w", GRPO_GR, {task: run.results[task]})
        (read,) = read_study([tmp_path]).runs
        assert (read.name, read.arm, read.weights, dict(read.config)) == ("grpo-gr-synth-s0", "main", "w", {})
        assert list(read.results) == [VC, GR]

    def test_same_weights_as_an_evaluation_inside_the_run(self, tmp_path):
        folder = one_run(tmp_path)
        other = make_run("grpo", GR, n=6, tasks=("mr1_gr_synth_l2",), root=tmp_path)
        weights = records.read_json(folder / "eval/main/run.json")["model"]["checkpoint_sha256"]
        write_evaluation(tmp_path / "l2", "gone", weights, GRPO_GR, other.results)
        (run,) = read_study([tmp_path]).runs
        assert list(run.results) == [VC, GR, "mr1_gr_synth_l2"]


class TestForeign:
    """Results of plain lmms-eval, of any checkpoint, as they are."""

    def test_model_of_the_hub_is_the_base(self, tmp_path):
        write_plain(tmp_path / "a", model_args="pretrained=some/model,device=cpu")
        (run,) = read_study([tmp_path]).runs
        result = run.results["mr1_gr"]
        assert (run.method, run.model, run.weights) == ("base", "some/model", "some/model")
        assert (result.foreign, result.n, result.means["acc"], dict(result.identity)) == (True, 4, 0.75, {"backend": "qwen2_vl"})
        assert result.correct() == {0: True, 1: False, 2: True, 3: True}
        assert result.engine == "qwen2_vl, pretrained=some/model,device=cpu"
        assert run.record["config"]["model"] == "qwen2_vl"

    def test_checkpoint_of_somebody_else_needs_a_declaration(self, tmp_path):
        folder = write_plain(tmp_path / "their/run", model_args="pretrained=/their/checkpoint")
        with pytest.raises(RecordError, match=r"/their/checkpoint is not here.*Say it in .*training.json"):
            read_study([tmp_path])
        for place in (folder, tmp_path / "their"):
            (place / "training.json").write_text('{"method": "grpo-d", "task": "gr", "seed": 4}')
            (run,) = read_study([tmp_path]).runs
            assert (run.name, run.task, run.seed, run.arm) == ("grpo-d-gr-s4", "mr1_gr", 4, "main")
            (place / "training.json").unlink()
        (folder / "training.json").write_text('{"method": "base"}')
        assert read_study([tmp_path]).runs[0].method == "base"
        wrongs = ["[]", '{"method": "sft"}', '{"method": "sft", "task": "chess"}', '{"method": "dpo", "task": "gr", "seed": 0}']
        for wrong in [*wrongs, *(f'{{"method": "sft", "task": "gr", "seed": {seed}}}' for seed in ('"0"', "1.5", "true", "[1]"))]:
            (folder / "training.json").write_text(wrong)
            with pytest.raises(RecordError, match=r"training\.json"):
                read_study([tmp_path])

    def test_checkpoint_at_hand(self, tmp_path):
        model = tmp_path / "model"
        model.mkdir()
        (model / "model.safetensors").write_bytes(b"weights")
        (model / "run.json").write_text('{"method": "sft", "task": "gr", "seed": 1}')
        write_plain(tmp_path / "a", model_args=f"pretrained={model}")
        (run,) = read_study([tmp_path]).runs
        assert (run.method, run.seed, run.weights) == ("sft", 1, records.checkpoint_sha256(model))

    def test_checkpoint_whose_weights_are_gone_or_unnamed(self, tmp_path):
        model = tmp_path / "model"
        model.mkdir()
        for place, arguments, said in (("a", f"pretrained={model}", "is not here"), ("b", "", "does not name its checkpoint")):
            folder = write_plain(tmp_path / place, model_args=arguments)
            with pytest.raises(RecordError, match=said):
                read_study([folder])
            (folder / "training.json").write_text('{"method": "base"}')
            assert read_study([folder]).runs[0].method == "base"

    def test_without_samples_only_the_mean_is_known(self, tmp_path):
        folder = write_plain(tmp_path / "a", model_args="pretrained=x")
        next(folder.glob("*samples*")).unlink()
        result = read_study([tmp_path]).runs[0].results["mr1_gr"]
        assert (result.n, dict(result.means)) == (0, {"acc": 0.75})

    def test_no_accuracy_in_the_results(self, tmp_path):
        folder = write_plain(tmp_path / "a", model_args="pretrained=x")
        edit(next(folder.glob("*_results.json")), lambda content: content["results"]["mr1_gr"].pop("acc,none"))
        with pytest.raises(RecordError, match="has no `acc` of mr1_gr"):
            read_study([tmp_path])

    def test_samples_cut_at_a_line(self, tmp_path):
        folder = write_plain(tmp_path / "a", correct=(1, 1, 0, 0), model_args="pretrained=x")
        path = next(folder.glob("*samples*"))
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
        with pytest.raises(RecordError, match=r"has 2 answers, and acc of them is 1.0000, but .*_results.json says 0.5000"):
            read_study([tmp_path])

    @pytest.mark.parametrize("value", [57.0, -0.1, float("nan"), float("inf")])
    def test_what_is_no_share_is_refused(self, tmp_path, value):
        folder = write_plain(tmp_path / "a", model_args="pretrained=x")
        edit(next(folder.glob("*_results.json")), lambda content: content["results"]["mr1_gr"].update({"acc,none": value}))
        next(folder.glob("*samples*")).unlink()
        with pytest.raises(RecordError, match=rf"{folder}/.*_results.json: acc of mr1_gr is {value}, expected a share between 0 and 1"):
            read_study([tmp_path])

    @pytest.mark.parametrize(
        "content, said",
        [
            ('{"results": {', "cut off"),
            ('{"a": 1}', "no object `results`"),
            ('{"results": {"mr1_gr": 3}, "model_name": "x"}', "`mr1_gr` is '3', expected an object"),
            ('{"results": {"mr1_gr": {"acc,none": 0.5}}, "config": []}', "`config` is"),
            (
                '{"results": {"mr1_gr": {"acc,none": 0.5}}, "config": {"limit": "x"}, "model_name": "x"}',
                "`limit` of mr1_gr is 'x', expected a number",
            ),
        ],
    )
    def test_damaged_results_are_named(self, tmp_path, content, said):
        path = next(write_plain(tmp_path / "a", model_args="pretrained=x").glob("*_results.json"))
        path.write_text(content)
        with pytest.raises(RecordError, match=f"{path}.*{said}"):
            read_study([tmp_path])

    def test_fewer_answers_than_the_file_says(self, tmp_path):
        folder = write_plain(tmp_path / "a", correct=(1, 0, 1, 0), model_args="pretrained=x")
        edit(next(folder.glob("*_results.json")), lambda content: content.update({"n-samples": {"mr1_gr": {"effective": 8}}}))
        with pytest.raises(RecordError, match=r"has 4 answers, and .*_results.json says 8: it was cut off"):
            read_study([tmp_path])

    @pytest.mark.parametrize(
        "kwargs, repeats, left_out",
        [
            ({"temperature": 0.7}, 1, True),
            ({"do_sample": True}, 1, True),
            ({"temperature": 0}, 4, True),
            ({"temperature": 0, "do_sample": False, "top_p": None}, 1, False),
        ],
    )
    def test_sampled_answers_are_not_averaged_with_greedy_ones(self, tmp_path, kwargs, repeats, left_out):
        write_plain(tmp_path / "greedy", model_args="pretrained=x")
        folder = write_plain(tmp_path / "other", task="mr1_vc", model_args="pretrained=x")
        config = {"generation_kwargs": {"max_new_tokens": 1024} | kwargs, "repeats": repeats}
        edit(next(folder.glob("*_results.json")), lambda content: content.update(configs={"mr1_vc": config}))
        study = read_study([tmp_path])
        assert [(one.folder, one.why[:33]) for one in study.missing] == (
            [(folder, "not comparable: its answers were ")] if left_out else []
        )
        assert study.tasks == (["mr1_gr"] if left_out else ["mr1_vc", "mr1_gr"])

    @pytest.mark.parametrize(
        "key, change",
        [
            ("decoding", {"configs": {"mr1_gr": {"generation_kwargs": {"max_new_tokens": 7, "temperature": 0}}}}),
            ("limit", {"config": {"model": "qwen2_vl", "model_args": "", "limit": 9.0}}),
            ("backend", {"config": {"model": "vllm", "model_args": "", "limit": 4.0}}),
            ("max_pixels", {"config": {"model": "qwen2_vl", "model_args": "max_pixels=50176"}}),
            ("", {"config": {"model": "some/model", "limit": 4.0}}),
        ],
    )
    def test_asked_otherwise_than_ours_as_far_as_their_files_say(self, tmp_path, key, change):
        run = make_run("base", n=4, tasks=("mr1_gr",), root=tmp_path)
        ours = tuple(replace(one, gold="65°") for one in run.results["mr1_gr"].answers)
        write_run(replace(run, results={"mr1_gr": replace(run.results["mr1_gr"], answers=ours)}), tmp_path)
        folder = write_plain(tmp_path / "theirs")
        (folder / "training.json").write_text('{"method": "grpo", "task": "gr", "seed": 0}')
        edit(next(folder.glob("*_results.json")), lambda content: content.update(change))
        if not key:
            assert len(read_study([tmp_path]).runs) == 2
            return
        with pytest.raises(RecordError, match=rf"mr1_gr was evaluated differently in .*base/eval/main \({key} .* and {folder} \({key} "):
            read_study([tmp_path])

    def test_one_checkpoint_as_two_seeds(self, tmp_path):
        model = tmp_path / "model"
        model.mkdir()
        (model / "model.safetensors").write_bytes(b"weights")
        for seed in (0, 1):
            folder = write_plain(tmp_path / f"s{seed}", model_args=f"pretrained={model}")
            (folder / "training.json").write_text(json.dumps({"method": "sft", "task": "gr", "seed": seed}))
        with pytest.raises(RecordError, match=r"s0 and .*s1 are evaluations of the same weights .*, as seeds 0 and 1 of sft on mr1_gr"):
            read_study([tmp_path])

    def test_other_items_beside_ours(self, tmp_path):
        run = make_run("base", n=4, tasks=("mr1_gr",), root=tmp_path)
        write_run(run, tmp_path)
        folder = write_plain(tmp_path / "theirs", model_args="pretrained=/their/checkpoint")
        (folder / "training.json").write_text('{"method": "grpo", "task": "gr", "seed": 0}')
        with pytest.raises(RecordError, match=r"mr1_gr has other items in .* \(item 0, gold .*other versions of the data"):
            read_study([tmp_path])
        shutil.rmtree(folder)
        write_plain(folder, correct=(1, 0), model_args="pretrained=/their/checkpoint")
        (folder / "training.json").write_text('{"method": "grpo", "task": "gr", "seed": 0}')
        with pytest.raises(RecordError, match=r"mr1_gr has . items in .* and . in .*: use the same --limit"):
            read_study([tmp_path])

    def test_ours_and_theirs_of_one_model_are_one_base(self, tmp_path):
        run = make_run("base", n=4, tasks=(VC,), root=tmp_path)
        write_evaluation(tmp_path / "ours", "base", "hash", None, run.results)
        write_plain(tmp_path / "theirs", model_args="pretrained=tiny")
        (base,) = read_study([tmp_path]).runs
        assert sorted(base.results) == ["mr1_gr", VC]

    def test_tasks_of_others_are_passed_over(self, tmp_path):
        write_plain(tmp_path / "a", model_args="pretrained=x")
        write_plain(tmp_path / "b", task="countbenchqa", model_args="pretrained=x")
        assert read_study([tmp_path]).tasks == ["mr1_gr"]


def test_parity_records_come_along(tmp_path):
    folder = one_run(tmp_path)
    (folder / "parity.json").write_text('{"differing": 2}')
    assert read_study([tmp_path]).parity == ({"differing": 2},)


def test_frame_has_a_row_a_run_and_task(small, tmp_path):
    study = replace(small, missing=(Missing("x", tmp_path, "no disk"),))
    frame = run_frame(study)
    assert list(frame.columns) == list(COLUMNS)
    assert len(frame) == sum(len(run.results) for run in study.runs) + 1
    run = next(run for run in small.runs if run.name == "grpo-d-gr-synth-s1")
    row = frame[(frame.run == run.name) & (frame.task == GR)].iloc[0]
    k = sum(answer.scores["acc"] for answer in run.results[GR].answers)
    assert (row.acc, row.acc_k, row.n, row.seed) == (pytest.approx(k / 12), k, 12, 1)
    assert (row.method, row.arm, row.kl_schedule, row.beta_max, row.relation) == ("grpo-d", "main", "linear", 0.04, "same-task")
    assert row.acc_low < row.acc < row.acc_high
    assert frame[frame.run == "base"].seed.isna().all()
    assert frame[frame.status == "missing"].iloc[0].why == "no disk"


class TestCommand:
    """`mr1-bench runs`."""

    def test_table(self, small, tmp_path, capsys):
        write_study(small, tmp_path)
        write_missing(Missing("sft-x", tmp_path, "killed by a test"), tmp_path)
        assert main(["runs", str(tmp_path)]) == 0
        out, err = capsys.readouterr()
        lines = out.splitlines()
        assert err == ""
        assert lines[0].split()[:7] == ["run", "method", "trained", "on", "arm", "seed", "steps"]
        assert f"{VC} acc %, n = 12" in lines[0]
        (line,) = (line for line in lines if line.startswith("grpo-d-gr-synth-s1 "))
        assert line.split()[:7] == ["grpo-d-gr-synth-s1", "GRPO-D", GR, "main", "1", "5", "finished"]
        assert line.endswith(str(tmp_path / "cells/grpo-d-gr-synth-s1"))
        assert "sft-x  killed by a test" in out

    def test_csv_and_json_hold_the_frame(self, small, tmp_path, capsys):
        write_study(small, tmp_path)
        assert main(["runs", str(tmp_path), "--csv"]) == 0
        table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert main(["runs", str(tmp_path), "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert len(table) == len(rows) == 2 * len(small.runs)
        assert list(table[0]) == list(rows[0]) == list(COLUMNS)
        assert [row["seed"] for row in table] == ["" if row["seed"] is None else str(row["seed"]) for row in rows]
        assert [float(row["acc"]) for row in table] == pytest.approx([row["acc"] for row in rows])

    def test_lists_what_a_report_would_refuse(self, tmp_path, capsys):
        one_run(tmp_path, name="x", cell=False)
        one_run(tmp_path, name="y", cell=False)
        assert main(["runs", str(tmp_path)]) == 0
        out, err = capsys.readouterr()
        assert "grpo-gr-synth-s0-x" in out
        assert "grpo-gr-synth-s0-y" in out
        assert "would refuse these runs together (1)" in err
        assert "the same run twice" in err

    def test_empty_folder_is_one_line(self, tmp_path, capsys):
        assert main(["runs", str(tmp_path)]) == 2
        assert capsys.readouterr().err.startswith(f"mr1-bench: {tmp_path} holds no run and no evaluation")
