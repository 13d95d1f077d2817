"""The TRL engine computes the compact trainer's step: loss, gradients, β, prompts; in one process, in two, and on divided weights."""

import copy
import itertools
import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from mr1_bench.errors import UserError
from mr1_bench.trainers import grpo, loop, memory
from mr1_bench.trainers.batches import Processing
from mr1_bench.trainers.clock import Clock
from mr1_bench.trainers.config import GRPOConfig, SFTConfig
from mr1_bench.trainers.prefix import Completions
from mr1_bench.trainers.schedule import adapt
from mr1_bench.trainers.sft import SFT

pytest.importorskip("trl", reason="trl is not installed")

from mr1_bench.trainers import trl_engine
from mr1_bench.trainers.trl_crew import Crew
from tests import trl_ranks
from tests.test_trl_equality import Recorder, assert_same_gradients, take_gradients

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    return trl_ranks.load(tiny_checkpoint)


def compact(loaded, config):
    """The compact trainer's step 0 on the given completions: its means, gradients and advantages, for a policy that has moved."""
    policy = replace(loaded, model=copy.deepcopy(loaded.model))
    trl_ranks.move(policy.model)
    recorder = Recorder(policy.model)
    trainer = grpo.GRPO(policy, config, recorder, lambda: nullcontext(loaded.model))
    items = trl_ranks.items()
    batch = Processing(loaded.processor, loaded.model, config)([items[index] for index in loop.batch_indices(4, 4, config.seed, 0)])
    drawn = Completions.join(trl_ranks.completions(loaded, list(batch.items)), 0, torch.device("cpu"))
    states = [trainer._policy.encode(part) for part in batch.parts]
    return trainer, batch, trainer._grade(batch, [drawn], states, None), recorder


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("mean", ["sequence", "token"])
def test_grpo_loss_and_gradients(loaded, tmp_path, estimator, mean):
    config = trl_ranks.settings(GRPOConfig, tmp_path, kl_estimator=estimator, loss_mean=mean)
    theirs = trl_ranks.trainer_of(config, replace(loaded, model=copy.deepcopy(loaded.model)))
    trl_ranks.move(theirs.model)
    for beta in (0.0, 0.04, trl_ranks.BETA):
        trainer, batch, rollout, recorder = compact(loaded, config)
        references = trainer._reference_logprobs(batch, rollout.completions) if beta else None
        means = trainer._update(batch, rollout, references, beta, 0.0, Clock(torch.device("cpu")))
        inputs, _ = trl_ranks.given(theirs, loaded, beta)
        theirs._sums = torch.zeros(3)
        loss = theirs._compute_loss(theirs.model, inputs)
        loss.backward()
        assert rollout.advantages_PG.abs().max() > 1 and (beta == 0 or abs(means["kl"]) > 1e-3)
        assert torch.allclose(inputs["advantages"], rollout.advantages_PG.flatten(), atol=TOLERANCE)
        assert abs(loss.item() - means["loss"]) < TOLERANCE
        assert_same_gradients(recorder.gradients[0], take_gradients(theirs.model))
        theirs._clock, theirs._updates = None, 1
        row = theirs._row(dict.fromkeys(("reward", "accuracy", "format", "frac_reward_zero_std", "completions/clipped_ratio"), 0.0))
        assert row["entropy"] == pytest.approx(means["entropy"], abs=TOLERANCE)
        assert row["length"] == rollout.tokens / 16
        assert row["kl"] == (pytest.approx(means["kl"], abs=TOLERANCE) if beta else None)
        assert [sample.score.correct for sample in theirs.samples] == [score.correct for score in rollout.scores]


def test_prompts_and_pictures_are_ours(loaded, tmp_path):
    config = trl_ranks.settings(GRPOConfig, tmp_path)
    theirs = trl_ranks.trainer_of(config, replace(loaded, model=copy.deepcopy(loaded.model)))
    inputs, seen = trl_ranks.given(theirs, loaded, 0.0)
    _, batch, _, _ = compact(loaded, config)
    ours = batch.parts[0].prompts
    assert len({len(ids) for ids in seen["ids"]}) > 2  # or padding is not tested
    for row, ids in enumerate(seen["ids"]):
        assert ids == ours.ids[row // 4][ours.mask[row // 4]].tolist()
    assert torch.equal(inputs["prompt_ids"][::4], ours.ids) and torch.equal(inputs["image_grid_thw"][::4], ours.grids)
    kinds = inputs["mm_token_type_ids"][:, : ours.ids.shape[1]]
    assert torch.equal(kinds[::4].bool(), ours.ids == loaded.model.config.image_token_id)
    patches = inputs["pixel_values"].split(inputs["image_grid_thw"].prod(-1).tolist())
    assert torch.allclose(torch.cat(patches[::4]), ours.pixels, atol=1e-6)


@pytest.mark.parametrize("target", ["solution", "answer"])
def test_sft_loss_and_gradients(loaded, tmp_path, target):
    config = trl_ranks.settings(SFTConfig, tmp_path, target=target)
    recorder = Recorder(loaded.model)
    items = trl_ranks.items()
    batch = Processing(loaded.processor, loaded.model, config)([items[index] for index in loop.batch_indices(4, 4, 0, 0)])
    row, _ = SFT(loaded, config, recorder).step(0, batch, learning_rate=0.0)
    theirs = trl_ranks.trainer_of(config, replace(loaded, model=copy.deepcopy(loaded.model)))
    inputs = theirs._batch([{"row": row} for row in range(4)])
    tokens = (inputs["labels"][:, 1:] != -100).sum()
    loss = theirs.compute_loss(theirs.model, dict(inputs), num_items_in_batch=tokens)
    loss.backward()
    assert int(tokens) == row["length"] * 4
    assert abs(loss.item() - row["loss"]) < TOLERANCE
    assert_same_gradients(recorder.gradients[0], take_gradients(theirs.model))


def test_two_processes_and_divided_weights(tiny_checkpoint, tmp_path):
    """DDP's and FSDP2's averaged gradients, on two halves of the batch, are those of one process on the whole."""
    whole = trl_ranks.alone(tiny_checkpoint, tmp_path)
    torch.multiprocessing.spawn(trl_ranks.rank, (2, tiny_checkpoint, tmp_path), nprocs=2)
    for kind in ("ddp", "fsdp"):
        halves = [torch.load(tmp_path / f"{kind}-{rank}.pt", weights_only=True) for rank in range(2)]
        assert torch.equal(torch.cat([half["advantages"] for half in halves]), whole["advantages"])
        assert abs(sum(half["loss"] for half in halves) / 2 - whole["loss"]) < TOLERANCE
        for half in halves:
            ours = {name: value for name, value in half.items() if name.startswith("grad/")}
            assert_same_gradients(ours, {name: value for name, value in whole.items() if name.startswith("grad/")})
            assert kind == "ddp" or (half["resumed"] and half["answers"] and half["parameters"] == len(ours))


SMALL = {"task": "vc-synth", "model": "tiny", "device": "cpu", "steps": 4, "prompts_per_step": 2, "max_new_tokens": 20, "lr": 2e-4}
SMALL |= {"eval_every": 2, "eval_items": 3, "save_every": 2, "show_every": 2, "warmup_steps": 1, "weight_decay": 0.1}


def run(kind, out, **changes):
    method = {"method": "sft"} if kind is SFTConfig else {"method": "grpo-d", "num_generations": 4}
    config = kind(out=out, **SMALL | method | changes)
    assert (trl_engine.train if config.engine == "trl" else loop.train)(config) == 0
    return config


def rows(out: Path, name: str = "metrics") -> list[dict]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def timeless(out: Path) -> list[dict]:
    return [{key: value for key, value in row.items() if not key.startswith(("time_", "tokens_per_s"))} for row in rows(out)]


def test_a_run_is_the_compact_one_in_beta_rate_order_and_files(tmp_path):
    changes = {"kl_schedule": "cosine", "inner_updates": 2, "micro_prompts": 1}
    run(GRPOConfig, tmp_path / "ours", **changes)
    config = run(GRPOConfig, tmp_path / "theirs", engine="trl", **changes)
    ours, theirs = (rows(tmp_path / name) for name in ("ours", "theirs"))
    assert [row["beta"] for row in theirs] == [row["beta"] for row in ours] and ours[0]["beta"] == 0 < ours[1]["beta"]
    assert [row["lr"] for row in theirs] == [row["lr"] for row in ours]
    assert [row["kl"] is None for row in theirs] == [True, False, False, False]
    spent = {"time_data", "time_reference", "time_policy", "time_backward", "time_optimizer"}
    assert set(ours[1]) - set(theirs[1]) == spent and not set(theirs[1]) - set(ours[1])
    shown = [{(row["step"], row["id"]) for row in rows(tmp_path / name, "samples")} for name in ("ours", "theirs")]
    assert shown[0] == shown[1]
    evaluated = [rows(tmp_path / name, "evals")[:2] for name in ("ours", "theirs")]
    assert evaluated[0] == evaluated[1]
    record = json.loads((config.out / "run.json").read_text())
    assert record["status"] == "finished" and record["identity"]["processes"] == 1 and record["results"]["last"]["step"] == 4
    for name in ("ours", "theirs"):
        assert {path.name for path in (tmp_path / name).iterdir()} == {path.name for path in config.out.iterdir()}
    last = [tmp_path / name / "checkpoints/step-000004" for name in ("ours", "theirs")]
    assert len({tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))) for folder in last}) == 1
    for name in ("config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json"):
        assert json.loads((last[0] / name).read_text()) == json.loads((last[1] / name).read_text())


def test_supervised_runs_are_the_same_step_by_step(tmp_path):
    """Order, targets, loss, weight decay, clipping, learning rate, Adam: all that makes a run, over four steps."""
    for engine in ("compact", "trl"):
        run(SFTConfig, tmp_path / engine, engine=engine, micro_prompts=1, max_grad_norm=0.5, eval_every=0, adam_beta2=0.99)
    for ours, theirs in zip(rows(tmp_path / "compact"), rows(tmp_path / "trl"), strict=True):
        same = ("loss", "grad_norm", "entropy", "length", "cut_off_share", "lr")
        assert [theirs[name] for name in same] == pytest.approx([ours[name] for name in same], rel=1e-4)
    ours, theirs = (load_file(tmp_path / engine / "last/model.safetensors") for engine in ("compact", "trl"))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 2e-5


@pytest.mark.parametrize("kind", [GRPOConfig, SFTConfig])
def test_a_resumed_run_ends_bitwise_as_one_that_was_not(tmp_path, kind):
    adaptive = {"kl_schedule": "adaptive", "beta_min": 0.01, "kl_target": 1e-5} if kind is GRPOConfig else {}
    config = run(kind, tmp_path / "run", engine="trl", **adaptive)
    before, out = timeless(config.out), config.out
    if kind is GRPOConfig:
        weight = grpo.kl_weight(config)
        assert all(row["beta"] == adapt(weight, last["beta"], last["kl"]) for last, row in itertools.pairwise(before))
        assert len({row["beta"] for row in before}) >= 3
    weights = (out / "last/model.safetensors").read_bytes()
    shutil.rmtree(out / "checkpoints/step-000004")
    run(kind, out, engine="trl", **adaptive)
    assert timeless(out) == before
    assert (out / "last/model.safetensors").read_bytes() == weights
    run(kind, out, engine="trl", **adaptive)  # nothing is left to do
    assert timeless(out) == before
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "finished"
    record["identity"]["processes"] = 2
    (out / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="was begun with 2 processes, and now there are 1"):
        run(kind, out, engine="trl", **adaptive)


def test_adapters_are_trained_and_the_start_is_their_reference(tmp_path):
    config = run(GRPOConfig, tmp_path / "run", engine="trl", lora_rank=2, beta_min=0.01, kl_schedule="linear", eval_every=0, lr=1e-2)
    kl = [row["kl"] for row in rows(config.out)]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[-1] > 1e-4
    assert (config.out / "last/adapter/adapter_model.safetensors").is_file()
    before, weights = timeless(config.out), (config.out / "last/model.safetensors").read_bytes()
    shutil.rmtree(config.out / "checkpoints/step-000004")
    assert trl_engine.train(config) == 0
    assert timeless(config.out) == before and (config.out / "last/model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(("kind", "seen"), [(GRPOConfig, "probabilities are no numbers any more"), (SFTConfig, "the gradient's norm is")])
def test_numbers_that_are_not_finite_stop_the_run(tmp_path, kind, seen):
    method = {"method": "sft"} if kind is SFTConfig else {"method": "grpo-d", "num_generations": 4, "kl_schedule": "linear"}
    config = kind(out=tmp_path / "run", engine="trl", **method | SMALL | {"lr": 1e30, "eval_every": 0})
    assert trl_engine.train(config) == loop.STOPPED
    record = json.loads((config.out / "run.json").read_text())
    assert record["status"] == "stopped" and seen in record["results"]["stopped"]
    assert len(rows(config.out)) == int(record["last"][-6:]) > 0  # what was done before is kept


def refused(out, capsys, *flags):
    from mr1_bench.cli import main

    code = main(
        ["train", "grpo-d", "--task", "vc-synth", "--model", "tiny", "--device", "cpu", "--engine", "trl", "--out", str(out), *flags]
    )
    assert code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_what_trl_cannot_honour_is_refused_by_name(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    assert "--rollout shared" in refused(out, capsys, "--rollout", "shared")
    assert "--device cuda:1" in refused(out, capsys, "--device", "cuda:1")
    assert "--micro-prompts 3" in refused(out, capsys, "--micro-prompts", "3")
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        assert "give --dtype bfloat16" in refused(out, capsys)
    monkeypatch.setattr(memory, "available_memory", lambda device: 2**20)
    assert "of memory, and this machine has 1.0 MiB for it. What would help: --" in refused(out, capsys)
    monkeypatch.setenv("WORLD_SIZE", "2")
    deepspeed = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    fsdp = {f"FSDP_{name}": "false" for name in ("OFFLOAD_PARAMS", "CPU_RAM_EFFICIENT_LOADING")}
    fsdp |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    offloading = deepspeed | {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}
    for launched, rank, said in (
        (fsdp, 2, "--lora-rank 2 with FSDP2"),
        (fsdp | {"FSDP_VERSION": "1"}, 0, "FSDP of version 2"),
        (fsdp | {"FSDP_OFFLOAD_PARAMS": "true"}, 0, "nothing offloaded"),
        (deepspeed, 2, "or train all weights: --lora-rank 0"),
        (deepspeed | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, 0, "ZeRO stage 2 or 3"),
        (offloading, 0, "nothing offloaded"),
        (fsdp, 0, None),
        (deepspeed | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, 0, None),
    ):
        with monkeypatch.context() as patch:
            for name, value in launched.items():
                patch.setenv(name, value)
            divided = trl_engine.sharding(SimpleNamespace(distributed_type="MULTI_GPU"))
            config = GRPOConfig(method="grpo", task="gr-synth", model="tiny", out=out, lora_rank=rank)
            with pytest.raises(UserError, match=said) if said else nullcontext():
                trl_engine._refuse(config, 2, divided)
    assert "2 processes were launched" in refused(out, capsys, "--engine", "compact")
    monkeypatch.undo()
    assert not out.exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "trl" else object())
    assert "pip install 'mr1-bench[scale]'" in refused(out, capsys)


def test_sequences_of_a_process(tmp_path):
    config = trl_ranks.settings(GRPOConfig, tmp_path, prompts_per_step=8, num_generations=4)
    assert trl_engine.rows_of(config, 1) == (32, 1)
    assert trl_engine.rows_of(config, 2) == (16, 1)
    assert trl_engine.rows_of(replace(config, micro_prompts=2), 2) == (8, 2)
    assert trl_engine.rows_of(replace(config, micro_prompts=2), 16) == (2, 1)  # half a group each
    with pytest.raises(UserError, match="among 3 processes"):
        trl_engine.rows_of(config, 3)


def test_vllm_in_trls_terms(loaded, tmp_path):
    config = trl_ranks.settings(GRPOConfig, tmp_path, rollout="vllm-server", vllm_url="http://host:8000", importance_cap=3.0)
    found = trl_engine.arguments(config, loaded, Crew(0, 1), 1)
    assert (found.use_vllm, found.vllm_mode, found.vllm_server_base_url) == (True, "server", "http://host:8000")
    assert (found.vllm_importance_sampling_mode, found.vllm_importance_sampling_clip_max) == ("token_truncate", 3.0)
    config = replace(config, rollout="vllm", vllm_url="", vllm_args="gpu_memory_utilization=0.4")
    found = trl_engine.arguments(config, loaded, Crew(0, 1), 1)
    assert (found.vllm_mode, found.vllm_gpu_memory_utilization) == ("colocate", 0.4)
    with pytest.raises(UserError, match="block_size"):
        trl_engine.arguments(replace(config, vllm_args="block_size=16"), loaded, Crew(0, 1), 1)


def test_the_reference_is_the_start_in_the_precision_of_the_passes(loaded):
    """Its weights are; rotary frequencies in bfloat16 would turn distant tokens by other angles."""
    from mr1_bench.trainers.trl_grpo import _frozen

    start = _frozen(loaded.model, torch.bfloat16)
    assert all(param.dtype == torch.bfloat16 and not param.requires_grad for param in start.parameters())
    assert start.get_output_embeddings().weight is start.get_input_embeddings().weight
    for (name, param), (_, policy) in zip(start.named_parameters(), loaded.model.named_parameters(), strict=True):
        assert torch.equal(param, policy.to(torch.bfloat16)), name
    buffers = dict(loaded.model.named_buffers())
    assert any("inv_freq" in name for name in buffers)
    for name, value in start.named_buffers():
        assert value.dtype == buffers[name].dtype and torch.equal(value, buffers[name]) and value is not buffers[name], name


def test_vllm_gets_a_picture_as_the_processor_makes_it_and_one_token_for_it(loaded, tmp_path, monkeypatch):
    """vLLM puts a picture's tokens in the place of one, and does not know --max-pixels."""
    import trl

    config = trl_ranks.settings(GRPOConfig, tmp_path)
    theirs = trl_ranks.trainer_of(config, replace(loaded, model=copy.deepcopy(loaded.model)))
    theirs._clock, theirs.beta, seen = Clock(torch.device("cpu")), 0.0, {}

    def generate(self, prompt_ids, images, fields, count):
        seen.update(ids=prompt_ids, images=images, **fields)
        return trl_ranks.completions(loaded, [theirs._read(row)[0] for row in range(4)]), None

    monkeypatch.setattr(trl.GRPOTrainer, "_generate_single_turn", generate)
    plain = theirs._generate_and_score_completions([{"row": row} for row in range(4) for _ in range(trl_ranks.GROUP)])
    theirs.args.use_vllm = theirs.use_vllm = True
    theirs.vllm_mode, theirs.vllm_importance_sampling_correction = "colocate", False
    theirs._read.cache_clear()
    given = theirs._generate_and_score_completions([{"row": row} for row in range(4) for _ in range(trl_ranks.GROUP)])
    assert torch.equal(given["prompt_ids"], plain["prompt_ids"]) and torch.equal(given["image_grid_thw"], plain["image_grid_thw"])
    assert torch.allclose(given["pixel_values"], plain["pixel_values"], atol=0.02)  # scaled by PIL, or by torchvision
    token, side = loaded.model.config.image_token_id, loaded.processor.image_processor.patch_size
    for ids, (picture,), grid in zip(seen["ids"], seen["images"], given["image_grid_thw"].tolist(), strict=True):
        assert ids.count(token) == 1
        assert (picture.height, picture.width) == (grid[1] * side, grid[2] * side)


def test_the_compact_engine_does_not_load_trl():
    code = "import sys; from mr1_bench.trainers import train, loop, grpo; sys.exit('trl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
