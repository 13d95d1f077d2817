"""vLLM as the engine of `mr1-bench eval`: its settings and refusals anywhere, and, where it is installed, the same answers as `hf`."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mr1_bench import vllm_setup
from mr1_bench.errors import UserError
from mr1_bench.model_files import embedded_model
from mr1_bench.tasks import vllm_backend

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here: make test-vllm")


def run(*arguments, **env):
    return subprocess.run(
        [sys.executable, "-m", "mr1_bench", *arguments],
        env=os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"} | env,
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )


def evaluate(out, *more, model="tiny", backend="vllm", **env):
    return run("eval", "--model", str(model), "--tasks", "mr1_gr_synth", "--out", str(out), "--backend", backend, *more, **env)


def record_of(out):
    (path,) = out.glob("eval/*/run.json")
    return json.loads(path.read_text()), path.parent


def answers(folder):
    (path,) = folder.glob("*_samples_*.jsonl")
    return {row["doc_id"]: row["mr1"]["value"] for row in map(json.loads, path.read_text().splitlines())}


def our_line(done):
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("mr1-bench:")]
    return line


@pytest.fixture(autouse=True)
def data_directory(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MR1_DATA_DIR", str(tmp_path_factory.getbasetemp() / "mr1-data"))


def test_engine_arguments_are_read():
    read = vllm_setup.parse_arguments("gpu_memory_utilization=0.5, max_model_len=8192,enforce_eager=True,kv_cache_dtype=fp8")
    assert read == {"gpu_memory_utilization": 0.5, "max_model_len": 8192, "enforce_eager": True, "kv_cache_dtype": "fp8"}
    assert vllm_setup.parse_arguments(None) == {}


def test_engine_computes_in_the_type_the_checkpoint_was_saved_in():
    assert vllm_backend.engine_arguments(embedded_model(), {})["dtype"] == "float32"
    assert vllm_backend.engine_arguments(embedded_model(), {"dtype": "bfloat16"})["dtype"] == "bfloat16"


def test_a_checkpoints_own_repetition_penalty_is_passed_on(tmp_path):
    assert vllm_backend.generation_arguments(tmp_path) == ""
    (tmp_path / "generation_config.json").write_text('{"repetition_penalty": 1.05, "top_k": 1}')
    assert vllm_backend.generation_arguments(tmp_path) == "repetition_penalty=1.05"
    (tmp_path / "generation_config.json").write_text('{"repetition_penalty": 1.0}')
    assert vllm_backend.generation_arguments(tmp_path) == ""


def test_a_wait_has_a_limit():
    code = "import time\nfrom mr1_bench.vllm_setup import limited\nwith limited('loading', 0.2):\n    time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert done.stderr == "mr1-bench: loading took longer than 0.2 s and was stopped; what was written is kept\n"


def test_a_refusal_is_one_line():
    with pytest.raises(UserError, match=r"^loading failed: ValueError: no such architecture$"), vllm_setup.limited("loading", 60):
        raise ValueError("no such\n  architecture")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_command_says_what_to_install(tmp_path):
    done = evaluate(tmp_path / "out", "--limit", "1")
    assert done.returncode == 2
    assert "pip install 'mr1-bench[vllm]'" in our_line(done)
    assert not (tmp_path / "out").exists()


def test_engine_settings_are_for_vllm_only(tmp_path):
    done = evaluate(tmp_path, "--vllm-args", "max_model_len=512", "--device", "cpu", backend="hf")
    assert done.returncode == 2
    assert "--vllm-args is for --backend vllm" in our_line(done)


@pytest.mark.vllm
@needs_vllm
def test_answers_are_those_of_hf_and_the_record_says_which_engine(tmp_path):
    more = ["--limit", "48", "--batch-size", "24"]
    done = evaluate(tmp_path / "vllm", *more)
    assert done.returncode == 0, done.stderr
    assert evaluate(tmp_path / "hf", *more, "--device", "cpu", backend="hf").returncode == 0
    (vllm, folder), (hf, other) = record_of(tmp_path / "vllm"), record_of(tmp_path / "hf")
    ours, theirs = answers(folder), answers(other)
    assert len(ours) == 48
    assert sum(ours[key] != theirs[key] for key in ours) <= 1  # 0 in 200 where it was measured; a near tie may fall either way
    assert vllm["engine"]["name"] == "vllm"
    assert re.match(r"vllm(-cpu)? 0\.3[12]\.", vllm["engine"]["version"])
    assert vllm["engine"]["arguments"]["dtype"] == "float32"
    assert vllm["engine"]["environment"]["LMMS_IMAGE_ENCODE_FORMAT"] == "JPEG"
    assert hf["engine"] is None
    assert vllm["identity"] != hf["identity"]
    assert abs(vllm["tokens"] - hf["tokens"]) < 20

    again = evaluate(tmp_path / "vllm", *more)
    assert again.returncode == 0
    assert "already complete" in again.stderr


@pytest.mark.vllm
@needs_vllm
def test_interrupted_sampling_ends_with_the_same_texts(tmp_path):
    more = ["--limit", "24", "--batch-size", "3", "--temperature", "1", "--seed", "3"]  # two chunks of four batches
    assert evaluate(tmp_path / "whole", *more).returncode == 0
    _, folder = record_of(tmp_path / "whole")
    journal = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    assert len(journal) == 3
    cut = tmp_path / "cut" / "eval" / folder.name
    cut.mkdir(parents=True)
    (cut / "journal.jsonl").write_text("".join(journal[:2]) + journal[2][:40])  # killed while it wrote the second chunk
    assert evaluate(tmp_path / "cut", *more).returncode == 0
    assert (cut / "journal.jsonl").read_text() == "".join(journal)
    assert record_of(tmp_path / "cut")[0]["answers"] == {"total": 24, "made_in_this_run": 12}


@pytest.fixture
def broken(tmp_path):
    """A folder whose configuration names an architecture that vLLM does not know."""
    folder = tmp_path / "broken"
    shutil.copytree(embedded_model(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchModel"]}))
    return folder


@pytest.mark.vllm
@needs_vllm
def test_a_checkpoint_that_vllm_cannot_load_is_refused_in_one_line(broken, tmp_path):
    done = evaluate(tmp_path / "out", "--limit", "1", model=broken)
    assert done.returncode == 2, done.stderr
    assert "vLLM could not serve" in our_line(done)
    assert "NoSuchModel" in our_line(done)
    assert not list((tmp_path / "out").glob("eval/*/run.json"))


@pytest.mark.vllm
@needs_vllm
def test_answers_cut_off_by_a_full_context_are_refused(tmp_path):
    """Else they would be graded, and the run would end as if all were well."""
    done = evaluate(tmp_path / "out", "--limit", "8", "--vllm-args", "max_model_len=112")
    assert done.returncode == 2, done.stderr
    assert "cut off by vLLM's max_model_len" in our_line(done)


@pytest.mark.vllm
@needs_vllm
def test_too_small_a_cache_is_refused_in_one_line(tmp_path):
    done = evaluate(tmp_path / "out", "--limit", "1", "--vllm-args", "kv_cache_memory_bytes=1000000")
    assert done.returncode == 2, done.stderr
    assert "KV cache" in our_line(done)
    assert "max_model_len" in our_line(done)  # vLLM's own advice is kept


@pytest.mark.vllm
@needs_vllm
def test_the_extra_takes_a_version_that_was_tested(tmp_path):
    """A dry run of uv's resolver, as `pip install mr1-bench[vllm]` would decide; needs the package index."""
    uv = Path(os.environ.get("UV", shutil.which("uv") or "uv"))
    if shutil.which(str(uv)) is None:
        pytest.skip("uv is not installed here")
    root = Path(__file__).resolve().parent.parent
    words = [uv, *["pip", "compile", "--quiet", "--no-annotate", "--python-version", "3.11", "--extra", "vllm", "pyproject.toml"]]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=300)
    if done.returncode and re.search(r"error sending request|dns error|connect", done.stderr, re.IGNORECASE):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    versions = dict(line.split(";")[0].strip().split("==") for line in done.stdout.splitlines() if "==" in line)
    assert versions["vllm"].startswith(("0.31.", "0.32."))
    assert versions["torch"].startswith(("2.12.", "2.13."))
