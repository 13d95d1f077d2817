"""The published grader: the published logs item by item, and a worker that survives what models write."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mr1_bench import r1v
from mr1_bench.r1v import R1VScore, R1VWorkerError, grade_r1v
from mr1_bench.specs import UnknownTaskError
from tests.timing import least_cpu_seconds

TOWER = "<answer> 9^9^9^9 </answer>"
"""math-verify reads it at once and then compares until its alarm rings."""

ROOT = Path(__file__).parent.parent


def results(real_data, name):
    return json.loads((real_data / "r1v_logs" / name).read_text())["results"]


def lower(extracted):
    return None if extracted is None else str(extracted).lower()


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("counting_results_superclevr_200_qwen2vl_2b_instruct_legacy.json", 96),
        ("counting_results_superclevr_200_qwen2vl_2b_instruct_grpo100_legacy.json", 165),
    ],
)
def test_counting_logs_are_reproduced(real_data, name, right):
    rows = results(real_data, name)
    scores = [grade_r1v("mr1_vc", row["ground_truth"], row["model_output"]) for row in rows]
    assert (sum(bool(score.correct) for score in scores), len(scores)) == (right, 200)
    assert [lower(score.extracted) for score in scores] == [lower(row["extracted_answer"]) for row in rows]
    assert [score.correct for score in scores] == [row["extracted_answer"] == row["ground_truth"] for row in rows]


def test_geometry_log_is_reproduced(real_data):
    rows = results(real_data, "geoqa_test_qwen2vl_7b_instruct_legacy.json")
    scores = [grade_r1v("mr1_gr", row["ground_truth"], row["model_output"]) for row in rows]
    assert (sum(bool(score.correct) for score in scores), len(scores)) == (231, 754)
    assert [score.correct for score in scores] == [row["is_correct"] for row in rows]
    assert [lower(score.extracted) for score in scores] == [lower(row["extracted_answer"]) for row in rows]


@pytest.mark.parametrize(
    ("gold", "text", "expected"),
    [
        (4, "<answer>4</answer>", R1VScore(True, "4", "answered")),
        ("4", "<answer>\n 04 \n</answer> <answer>5</answer>", R1VScore(True, "4", "answered")),
        (4, "<answer>4 items</answer> <answer>5</answer>", R1VScore(False, "5", "answered")),
        (4, "<answer>4.0</answer>", R1VScore(False, None, "no_answer")),
        (4, "4", R1VScore(False, None, "no_answer")),
        ("four", "<answer>4</answer>", R1VScore(False, "4", "bad_gold")),
        (4, f"<answer>{'9' * 100_000}</answer>", R1VScore(False, "9" * 100_000, "answered")),
    ],
)
def test_counting(gold, text, expected):
    assert grade_r1v("mr1_vc", gold, text) == expected


@pytest.mark.parametrize(
    "hostile", ["<answer>" * 100_000, "<answer>" + " " * 500_000, "<answer>1" + " " * 500_000, "<answer>" + "1" * 500_000]
)
def test_counting_is_linear(hostile):
    assert grade_r1v("mr1_vc", 4, hostile).status == "no_answer"
    assert least_cpu_seconds(lambda: grade_r1v("mr1_vc", 4, hostile)) < 0.05


@pytest.mark.parametrize(
    ("gold", "text", "correct", "status"),
    [
        ("140°", "<think>100</think><answer> 140 </answer>", True, "answered"),
        ("10√{2}", "<answer> 10.0 </answer>", True, "answered"),  # it reads 10 in the gold: facts of the protocol, not ours
        ("140°", "<think> 100 </think><answer>140</answer>", False, "answered"),  # nor a number that touches a tag
        ("√{3}", "<answer>√{3}</answer>", False, "bad_gold"),
        ("5", "no number", False, "no_answer"),
        ("4", "\ud800 4 \udfff", True, "answered"),
        ("4", "\x00 4 \x00\n", True, "answered"),
        (4, "\u2028 4", True, "answered"),
        ("4", "", False, "no_answer"),
    ],
)
def test_geometry(gold, text, correct, status):
    score = grade_r1v("mr1_gr", gold, text)
    assert (score.correct, score.status) == (correct, status)


def test_a_megabyte_passes_through_the_pipe_both_ways():
    assert grade_r1v("mr1_gr", "4", "x" * 1_000_000 + " 4").correct is True
    score = grade_r1v("mr1_gr", "4", "$\\text{" + "a" * 100_000 + "}$", time_limit=60)
    assert (score.correct, score.extracted) == (False, "a" * 100_000)
    assert grade_r1v("mr1_gr", "4", "4").correct is True


@given(st.text(alphabet=st.characters(categories=["Lu", "Nd", "Cc", "Cs", "Zs", "Sm", "Ps"]), max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_text_gets_a_verdict(text):
    assert grade_r1v("mr1_gr", "4", text).status in ("answered", "no_answer", "timeout")


def test_library_time_limit_is_a_status_in_threads_and_the_next_items_are_right():
    items = [("4", "4"), ("4", TOWER), *(("4", f"<answer> {n} </answer>") for n in range(20))]
    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(lambda pair: grade_r1v("mr1_gr", *pair), items))
    assert scores[1] == R1VScore(None, None, "timeout")
    assert [score.correct for score in scores[2:]] == [n == 4 for n in range(20)]


def test_our_time_limit_kills_the_worker_and_the_next_item_gets_a_new_one():
    assert grade_r1v("mr1_gr", "4", "4").correct
    before = r1v._WORKER.process.pid
    assert grade_r1v("mr1_gr", "4", TOWER, time_limit=0.3) == R1VScore(None, None, "timeout")
    assert grade_r1v("mr1_gr", "4", "4").correct
    assert r1v._WORKER.process.pid != before
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)


def test_a_killed_worker_is_replaced_without_losing_an_item():
    assert grade_r1v("mr1_gr", "4", "4").correct
    os.kill(r1v._WORKER.process.pid, signal.SIGKILL)
    with ThreadPoolExecutor(4) as pool:
        assert all(score.correct for score in pool.map(lambda n: grade_r1v("mr1_gr", str(n), f" {n} "), range(20)))


def test_a_worker_that_dies_on_an_item_twice_is_no_verdict(monkeypatch):
    monkeypatch.setattr(r1v._WORKER, "_ask", lambda *_: (_ for _ in ()).throw(r1v._DiedError))
    assert grade_r1v("mr1_gr", "4", "4") == R1VScore(None, None, "crashed")


def test_an_interrupted_item_leaves_no_answer_for_the_next():
    real = r1v._WORKER._read_line

    def interrupted(deadline):
        r1v._WORKER._read_line = real
        raise KeyboardInterrupt

    assert grade_r1v("mr1_gr", "4", "4").correct
    r1v._WORKER._read_line = interrupted
    with pytest.raises(KeyboardInterrupt):
        grade_r1v("mr1_gr", "4", "4")
    assert grade_r1v("mr1_gr", "5", "6").extracted == "6"


def _grade_in_child(queue):
    queue.put((grade_r1v("mr1_gr", "7", "7").correct, r1v._WORKER.process.pid))


def test_a_forked_child_has_a_worker_of_its_own():
    assert grade_r1v("mr1_gr", "4", "4").correct
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_grade_in_child, args=(queue,)) for _ in range(2)]
    for child in children:
        child.start()
    answers = [queue.get(timeout=60) for _ in children]
    for child in children:
        child.join(60)
    assert [correct for correct, _ in answers] == [True, True]
    assert len({r1v._WORKER.process.pid, *(pid for _, pid in answers)}) == 3
    assert grade_r1v("mr1_gr", "4", "4").correct


def test_nothing_of_the_worker_is_left_on_standard_output_or_among_the_processes():
    code = "from mr1_bench import r1v\nprint(r1v.grade_r1v('mr1_gr', '1/2', r'$\\frac{1}{2}$').correct, r1v._WORKER.process.pid)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, check=True)
    correct, pid = done.stdout.split()
    assert correct == "True"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_a_worker_whose_parent_is_killed_ends_even_in_the_middle_of_an_item():
    code = (
        "from mr1_bench import r1v; import os, threading, time\n"
        "r1v.grade_r1v('mr1_gr', '4', '4'); print(r1v._WORKER.process.pid, flush=True)\n"
        f"threading.Thread(target=r1v.grade_r1v, args=('mr1_gr', '4', {TOWER!r}), kwargs={{'time_limit': 1}}).start()\n"
        "time.sleep(0.2); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=120)
    pid = int(done.stdout)
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and _alive(pid):
        time.sleep(0.1)
    assert not _alive(pid)


def _alive(pid):
    try:
        # An orphan that nobody reaps stays in the table as a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_missing_library_is_told_with_its_remedy(tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text("raise ImportError('No module named antlr4')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    r1v.close_worker()
    with pytest.raises(R1VWorkerError, match=r"No module named antlr4.*math-verify>=0\.9"):
        grade_r1v("mr1_gr", "4", "4")
    monkeypatch.undo()
    assert grade_r1v("mr1_gr", "4", "4").correct


def test_an_unknown_task_is_refused():
    with pytest.raises(UnknownTaskError, match="mr1_vc"):
        grade_r1v("mr1_nothing", "4", "4")
