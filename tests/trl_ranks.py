"""The processes of the TRL engine's tests: each computes a step on given completions, alone, with DDP, or with torch's FSDP2."""

import copy
import io
import os
from pathlib import Path

import torch
import torch.distributed as dist
from PIL import Image
from transformers import AutoModelForImageTextToText

from mr1_bench.specs import get_spec
from mr1_bench.trainers import loop, models, trl_engine, trl_state
from mr1_bench.trainers.clock import Clock
from mr1_bench.trainers.config import GRPOConfig, SFTConfig
from mr1_bench.trainers.engine import make_engine, stop_tokens
from mr1_bench.trainers.evaluation import evaluate
from mr1_bench.trainers.items import Item
from mr1_bench.trainers.trl_crew import Crew

GROUP, BETA = 4, 0.3
QUESTIONS = ["How many items?", "What is the size of the angle ABC in this figure, in degrees?", "1 2 3", "How many red squares are there?"]
SIZES = [(112, 56), (56, 56), (84, 140), (300, 200)]  # of different numbers of tokens; the last is over the limit of pixels
ANSWERS = ["<think>a</think><answer>{}</answer>", "<answer>{}</answer>", "<think>It is {}.</think>", "<think>no</think><answer>99</answer>"]


def items() -> list[Item]:
    found = []
    for index, (question, size) in enumerate(zip(QUESTIONS, SIZES, strict=True)):
        png = io.BytesIO()
        noise = torch.rand(size[1], size[0], 3, generator=torch.Generator().manual_seed(index))
        Image.fromarray((noise * 255).byte().numpy()).save(png, format="PNG")
        spec = get_spec("mr1_vc_synth")
        found.append(Item(f"item-{index}", spec, question, str(index + 3), "This, " * index + "that.", png.getvalue(), {}))
    return found


def settings(kind: type, out: Path, **changes):
    common = {"task": "vc-synth", "model": "tiny", "out": out, "device": "cpu", "prompts_per_step": 4, "max_new_tokens": 48}
    common |= {"max_pixels": 28 * 28 * 20, "steps": 3, "engine": "trl"}
    if kind is SFTConfig:
        return SFTConfig(method="sft", **common | changes)
    own = {"num_generations": GROUP, "beta_max": BETA, "kl_schedule": "linear", "format_weight": 0.5}
    return GRPOConfig(method="grpo-d", **common | own | changes)


def load(checkpoint: Path) -> models.Loaded:
    """The checkpoint with weights large enough that attention, pixels and the order of tokens matter."""
    config = GRPOConfig(method="grpo", task="vc-synth", model=str(checkpoint), out=Path("unused"), device="cpu")
    loaded = models.load(config)
    with torch.no_grad():
        for param in loaded.model.parameters():
            if param.ndim > 1:
                param.mul_(3)
    return loaded


@torch.no_grad()
def move(model, scale: float = 0.02) -> None:
    """Take the policy away from its start, the same way each time."""
    generator = torch.Generator().manual_seed(5)
    for _, param in sorted(model.named_parameters()):
        param += scale * param.std().nan_to_num(0) * torch.randn(param.shape, generator=generator)


def completions(loaded: models.Loaded, chosen: list[Item]) -> list[list[int]]:
    """A group for each item: right and wrong, in form and not, of different lengths, one of them cut off."""
    tokenizer, rows = loaded.processor.tokenizer, []
    for item in chosen:
        for form in ANSWERS:
            ids = tokenizer(form.format(item.gold), add_special_tokens=False).input_ids
            rows.append(ids if form is ANSWERS[2] else [*ids, stop_tokens(loaded)[0][0]])
    return rows


def trainer_of(config, loaded: models.Loaded, rank: int = 0, size: int = 1):
    made = trl_engine.make(config, loaded, loop.Sets(items(), (), ()), Crew(rank, size), None, {"step": 0, "adapted": None})
    made.model.train()
    return made


def given(trainer, loaded: models.Loaded, beta: float, rank: int = 0, size: int = 1):
    """TRL's inputs of this process's share of step 0, with the completions given, and what TRL made of the prompts."""
    seen = {}
    share = 4 * GROUP // size
    rows = [row for row in range(4) for _ in range(GROUP)][rank * share : (rank + 1) * share]
    chosen = [trainer._read(row)[0] for row in dict.fromkeys(rows)]

    def draw(prompt_ids, images, fields, count):
        seen.update(ids=prompt_ids, **fields)
        return completions(loaded, chosen), None

    trainer._generate_single_turn = draw
    trainer._clock = Clock(torch.device("cpu"))
    trainer.beta = beta
    return trainer._generate_and_score_completions([{"row": row} for row in rows]), seen


def results(loss, model, inputs) -> dict[str, torch.Tensor]:
    loss.backward()
    full = {name: param.grad for name, param in model.named_parameters() if param.grad is not None}
    full = {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad.clone() for name, grad in full.items()}
    model.zero_grad()
    return {"loss": loss.detach(), "advantages": inputs["advantages"]} | {f"grad/{name}": grad for name, grad in full.items()}


def alone(checkpoint: Path, out: Path) -> dict[str, torch.Tensor]:
    loaded = load(checkpoint)
    trainer = trainer_of(settings(GRPOConfig, out), loaded)
    move(loaded.model)
    inputs, _ = given(trainer, loaded, BETA)
    return results(trainer._compute_loss(trainer.model, inputs), loaded.model, inputs)


def rank(rank: int, size: int, checkpoint: Path, out: Path) -> None:
    """One of several: DDP first, then FSDP2; what each gave is saved for comparison."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}  # unused: the store is a file
    dist.init_process_group("gloo", init_method=f"file://{out / 'store'}", rank=rank, world_size=size)
    loaded = load(checkpoint)
    trainer = trainer_of(settings(GRPOConfig, out), loaded, rank, size)
    move(loaded.model)
    inputs, _ = given(trainer, loaded, BETA, rank, size)
    wrapped = trainer.accelerator.prepare_model(trainer.model)
    assert isinstance(wrapped, torch.nn.parallel.DistributedDataParallel)
    torch.save(results(trainer._compute_loss(wrapped, inputs), loaded.model, inputs), out / f"ddp-{rank}.pt")
    torch.save(sharded(trainer, loaded, inputs, out), out / f"fsdp-{rank}.pt")
    dist.destroy_process_group()


def sharded(trainer, loaded: models.Loaded, inputs, out: Path) -> dict[str, torch.Tensor]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import DTensor

    def answers() -> tuple[str, ...]:
        engine = make_engine(loaded, model.eval(), rollout="plain")
        return evaluate(loaded, engine, trainer._reading, items()[dist.get_rank() :: 2], 8).texts

    model, mesh = trainer.model, init_device_mesh("cpu", (dist.get_world_size(),))
    before = answers()
    for layer in (*model.model.visual.blocks, *model.model.language_model.layers):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(param, DTensor) for param in model.parameters())
    register_fsdp_forward_method(model, "generate")  # as transformers' Trainer does
    same = answers() == before
    model.train()
    found = results(trainer._compute_loss(model, inputs), model, inputs)

    def step(optimizer) -> None:
        trainer._compute_loss(model, inputs).backward()
        optimizer.step()
        optimizer.zero_grad()

    first = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    step(first)
    named = list(model.named_parameters())
    kept = copy.deepcopy(trl_state.gather(named, first, keep=dist.get_rank() == 0))
    step(first)
    ahead = trl_state.gather(named, first, keep=True)
    again = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    trl_state.scatter(named, again, kept)
    assert all(isinstance(state["exp_avg"], DTensor) for state in again.state.values())
    step(again)
    resumed = trl_state.gather(named, again, keep=True)
    trainer.model_wrapped, trainer.optimizer = model, again
    weights, _ = trainer._gather()
    if trainer._crew.leads:  # alone, as a run does
        models.export(loaded, out / "export", weights)
        written = dict(AutoModelForImageTextToText.from_pretrained(out / "export").named_parameters())
        assert written.keys() == weights.keys() and all(torch.equal(written[name], weights[name]) for name in written)
    found["answers"] = torch.tensor(same and len(before) == 2)
    found["resumed"] = torch.tensor(ahead.keys() == resumed.keys() and all(torch.equal(ahead[name], resumed[name]) for name in ahead))
    found["parameters"] = torch.tensor(len(named))
    return found
