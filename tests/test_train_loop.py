"""Whole runs of the trainer on the embedded model: what they leave, and that a killed run ends bitwise as one that was not."""

import dataclasses
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mr1_bench.errors import UserError
from mr1_bench.model_files import embedded_model
from mr1_bench.records import read_json, training_of
from mr1_bench.trainers import loop
from mr1_bench.trainers.config import GRPOConfig, SFTConfig

SMALL = {
    "steps": 4,
    "prompts_per_step": 3,
    "max_new_tokens": 40,
    "lr": 2e-4,
    "eval_every": 2,
    "eval_items": 6,
    "save_every": 2,
    "device": "cpu",
}


def grpo(out: Path, **changes) -> GRPOConfig:
    settings = SMALL | {"method": "grpo-d", "task": "gr-synth", "num_generations": 4, "kl_schedule": "linear", "show_every": 1}
    return GRPOConfig(**settings | {"model": str(embedded_model()), "out": out} | changes)


def rows(out: Path, name: str = "metrics") -> list[dict]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def timeless(out: Path) -> list[dict]:
    return [{key: value for key, value in row.items() if not key.startswith(("time_", "tokens_per_s"))} for row in rows(out)]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = grpo(tmp_path_factory.mktemp("runs") / "run")
    assert loop.train(config) == 0
    return config


def test_a_run_leaves_what_the_documentation_says(finished):
    out = finished.out
    run = read_json(out / "run.json")
    assert run["status"] == "finished" and run["method"] == "grpo-d" and run["seed"] == 0
    assert run["config"] == json.loads(json.dumps(finished.asdict()))
    assert run["results"]["last"]["step"] == 4
    keys = "step reward accuracy format kl beta loss entropy grad_norm length clip_share zero_spread_share cut_off_share"
    keys += " tokens_per_s time_step"
    assert [row["step"] for row in rows(out)] == [1, 2, 3, 4]
    assert all(set(keys.split()) <= set(row) for row in rows(out))
    assert [row["beta"] for row in rows(out)] == pytest.approx([0, 0.04 / 3, 0.08 / 3, 0.04])
    assert rows(out)[0]["kl"] is None and all(row["kl"] >= 0 for row in rows(out)[1:])
    assert {(row["step"], row["split"]) for row in rows(out, "evals")} == {
        (s, split) for s in (0, 2, 4) for split in ("validation", "test")
    }
    assert {row["step"] for row in rows(out, "samples")} == {1, 2, 3, 4}
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-000002", "step-000004"]


def test_the_checkpoint_loads_as_it_is_and_says_what_it_was_trained_on(finished, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

    folder = finished.out / "last"
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert AutoProcessor.from_pretrained(folder).tokenizer.eos_token_id in GenerationConfig.from_pretrained(folder).eos_token_id
    model.save_pretrained(tmp_path)
    assert same(weights(folder), weights(tmp_path))
    assert not same(weights(folder), weights(embedded_model()))
    assert training_of(folder) == {"method": "grpo-d", "task": "mr1_gr_synth", "seed": 0}


def test_training_again_into_a_finished_run_changes_nothing(finished):
    before = (finished.out / "metrics.jsonl").read_bytes()
    assert loop.train(finished) == 0
    assert (finished.out / "metrics.jsonl").read_bytes() == before
    assert read_json(finished.out / "run.json")["status"] == "finished"


def test_a_changed_setting_is_refused_by_name(finished):
    with pytest.raises(UserError, match=r"lr\b.*0\.0002.*0\.1"):
        loop.train(dataclasses.replace(finished, lr=0.1))


def test_other_weights_in_the_same_place_are_refused(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(embedded_model(), model)
    config = grpo(tmp_path / "run", model=str(model), steps=1, save_every=1, eval_every=0)
    assert loop.train(config) == 0
    changed = weights(model)
    changed[min(changed)][0] += 1
    save_file(changed, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="weights_sha256"):
        loop.train(config)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(finished, tmp_path):
    again, other = (dataclasses.replace(finished, out=tmp_path / str(seed), seed=seed) for seed in (0, 1))
    for config in (again, other):
        assert loop.train(config) == 0
    assert timeless(again.out) == timeless(finished.out)
    assert same(weights(again.out / "last"), weights(finished.out / "last"))
    assert timeless(other.out) != timeless(finished.out)


def test_micro_batches_and_checkpointing_change_nothing_but_rounding(finished, tmp_path):
    for name, changes in {"micro": {"micro_prompts": 2}, "recompute": {"gradient_checkpointing": True}}.items():
        config = dataclasses.replace(finished, out=tmp_path / name, steps=1, save_every=1, eval_every=0, **changes)
        assert loop.train(config) == 0
        ours, whole = timeless(config.out)[0], timeless(finished.out)[0]
        if name == "recompute":  # parts are sampled one after another, so other numbers are drawn
            assert ours["loss"] == pytest.approx(whole["loss"], abs=1e-6)
            assert ours["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


def test_a_constant_schedule_is_grpo(tmp_path):
    changes = {"kl_schedule": "constant", "eval_every": 0, "steps": 2}
    as_d, as_grpo = grpo(tmp_path / "d", **changes), grpo(tmp_path / "grpo", **changes | {"method": "grpo"})
    for config in (as_d, as_grpo):
        assert loop.train(config) == 0
    assert timeless(as_d.out) == timeless(as_grpo.out)
    assert same(weights(as_d.out / "last"), weights(as_grpo.out / "last"))


def test_lora_trains_adapters_against_the_same_weights_without_them(tmp_path):
    pytest.importorskip("peft")
    from transformers import AutoModelForImageTextToText

    config = grpo(tmp_path / "run", lora_rank=4, lr=5e-3, steps=3, eval_every=0, kl_schedule="constant", method="grpo")
    assert loop.train(config) == 0
    assert rows(config.out)[0]["kl"] == pytest.approx(0, abs=1e-9), "at the start the policy is the reference"
    assert rows(config.out)[-1]["kl"] > 0
    merged = weights(config.out / "last")
    assert merged.keys() == weights(embedded_model()).keys()
    changed = [name for name in merged if not torch.equal(merged[name], weights(embedded_model())[name])]
    assert changed and all(".layers." in name or "visual" in name for name in changed)
    assert (config.out / "last" / "adapter" / "adapter_model.safetensors").is_file()
    AutoModelForImageTextToText.from_pretrained(config.out / "last")


def test_sft_learns_its_targets_and_saves(tmp_path):
    settings = SMALL | {"steps": 12, "lr": 1e-3, "train_items": 3, "eval_every": 0, "save_every": 12, "max_new_tokens": 128}
    config = SFTConfig(**settings, method="sft", task="vc-synth,gr-synth", model=str(embedded_model()), out=tmp_path / "sft")
    assert loop.train(config) == 0
    losses = [row["loss"] for row in rows(config.out)]
    assert losses[-1] < 0.6 * losses[0]
    assert training_of(config.out / "last")["method"] == "sft"


def test_weights_that_are_not_finite_stop_before_any_update(tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(embedded_model(), model)
    broken = weights(model)
    broken[next(name for name in broken if name.endswith("layers.0.input_layernorm.weight"))][0] = math.nan
    save_file(broken, model / "model.safetensors", metadata={"format": "pt"})
    settings = SMALL | {"method": "sft", "task": "gr-synth", "model": str(model), "out": tmp_path / "run", "eval_every": 0}
    assert loop.train(SFTConfig(**settings)) == loop.STOPPED
    assert "nan" in capsys.readouterr().err
    run = read_json(tmp_path / "run" / "run.json")
    assert run["status"] == "stopped" and run["results"]["stopped"].startswith("step 1:")
    kept = weights(tmp_path / "run" / "last")
    assert all(torch.equal(kept[name].nan_to_num(), broken[name].nan_to_num()) for name in kept)


def test_weights_moved_by_an_unfinished_step_are_never_kept(tmp_path, monkeypatch):
    """With two updates a step, the first has moved the weights when the second turns out not to be finite."""
    from mr1_bench.trainers import objective

    config = grpo(tmp_path / "run", inner_updates=2, save_every=1, eval_every=0, steps=3, kl_schedule="constant", lr=1e-3)
    calls, real = [], objective.surrogate

    def surrogate(*arguments):
        loss, clipped = real(*arguments)
        calls.append(loss)
        return (loss * math.nan if len(calls) == 4 else loss), clipped

    monkeypatch.setattr(objective, "surrogate", surrogate)
    assert loop.train(config) == loop.STOPPED
    assert [row["step"] for row in rows(config.out)] == [1]
    monkeypatch.undo()
    assert (config.out / "last").resolve().name == "step-000001"
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    assert loop.train(whole) == 0
    assert loop.train(config) == 0
    assert timeless(config.out) == timeless(whole.out)
    assert same(weights(config.out / "last"), weights(whole.out / "last"))


def test_killed_between_the_first_evaluations(tmp_path, monkeypatch):
    """The test split is evaluated by the next process if the first was killed after validation."""
    config = grpo(tmp_path / "run", steps=1, eval_every=1, save_every=1)
    real = loop.evaluation.evaluate
    calls = []

    def evaluate(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(loop.evaluation, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config)
    assert [(row["step"], row["split"]) for row in rows(config.out, "evals")] == [(0, "validation")]
    assert loop.train(config) == 0
    order = [(0, "validation"), (0, "test"), (1, "validation"), (1, "test")]
    assert [(row["step"], row["split"]) for row in rows(config.out, "evals")] == order


def test_ones_own_data_trains_and_validates_without_a_test_set(tmp_path, monkeypatch):
    monkeypatch.setenv("MR1_DATA_DIR", str(tmp_path / "none"))
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)  # as lmms-eval leaves it
    from mr1_bench.synth import image_png, make_item

    lines = []
    for index in range(10):
        item = make_item("vc", "train", 1, index)
        (tmp_path / f"{index}.png").write_bytes(image_png(item))
        lines.append(json.dumps({"question": item.question, "gold": item.gold, "solution": item.solution, "image": f"{index}.png"}))
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    config = grpo(tmp_path / "run", task="vc", data=tmp_path / "own.jsonl", images=tmp_path, steps=2)
    assert loop.train(config) == 0
    assert {row["split"] for row in rows(config.out, "evals")} == {"validation"}
    assert read_json(config.out / "run.json")["results"]["last"]["test"] is None
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:-300])
    with pytest.raises(UserError, match=r"line 4.*3\.png"):
        loop.train(dataclasses.replace(config, out=tmp_path / "other", data=shutil.copy(tmp_path / "own.jsonl", tmp_path / "again.jsonl")))


def test_an_alarm_saves_and_stops_with_its_own_code(tmp_path, capsys):
    config = grpo(tmp_path / "run", steps=30, max_new_tokens=2, prompts_per_step=1, num_generations=2, eval_every=0, stop_on_alarm=True)
    assert loop.train(config) == loop.STOPPED
    last = rows(config.out)[-1]["step"]
    assert 1 < last < 30
    assert f"ALARM step {last}" in capsys.readouterr().err
    assert (config.out / "last").resolve().name == f"step-{last:06d}"
    assert read_json(config.out / "run.json")["status"] == "stopped"


def test_another_process_on_the_same_run_is_refused(finished):
    from mr1_bench.trainers import checkpoints

    held = (finished.out / ".lock").open("a")
    import fcntl

    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        with pytest.raises(UserError, match=r"another process|in use"):
            loop.train(finished)
    finally:
        held.close()
        checkpoints.close_run(finished.out)


def _train_quietly(config) -> None:
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    raise SystemExit(loop.train(config))


@pytest.mark.parametrize("schedule", ["linear", "adaptive"])
def test_killed_at_random_moments_the_run_ends_bitwise_the_same(tmp_path, schedule):
    """Processes are killed with SIGKILL at random moments; the last one is let through."""
    changes = {"steps": 9, "save_every": 2, "eval_every": 3, "inner_updates": 2, "beta_min": 0.01, "kl_schedule": schedule, "keep": 1}
    whole, killed = (grpo(tmp_path / name, **changes) for name in ("whole", "killed"))
    torch.set_num_threads(1)
    started = time.monotonic()
    assert loop.train(whole) == 0
    duration = time.monotonic() - started

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mr1_bench.trainers.loop", "mr1_bench.trainers.models", "transformers", "tests.test_train_loop"])
    chance, kills = random.Random(schedule), 0
    while kills < 5:
        process = context.Process(target=_train_quietly, args=(killed,))
        process.start()
        process.join(chance.uniform(0.3, 1.0) * duration * 0.6)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
            assert process.exitcode == -signal.SIGKILL
        else:  # it came to its end before the fifth kill: what it left must be right too, and another run is killed
            assert process.exitcode == 0
            assert timeless(killed.out) == timeless(whole.out)
            assert same(weights(killed.out / "last"), weights(whole.out / "last"))
            shutil.rmtree(killed.out)
    process = context.Process(target=_train_quietly, args=(killed,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert timeless(killed.out) == timeless(whole.out)
    assert rows(killed.out, "evals") == rows(whole.out, "evals")
    assert rows(killed.out, "samples") == rows(whole.out, "samples")
    assert same(weights(killed.out / "last"), weights(whole.out / "last"))
    state = "checkpoints/step-000009/trainer_state/optimizer.safetensors"
    assert same(load_file(killed.out / state), load_file(whole.out / state))
    assert read_json(killed.out / "last" / "run.json")["step"] == 9
