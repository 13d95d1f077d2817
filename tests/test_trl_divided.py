"""Weights divided among processes, as accelerate has FSDP2 and DeepSpeed divide them: the run is that of DDP, and goes on bitwise.

On a CPU, by gloo. DeepSpeed is not among our dependencies: `make test-scale` installs it beside them, and MR1_DEEPSPEED names the folder.
"""

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from tests.launches import GRPO, SFT, finish, rows, said, start, timeless

pytest.importorskip("trl", reason="trl is not installed")

pytestmark = pytest.mark.scale
CONFIGS = Path(__file__).parents[1] / "configs/accelerate"
KINDS = {"fsdp2": "fsdp2-2gpu", "zero2": "zero2-8gpu", "zero3": "zero3-8gpu"}
HARD = " --prompts-per-step 4 --micro-prompts 1 --inner-updates 2 --weight-decay 0.1 --max-grad-norm 0.5"
HARD += " --gradient-checkpointing --eval-every 4 --eval-items 2 --max-new-tokens 32"
"""Parts and updates of a step, decay, clipping, an evaluation before a checkpoint, and passes made again: what may go wrong in pieces."""


def launch(kind: str, out: Path, flags: str, precision: str = "no") -> int:
    file, module, environment = CONFIGS / f"{KINDS.get(kind, 'ddp-2gpu')}.yaml", "mr1_bench", {}
    if kind == "fsdp2":
        module = "tests.as_on_gpus"
    elif kind != "ddp":
        module, environment = "tests.deepspeed_on_cpu", {"PYTHONPATH": os.environ["MR1_DEEPSPEED"], "DS_ACCELERATOR": "cpu"}
    settings = f"--config_file {file} --num_processes 2 --mixed_precision {precision}"
    return finish(start(out, flags, launch=settings, module=module, environment=environment))


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    """How weights are divided; what needs DeepSpeed is skipped without it."""
    if request.param != "fsdp2" and not os.environ.get("MR1_DEEPSPEED"):
        pytest.skip("MR1_DEEPSPEED is not set: DeepSpeed is not installed here (make test-scale does)")
    return request.param


@pytest.fixture(scope="module")
def untied(tmp_path_factory) -> Path:
    """The embedded model with an output layer of its own, as 7B has it: what is divided differently."""
    out = tmp_path_factory.mktemp("models") / "untied"
    shutil.copytree(Path(__file__).parents[1] / "trainers/tiny_model", out)
    tensors = load_file(out / "model.safetensors")
    (embedding,) = (value for name, value in tensors.items() if name.endswith("embed_tokens.weight"))
    save_file(tensors | {"lm_head.weight": embedding.clone()}, out / "model.safetensors", {"format": "pt"})
    config = AutoConfig.from_pretrained(out)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    config.save_pretrained(out)
    return out


def assert_complete(out: Path, count: int | None = None) -> None:
    """A checkpoint has weight, moments and step of all that is trained, in float32, and not as rounded for the passes."""
    tensors = load_file(out / "last/trainer_state/optimizer.safetensors")
    keys = ("param", "exp_avg", "exp_avg_sq", "step")
    kinds = [{name.partition("/")[2] for name in tensors if name.startswith(f"{key}/")} for key in keys]
    assert all(names == kinds[0] for names in kinds) and len(kinds[0]) == (count or len(kinds[0])) > 0
    for name in kinds[0]:
        param = tensors[f"param/{name}"]
        assert param.dtype == torch.float32 and not torch.equal(param, param.to(torch.bfloat16).float()), name


@pytest.fixture(scope="module")
def ddp(untied, tmp_path_factory) -> Callable[[str], tuple[Path, str]]:
    """A run with DDP, and its flags, of a method; each is made once."""

    @functools.cache
    def run(method: str) -> tuple[Path, str]:
        flags = f"{GRPO}{HARD}" if method == "grpo" else f"{SFT} --freeze-vision{HARD.replace(' --inner-updates 2', '')}"
        out = tmp_path_factory.mktemp("ddp") / "run"
        assert launch("ddp", out, f"{flags} --model {untied}") == 0, said(out)
        return out, f"{flags} --model {untied}"

    return run


@pytest.mark.parametrize(("method", "kind"), [*(("grpo", kind) for kind in KINDS), ("sft", "fsdp2"), ("sft", "zero3")], indirect=["kind"])
def test_the_run_is_that_of_ddp_and_goes_on_bitwise(method, kind, ddp, tmp_path):
    whole, flags = ddp(method)
    out = tmp_path / "run"
    assert launch(kind, out, flags) == 0, said(out)
    assert ("divided by FSDP2, passes, sums and outputs in torch.float32" in said(out)) == (kind == "fsdp2")
    for ours, theirs in zip(rows(out), rows(whole), strict=True):
        for name in ("loss", "grad_norm", "kl", "entropy", "length", "reward", "beta", "lr"):
            assert (ours[name] is None) == (theirs[name] is None)
            assert (ours[name] or 0.0) == pytest.approx(theirs[name] or 0.0, rel=1e-4, abs=1e-7), (name, ours["step"])
    ours, theirs = (load_file(folder / "last/model.safetensors") for folder in (out, whole))
    assert ours.keys() == theirs.keys() and "lm_head.weight" in ours
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-5
    started = load_file(Path(flags.split()[-1]) / "model.safetensors")
    moved = {name for name in ours if not torch.equal(ours[name], started[name])}
    assert any("visual." in name for name in moved) != ("--freeze-vision" in flags) and "lm_head.weight" in moved

    assert_complete(out, len(started) if "--freeze-vision" not in flags else sum("visual." not in name for name in started))
    before = timeless(out)
    files = [out / "last" / name for name in ("model.safetensors", "trainer_state/optimizer.safetensors")]
    ended = [file.read_bytes() for file in files]
    shutil.rmtree(out / "checkpoints/step-000005")
    assert launch(kind, out, flags) == 0, said(out)
    assert timeless(out) == before and [file.read_bytes() for file in files] == ended
    assert not list(out.rglob("*.pt"))


@pytest.mark.parametrize("kind", ["zero2", "zero3"], indirect=True)
def test_numbers_that_are_not_finite_stop_the_run(kind, tmp_path):
    """... before the weights are moved, though DeepSpeed moves them within the backward pass."""
    out = tmp_path / "run"
    assert launch(kind, out, f"{SFT} --dtype bfloat16 --lr 1e30 --eval-every 0", "bf16") != 0
    assert "stopped: step 2: the gradient's norm is" in said(out)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000001"]


@pytest.mark.parametrize("kind", ["zero2"], indirect=True)
def test_a_run_that_stops_before_its_first_step_keeps_its_weights(kind, untied, tmp_path):
    model, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(untied, model)
    tensors = load_file(model / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["lm_head.weight"] * torch.nan}, model / "model.safetensors", {"format": "pt"})
    assert launch(kind, out, f"{GRPO} --eval-every 0 --model {model}") != 0
    assert "stopped: step 1: the model's probabilities are no numbers" in said(out)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000000"]


def test_log_probabilities_are_not_rounded(kind, tmp_path):
    """In bfloat16 a policy that has not moved is its reference, rotary frequencies and all, and what is summed is float32."""
    out = tmp_path / "run"
    flags = GRPO.replace("--kl-schedule linear", "--kl-schedule constant --beta-max 0.04").replace("--steps 5", "--steps 2")
    assert launch(kind, out, f"{flags} --dtype bfloat16 --eval-every 1", "bf16") == 0, said(out)
    first, second = rows(out)
    assert abs(first["kl"]) < 1e-7 < 1e-3 < second["kl"]
    ours = "divided by FSDP2, passes, sums and outputs in (torch.bfloat16, torch.float32, None)"
    assert kind != "fsdp2" or ours in said(out)
    assert {value.dtype for value in load_file(out / "last/model.safetensors").values()} == {torch.bfloat16}
    assert_complete(out)
