"""`mr1-bench eval` end to end on the tiny checkpoint: the record, going on after a kill, and refusing what it must."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mr1_bench import records
from mr1_bench.cli import main
from mr1_bench.model_files import resolve_model
from mr1_bench.reports.collect import read_study
from mr1_bench.source import commit
from mr1_bench.tasks.journal import Journal, journaled
from mr1_bench.trainers import tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def data_directory(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MR1_DATA_DIR", str(tmp_path_factory.getbasetemp() / "mr1-data"))


def command(checkpoint, out, *more):
    """Arguments of a small evaluation."""
    return ["eval", "--model", str(checkpoint), "--out", str(out), "--device", "cpu", "--batch-size", "4", *more]


def run(*arguments, **env):
    return subprocess.run(
        [sys.executable, "-m", "mr1_bench", *arguments],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )


def only_record(out):
    (path,) = out.glob("eval/*/run.json")
    return json.loads(path.read_text()), path.parent


def samples(folder, task):
    (path,) = folder.glob(f"*_samples_{task}.jsonl")
    return [json.loads(line)["filtered_resps"] for line in path.read_text().splitlines()]


def test_record_holds_what_the_number_was_made_from(checkpoint, tmp_path):
    done = run(*command(checkpoint, tmp_path, "--tasks", "mr1_synth", "--limit", "6"))
    assert done.returncode == 0, done.stderr
    assert "mr1_vc_synth" in done.stdout
    assert "mr1_synth (mean of tasks)" in done.stdout
    record, _ = only_record(tmp_path)
    assert record["kind"] == "eval"
    assert record["model"] == {"path": str(checkpoint), "checkpoint_sha256": records.checkpoint_sha256(checkpoint), "training": None}
    assert record["commit"] == commit()
    assert record["config"]["seed"] == 0
    assert record["packages"]["lmms-eval"] == "0.7.3"
    assert record["answers"] == {"total": 12, "made_in_this_run": 12}
    assert sys.platform != "linux" or record["peak_memory_bytes"] > 10**8
    entry = record["tasks"]["mr1_gr_synth"]
    assert entry["n"] == 6
    assert len(entry["dataset_sha256"]) == len(entry["prompt_sha256"]) == 64
    assert entry["decoding"] == {"max_new_tokens": 128, "temperature": 0.0, "top_p": 1.0}
    assert set(entry["metrics"]) == {"acc", "acc_r1v", "format", "answered"}
    assert entry["metrics"]["acc"]["n"] == 6
    assert entry["tokens"]["completion"] > 0
    # lmms-eval's own files say the same, and are read back
    (base,) = read_study([tmp_path]).runs
    assert base.results["mr1_gr_synth"].means["acc"] == entry["metrics"]["acc"]["value"]
    assert base.results["mr1_gr_synth"].n == 6

    again = run(*command(checkpoint, tmp_path, "--tasks", "mr1_synth", "--limit", "6"))
    assert again.returncode == 0
    assert "already complete" in again.stderr
    assert again.stdout == done.stdout


def test_killed_evaluation_goes_on_and_ends_the_same(checkpoint, tmp_path):
    arguments = ["--tasks", "mr1_vc_synth", "--limit", "64", "--temperature", "1", "--seed", "3"]
    whole = run(*command(checkpoint, tmp_path / "whole", *arguments))
    assert whole.returncode == 0, whole.stderr
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-m", "mr1_bench", *command(checkpoint, killed, *arguments)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        journals = list(killed.glob("eval/*/journal.jsonl"))
        if journals and len(journals[0].read_bytes().splitlines()) >= 2:
            break
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(killed.glob("eval/*/run.json"))
    with pytest.raises(records.RecordError, match="no finished run or evaluation"):
        read_study([killed])

    done = run(*command(checkpoint, killed, *arguments))
    assert done.returncode == 0, done.stderr
    record, folder = only_record(killed)
    assert record["answers"]["total"] == 64
    assert 0 < record["answers"]["made_in_this_run"] < 64
    _, whole_folder = only_record(tmp_path / "whole")
    assert samples(folder, "mr1_vc_synth") == samples(whole_folder, "mr1_vc_synth")


def test_other_weights_get_a_record_of_their_own(checkpoint, tmp_path):
    other = tiny.build(tmp_path / "model", seed=1)
    out = tmp_path / "out"
    for model in (checkpoint, other):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(model)
        assert run(*command(tmp_path / "link", out, "--tasks", "mr1_vc_synth", "--limit", "4")).returncode == 0
    found = [json.loads(path.read_text()) for path in out.glob("eval/*/run.json")]
    assert len({record["model"]["checkpoint_sha256"] for record in found}) == 2
    assert all(record["answers"]["made_in_this_run"] == 4 for record in found)
    named = run(*command(checkpoint, out, "--tasks", "mr1_vc_synth", "--limit", "4", "--name", next(out.glob("eval/*")).name))
    other_named = run(*command(other, out, "--tasks", "mr1_vc_synth", "--limit", "4", "--name", next(out.glob("eval/*")).name))
    assert sorted([named.returncode, other_named.returncode]) == [0, 2]
    assert "another evaluation" in named.stderr + other_named.stderr


def test_repeats_give_avg_and_pass(checkpoint, tmp_path):
    done = run(*command(checkpoint, tmp_path, "--tasks", "mr1_vc_synth", "--limit", "4", "--repeats", "3", "--temperature", "1"))
    assert done.returncode == 0, done.stderr
    record, _ = only_record(tmp_path)
    assert record["answers"]["total"] == 12
    assert record["tasks"]["mr1_vc_synth"]["repeats"]["n"] == 3
    assert "avg@3" in done.stdout
    assert "pass@3" in done.stdout


def test_real_data_end_to_end(checkpoint, real_data, tmp_path, monkeypatch):
    monkeypatch.setenv("MR1_DATA_DIR", str(tmp_path / "data"))
    prompts = real_data / "r1v_prompts" / "geoqa_test_prompts.jsonl"
    assert (
        main(["data", "build", "gr", "--prompts", str(prompts), "--images", str(real_data / "geoqa_test610/images"), "--allow-missing"])
        == 0
    )
    assert main(["data", "build", "vc", "--folder", str(real_data / "superclevr10")]) == 0
    done = run(*command(checkpoint, tmp_path / "out", "--tasks", "mr1_gr,mr1_vc", "--limit", "4"))
    assert done.returncode == 0, done.stderr
    record, _ = only_record(tmp_path / "out")
    assert record["tasks"]["mr1_gr"]["n"] == record["tasks"]["mr1_vc"]["n"] == 4


def test_plain_lmms_eval_command(checkpoint, tmp_path):
    model_args = f"pretrained={checkpoint},device=cpu,device_map=cpu"
    lmms_eval = Path(sys.executable).with_name("lmms-eval")
    options = ["--tasks", "mr1_gr_synth", "--limit", "3", "--batch_size", "3", "--log_samples", "--output_path", str(tmp_path)]
    done = subprocess.run(
        [lmms_eval, "--model", "qwen2_vl", "--model_args", model_args, *options],
        capture_output=True,
        text=True,
        timeout=600,
    )
    (base,) = read_study([tmp_path]).runs
    assert set(base.results["mr1_gr_synth"].means) >= {"acc", "acc_r1v", "format", "answered"}, done.stderr
    assert base.results["mr1_gr_synth"].n == 3
    assert "acc_r1v" in done.stdout


def test_plain_lmms_eval_command_ends_with_how_to_get_absent_data(checkpoint, tmp_path):
    lmms_eval = Path(sys.executable).with_name("lmms-eval")
    done = subprocess.run(
        [lmms_eval, "--model", "qwen2_vl", "--model_args", f"pretrained={checkpoint},device=cpu,device_map=cpu", "--tasks", "mr1_gr"],
        env=os.environ | {"MR1_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "mr1-bench data build gr" in done.stderr.splitlines()[-1]


def test_what_is_missing_or_damaged_is_written_again(checkpoint, tmp_path):
    arguments = command(checkpoint, tmp_path, "--tasks", "mr1_vc_synth", "--limit", "4")
    assert run(*arguments).returncode == 0
    first, folder = only_record(tmp_path)

    def cut(path):
        path.write_text(path.read_text()[40:])  # as many lines as before

    for spoil, pattern, why in (
        (Path.unlink, "*_samples_*.jsonl", "is missing"),
        (cut, "*_samples_*.jsonl", "is damaged or was changed"),
        (cut, "run.json", "its record is damaged"),
    ):
        spoil(next(folder.glob(pattern)))
        again = run(*arguments)
        assert why in again.stderr and "grading the same answers again" in again.stderr
        assert "4 of the task's 600 items" in again.stdout
        record, _ = only_record(tmp_path)
        assert record["answers"] == {"total": 4, "made_in_this_run": 0}
        assert record["sha256"] == {name: records.file_sha256(folder / name) for name in (record["results_file"], *record["sample_files"])}
        assert record["tasks"] == first["tasks"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "mr1_typo"], "no task or group 'mr1_typo'"),
        (["--tasks", "not_a_task_of_anyone"], "knows no task not_a_task_of_anyone"),
        (["--tasks", "mr1_gr"], "mr1-bench data build gr"),
        (["--tasks", "mr1_synth", "--limit", "0"], "--limit 0"),
        (["--tasks", "mr1_synth", "--repeats", "4"], "same answer 4 times"),
        (["--tasks", ","], "names no task"),
        (["--tasks", "mr1_synth", "--name", "../x"], "plain folder name"),
        (["--tasks", "mr1_synth", "--seed", "-1"], "--seed -1"),
        (["--tasks", "mr1_synth", "--device", "abacus"], "--device abacus"),
        (["--tasks", "mr1_vc_synth", "--limit", "1", "--backend", "nope"], "no model 'nope'"),
        (["--tasks", "mr1_synth", "--backend", "vllm", "--max-pixels", "9999"], "for --backend hf"),
        (["--tasks", "mr1_synth", "--include-path", "/nowhere"], "not a folder"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(checkpoint, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setenv("MR1_DATA_DIR", str(tmp_path / "empty"))
    assert main(command(checkpoint, tmp_path / "out", *arguments)) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_out_that_is_a_file_is_refused(checkpoint, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert main(command(checkpoint, tmp_path / "out", "--tasks", "mr1_synth")) == 2
    assert "is a file" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_results_of_others_are_not_touched(checkpoint, tmp_path, capsys):
    foreign = tmp_path / "eval" / "mine" / "20250101_000000_results.json"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("{}")
    assert main(command(checkpoint, tmp_path, "--tasks", "mr1_vc_synth", "--limit", "1", "--name", "mine")) == 2
    assert "did not write" in capsys.readouterr().err
    assert foreign.read_text() == "{}"


def test_cut_off_weights_are_refused(checkpoint, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert main(command(broken, tmp_path / "out", "--tasks", "mr1_synth")) == 2
    assert "damaged or cut off" in capsys.readouterr().err


def test_changed_code_grades_the_same_answers_again(checkpoint, tmp_path):
    arguments = command(checkpoint, tmp_path, "--tasks", "mr1_vc_synth", "--limit", "4")
    assert run(*arguments).returncode == 0
    first, folder = only_record(tmp_path)
    records.write_json(folder / "run.json", first | {"code_sha256": "of an earlier version"})
    again = run(*arguments)
    assert again.returncode == 0, again.stderr
    assert "grading the same answers again" in again.stderr
    second, _ = only_record(tmp_path)
    assert second["answers"] == {"total": 4, "made_in_this_run": 0}
    assert second["code_sha256"] == first["code_sha256"]
    assert len(list(folder.glob("*_results.json"))) == 1


def test_two_processes_cannot_write_one_journal(tmp_path):
    from mr1_bench.errors import UserError

    with Journal(tmp_path / "journal.jsonl", "identity"), pytest.raises(UserError, match="another process is writing"):
        Journal(tmp_path / "journal.jsonl", "identity")
    Journal(tmp_path / "journal.jsonl", "identity").close()


def test_model_that_is_none_is_refused(tmp_path):
    from mr1_bench.errors import UserError

    with pytest.raises(UserError, match="no such folder"):
        resolve_model(str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"no config\.json"):
        resolve_model(str(tmp_path))


class Request:
    def __init__(self, doc_id, prompt):
        self.args, self.task_name, self.doc_id = (prompt, {}, None, doc_id), "t", doc_id


def answer_with(journal, requests, asked):
    def generate(part):
        asked.extend(request.doc_id for request in part)
        return [f"answer {request.doc_id}" for request in part]

    wrapped = journaled(generate, journal, chunk=2, seed_all=lambda text: None, count_tokens=len, advance=lambda count, cached: None)
    return wrapped(requests)


def test_journal_cut_in_the_middle_of_a_line(tmp_path):
    path, asked = tmp_path / "journal.jsonl", []
    requests = [Request(i, f"prompt {i}") for i in range(6)]
    journal = Journal(path, "identity")
    assert answer_with(journal, requests, asked) == [f"answer {i}" for i in range(6)]
    journal.close()
    whole = path.read_bytes()
    first_answers_end = whole.index(b"\n", whole.index(b"answers"))
    for cut in range(0, len(whole), 17):
        path.write_bytes(whole[:cut])
        asked.clear()
        journal = Journal(path, "identity")
        assert answer_with(journal, requests, asked) == [f"answer {i}" for i in range(6)]
        journal.close()
        assert path.read_bytes() == whole
        assert (len(asked) == 6) == (cut <= first_answers_end)  # what was written whole is not asked again


def test_no_batch_holds_two_tasks(tmp_path):
    """lmms-eval's qwen2_vl takes the pictures of a batch all from the task of its first request."""
    requests = [Request(i, f"prompt {i}") for i in range(7)]
    for request in requests[3:]:
        request.task_name = "u"
    calls = []

    def generate(part):
        calls.append([(request.task_name, request.doc_id) for request in part])
        return [f"answer {request.doc_id}" for request in part]

    journal = Journal(tmp_path / "journal.jsonl", "identity")
    settings = {"seed_all": lambda text: None, "count_tokens": len, "advance": lambda count, cached: None}
    assert journaled(generate, journal, chunk=4, **settings)(requests) == [f"answer {i}" for i in range(7)]
    assert calls == [[("t", 0), ("t", 1), ("t", 2)], [("u", 3)], [("u", 4), ("u", 5), ("u", 6)]]


def test_journal_never_serves_another_prompt_or_identity(tmp_path):
    from mr1_bench.errors import UserError

    path, asked = tmp_path / "journal.jsonl", []
    journal = Journal(path, "identity")
    answer_with(journal, [Request(0, "a"), Request(1, "b")], asked)
    answer_with(journal, [Request(0, "a"), Request(1, "changed")], asked)
    assert asked == [0, 1, 0, 1]
    journal.close()
    with pytest.raises(UserError, match="another evaluation"):
        Journal(path, "other")
