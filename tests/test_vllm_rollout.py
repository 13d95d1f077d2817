"""vLLM as the rollout engine of training: real engines and a real server, where vLLM is installed; refusals anywhere."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec

import pytest

from mr1_bench import vllm_setup
from mr1_bench.errors import UserError
from mr1_bench.model_files import embedded_model
from mr1_bench.trainers import checks, flags, vllm_rollout

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here: make test-vllm")
ENVIRONMENT = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
SETTINGS = {"steps": 3, "prompts-per-step": 3, "num-generations": 4, "max-new-tokens": 40, "save-every": 1, "eval-every": 0, "lr": 1e-3}
SMALL = ["--device", "cpu", *(part for name, value in SETTINGS.items() for part in (f"--{name}", str(value)))]
START_LIMIT_S, RUN_LIMIT_S = 240, 300


def command(out, *more):
    return [sys.executable, "-m", "mr1_bench", "train", "grpo-d", "--task", "gr-synth", "--model", "tiny", "--out", str(out), *SMALL, *more]


def train(out, *more):
    return subprocess.run(command(out, *more), env=ENVIRONMENT, capture_output=True, text=True, timeout=RUN_LIMIT_S)


def our_line(done):
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("mr1-bench:")]
    return line


def timeless(out):
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if not key.startswith(("time_", "tokens_per_s"))} for row in rows]


def wait_for(condition, seconds, process):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended before what was waited for"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollout": "vllm-server"}, "the server's address is missing: add --vllm-url"),
        ({"rollout": "vllm", "vllm_url": "http://host:8000"}, "it is for --rollout vllm-server"),
        ({"vllm_args": "max_num_seqs=4"}, "it is for --rollout vllm;"),
        ({"rollout": "vllm-server", "vllm_url": "http://host:8000/v1"}, "expected an address without a path"),
        ({"rollout": "vllm-server", "vllm_url": "host:8000"}, "expected an address without a path"),
        ({"rollout": "vllm", "device": "cuda:1"}, "set CUDA_VISIBLE_DEVICES=1"),
        ({"importance_cap": 0.0}, "--importance-cap 0.0"),
        ({"mismatch_limit": -1.0}, "--mismatch-limit -1.0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        checks.check(flags.resolve("grpo-d", {}, settings | {"task": "gr-synth", "model": "tiny", "out": tmp_path}))


def test_what_training_decides_is_refused_by_the_name_of_its_flag():
    with pytest.raises(UserError, match=r"max_model_len is decided by --max-prompt-tokens and --max-new-tokens"):
        vllm_setup.parse_arguments("max_model_len=300", vllm_rollout.SETTINGS)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_command_says_what_to_install(tmp_path):
    done = train(tmp_path / "out", "--rollout", "vllm")
    assert done.returncode == 2
    assert "pip install 'mr1-bench[vllm]'" in our_line(done)
    assert not (tmp_path / "out").exists()


ENGINE = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from PIL import Image
from mr1_bench import images
from mr1_bench.errors import UserError
from mr1_bench.trainers import flags, models, vllm_rollout
from mr1_bench.trainers.batches import Processing
from mr1_bench.trainers.engine import make_engine
from mr1_bench.trainers.items import open_items

def settings(**more):
    given = {"task": "gr-synth", "model": "tiny", "out": Path("unused"), "device": "cpu", "rollout": "vllm", "temperature": 0.8}
    limits = {"max_new_tokens": 40, "num_generations": 3, "max_pixels": 90 * 90, "max_prompt_tokens": 400}
    return flags.resolve("grpo", {}, given | limits | more)

def compare(sampler, loaded, config, part):
    sampler.push(models.weights(loaded))
    (drawn,) = sampler.sample([part], 5)
    engine = make_engine(loaded, loaded.model)
    with torch.no_grad():
        ours, _ = engine.logprobs(engine.encode(part), drawn.completions, temperature=config.temperature)
    assert len(drawn.completions.ids) == 6
    difference = (ours - drawn.logprobs).abs().max().item()
    assert difference < 2e-4, difference
    return drawn

config = settings()
loaded = models.load(config)
items = [open_items(config, "train")[index] for index in range(2)]
wide = Image.new("RGB", (101, 67), "white")  # its sides are no multiples of 28, and another is scaled down by --max-pixels
wide.paste(items[1].image.resize((60, 60)), (20, 3))
shown = (items[0].image.resize((150, 131)), wide)
items = [replace(item, image_bytes=images.encode_png(picture)) for item, picture in zip(items, shown, strict=True)]
part = Processing(loaded.processor, loaded.model, config)(items).parts[0]
with vllm_rollout.opened(loaded, config) as sampler:
    first = compare(sampler, loaded, config, part)
    (again,) = sampler.sample([part], 5)
    assert torch.equal(first.completions.ids, again.completions.ids) and torch.equal(first.logprobs, again.logprobs)
    other, twice = sampler.sample([part, part], 6)
    assert not torch.equal(first.completions.ids, other.completions.ids)
    assert not torch.equal(other.completions.ids, twice.completions.ids)  # the same items again, drawn anew
    with torch.no_grad():  # every weight moves, the vision tower's too: whatever a cache kept would be seen
        for parameter in loaded.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * parameter.std() * 0.1)
    moved = compare(sampler, loaded, config, part)
    assert not torch.equal(first.completions.ids, moved.completions.ids)
    adapted_config = settings(lora_rank=4)
    adapted = models.load(adapted_config)
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    compare(sampler, adapted, adapted_config, part)
    sampler._complete = False
    some = {name: value for name, value in models.weights(loaded).items() if "visual" not in name}
    try:
        sampler.push(some)
    except UserError as error:
        assert "vLLM did not take" in str(error) and "visual" in str(error), error
    else:
        raise AssertionError("a push without the vision tower was taken for whole")
    compare(sampler, loaded, config, part)
    text = {"prompt": part.texts[0], "multi_modal_data": {"image": items[0].image.convert("RGB")}}
    (output,) = sampler._engine.generate([text], use_tqdm=False)
    assert output.num_cached_tokens >= 32, output.num_cached_tokens  # the group's prompt lies in the cache
print("held")
"""


@pytest.mark.vllm
@needs_vllm
def test_the_engine_draws_from_the_weights_it_was_given_last(tmp_path):
    script = tmp_path / "engine.py"
    script.write_text(ENGINE)
    done = subprocess.run([sys.executable, str(script)], env=ENVIRONMENT, capture_output=True, text=True, timeout=RUN_LIMIT_S, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("held\n")


@contextlib.contextmanager
def server(folder):
    """A vLLM server on a free port, as docs/vllm.md starts one on a CPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = '--weight-transfer-config {"backend":"mr1_gloo"} --logprobs-mode processed_logprobs --generation-config vllm'
    arguments += " --trust-request-mm-kwargs --host 127.0.0.1 --enforce-eager --dtype float32 --block-size 32 --no-enable-chunked-prefill"
    log = (folder / "server.log").open("wb")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(embedded_model()),
            "--port",
            str(port),
            *arguments.split(),
        ],
        env=ENVIRONMENT | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"

    def answers():
        try:
            return urllib.request.urlopen(f"{url}/health", timeout=2).status == 200
        except (urllib.error.URLError, OSError):
            return False

    try:
        wait_for(answers, START_LIMIT_S, process)
        yield process, url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def on_server(url):
    return ["--rollout", "vllm-server", "--vllm-url", url]


@pytest.mark.vllm
@needs_vllm
@pytest.mark.timeout(1200)
def test_a_server_draws_what_the_engine_beside_the_trainer_draws_and_its_death_loses_nothing(tmp_path):
    """Both ways of using vLLM give the same run, though one of them is killed and resumed; then what goes wrong with a server."""
    with server(tmp_path) as (process, url):
        killed = subprocess.Popen(
            command(tmp_path / "killed", *on_server(url), "--steps", "500"), env=ENVIRONMENT, stderr=subprocess.DEVNULL
        )
        wait_for((tmp_path / "killed" / "last" / "run.json").exists, RUN_LIMIT_S, killed)
        killed.kill()  # at any moment, perhaps amid a transfer of weights: the server serves the next
        killed.wait()
        whole = train(tmp_path / "server", *on_server(url))
        assert whole.returncode == 0, whole.stderr
        strict = train(tmp_path / "strict", *on_server(url), "--mismatch-limit", "1e-12")
        assert strict.returncode == 3, strict.stderr
        assert "log-probabilities of trainer and vLLM differ by" in strict.stderr
        assert "No step was completed" in strict.stderr or json.loads((tmp_path / "strict/last/run.json").read_text())["step"] == 0

        orphan = subprocess.Popen(
            command(tmp_path / "orphan", *on_server(url), "--steps", "500"), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
        )
        wait_for((tmp_path / "orphan" / "last" / "run.json").exists, RUN_LIMIT_S, orphan)
        os.killpg(process.pid, signal.SIGKILL)
        died = time.monotonic()
        _, said = orphan.communicate(timeout=RUN_LIMIT_S)
        assert time.monotonic() - died < 60
    assert orphan.returncode == 2
    assert re.search(r"vLLM server (at|answers at) http", [line for line in said.splitlines() if line.startswith("mr1-bench:")][-1])
    kept = json.loads((tmp_path / "orphan" / "last" / "run.json").read_text())
    assert kept["step"] == len(timeless(tmp_path / "orphan")) >= 1

    nobody = train(tmp_path / "nobody", *on_server(url))
    assert nobody.returncode == 2
    assert "no vLLM server answers at" in our_line(nobody)
    assert not (tmp_path / "nobody" / "last").exists()

    beside = ["--rollout", "vllm"]
    killed = subprocess.Popen(command(tmp_path / "beside", *beside), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    wait_for((tmp_path / "beside" / "last" / "run.json").exists, RUN_LIMIT_S, killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert train(tmp_path / "beside", *beside).returncode == 0
    rows = timeless(tmp_path / "beside")
    assert len(rows) == 3
    assert rows == timeless(tmp_path / "server")
    assert all(0 < row["mismatch"] < 1e-5 for row in rows)
    assert rows[0]["grad_norm"] > 0


@pytest.mark.vllm
@needs_vllm
def test_too_small_a_cache_is_refused_in_one_line(tmp_path):
    done = train(tmp_path / "out", "--rollout", "vllm", "--vllm-args", "kv_cache_memory_bytes=100000")
    assert done.returncode == 2
    assert "could not serve tiny" in our_line(done)
    assert "KV cache" in our_line(done)
    assert not (tmp_path / "out" / "last").exists()
