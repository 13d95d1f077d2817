"""After installation lmms-eval finds our tasks with no flag: in Python, by its command, from a wheel and from the source tree."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mr1_bench.specs import GROUPS, SPECS

ROOT = Path(__file__).resolve().parent.parent
LISTING = """
import json
import lmms_eval.models
from lmms_eval.tasks import TaskManager
print(json.dumps([name for name in TaskManager().all_tasks if name.startswith("mr1")]))
"""
OURS = sorted([*(spec.name for spec in SPECS), *GROUPS])


def run_python(code, cwd, **env):
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=300)


def test_task_manager_knows_our_tasks(tmp_path):
    done = run_python(LISTING, tmp_path)
    assert sorted(json.loads(done.stdout.splitlines()[-1])) == OURS, done.stderr


def test_include_path_works_without_the_entry_point(tmp_path):
    folder = subprocess.run(
        [sys.executable, "-m", "mr1_bench", "tasks", "--path"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    code = LISTING.replace("import lmms_eval.models", "").replace("TaskManager()", f"TaskManager(include_path={folder.stdout.strip()!r})")
    done = run_python(code, tmp_path)
    assert sorted(json.loads(done.stdout.splitlines()[-1])) == OURS, done.stderr


def test_our_names_hide_none_of_lmms_evals(tmp_path):
    code = LISTING.replace("import lmms_eval.models", "").replace(' if name.startswith("mr1")', "")
    builtin = set(json.loads(run_python(code, tmp_path).stdout.splitlines()[-1]))
    assert not set(OURS) & builtin
    assert {name for members in GROUPS.values() for name in members if not name.startswith("mr1")} <= builtin


@pytest.mark.parametrize("task_type", ["simple", "chat"])
def test_tasks_load_for_simple_and_chat_backends(task_type, tmp_path, monkeypatch):
    monkeypatch.setenv("MR1_DATA_DIR", str(tmp_path))
    import lmms_eval.models
    from lmms_eval.tasks import TaskManager

    lmms_eval.models.list_available_models()
    manager = TaskManager(model_name="vllm" if task_type == "chat" else "qwen2_vl")
    task = manager.load_task_or_group("mr1_vc_synth", task_type=task_type)["mr1_vc_synth"]
    assert len(task.test_docs()) == 600
    doc = task.test_docs()[0]
    assert task.doc_to_visual(doc)[0].mode == "RGB"
    if task_type == "chat":
        (turn,) = task.doc_to_messages(doc)
        assert [part["type"] for part in turn["content"]] == ["image", "text"]
        assert turn["content"][1]["text"] == task.doc_to_text(doc)


def test_absent_data_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MR1_DATA_DIR", str(tmp_path))
    from mr1_bench.data import DataAbsentError
    from mr1_bench.specs import get_spec
    from mr1_bench.tasks.adapter import dataset_kwargs

    with pytest.raises(DataAbsentError, match="mr1-bench data build gr"):
        dataset_kwargs(get_spec("mr1_gr"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    source.mkdir()
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(source)],
        check=True,
        timeout=300,
    )
    return next(out.glob("*.whl"))


def test_wheel_holds_all_packages_and_yaml(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for spec in SPECS:
        assert f"mr1_bench/tasks/{spec.name}.yaml" in names
    assert {f"mr1_bench/{room}/__init__.py" for room in ("tasks", "trainers", "reports", "commands", "synth")} <= names
    assert {"mr1_bench/tasks/_mr1_template", "mr1_bench/py.typed"} <= names
    assert any(name.startswith("mr1_bench/fonts/") for name in names)
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"mr1_bench"}


def test_installed_wheel_works_elsewhere(wheel, tmp_path):
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel)], check=True, timeout=300
    )
    done = run_python(LISTING, tmp_path, PYTHONPATH=str(target))
    assert sorted(json.loads(done.stdout.splitlines()[-1])) == OURS, done.stderr
    code = "import mr1_bench.tasks, mr1_bench.trainers, mr1_bench.reports as r; print(r.__file__)"
    assert str(target) in run_python(code, tmp_path, PYTHONPATH=str(target)).stdout


def test_source_tree_finds_its_rooms():
    no_editable_install = "import sys; sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in str(finder).lower()]"
    code = f"{no_editable_install}; import mr1_bench.tasks; print(mr1_bench.tasks.__file__)"
    assert str(ROOT / "tasks") in run_python(code, ROOT).stdout


def test_import_is_light():
    code = (
        "import sys, time; start = time.process_time(); import mr1_bench; took = time.process_time() - start;"
        "heavy = {'torch', 'lmms_eval', 'vllm', 'matplotlib', 'pandas', 'numpy', 'datasets', 'PIL'} & set(sys.modules);"
        "assert not heavy, heavy; print(took)"
    )
    best = min(float(run_python(code, ROOT).stdout) for _ in range(3))
    assert best < 0.15
    assert not run_python("import mr1_bench; mr1_bench.grade; import sys; assert 'torch' not in sys.modules", ROOT).returncode
