"""The shipped accelerate configurations: each loads as `accelerate launch` loads it, does what its name says, and names its memory.

Nothing here runs on a GPU; what is launched with them for real is said in docs/multi-gpu.md.
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate", reason="accelerate is not installed")

from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, patch_environment
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from mr1_bench.trainers import flags, memory
from mr1_bench.trainers.trl_engine import rows_of

FILES = sorted((Path(__file__).parents[1] / "configs/accelerate").glob("*.yaml"))
TEXT = {
    "2B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12, "vocab_size": 151936},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "vocab_size": 152064},
}
SHARDING = {"ddp": "none", "fsdp2": "all", "zero2": "optimizer", "zero3": "all"}


def parts(file: Path) -> tuple[str, int, int]:
    """What a name says: kind, machines, and GPUs in all."""
    kind, machines, gpus = re.fullmatch(r"(ddp|fsdp2|zero[23])-(?:(\d)x)?(\d)gpu", file.stem).groups()
    return kind, int(machines or 1), int(machines or 1) * int(gpus)


def model(size: str):
    text = TEXT[size] | {"num_key_value_heads": 2 if size == "2B" else 4}
    tower = {"depth": 32, "embed_dim": 1280, "hidden_size": text["hidden_size"], "num_heads": 16, "mlp_ratio": 4}
    with torch.device("meta"):
        return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=tower, tie_word_embeddings=size == "2B"))


@pytest.fixture(scope="module")
def models():
    return {size: model(size) for size in TEXT}


def needs(models, size: str, kind: str, processes: int) -> str:
    """Memory of a GPU, training all weights by the recipe for geometry, as the trainer estimates it."""
    found = flags.read_file(flags.find_file(f"paper-{size.lower()}-gr"), "grpo-d") | {"lora_rank": 0, "lora_alpha": 0, "engine": "trl"}
    config = flags.resolve("grpo-d", found, {"out": Path("unused")})
    rows_of(config, processes)
    load = memory.workload(models[size], config, shared=False, processes=processes, sharding=SHARDING[kind])
    return f"{size} about {memory.estimate(replace(load, cuda=True)).total / 2**30:.0f} GiB"


def test_there_is_one_for_each_size():
    found = {parts(file) for file in FILES}
    assert {("ddp", 1, count) for count in (1, 2, 4, 8)} <= found
    assert {("fsdp2", 1, count) for count in (2, 4, 8)} | {("fsdp2", 2, 16)} <= found
    assert {("zero2", 1, 8), ("zero3", 1, 8)} <= found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_loads_and_is_what_its_name_says(file):
    kind, machines, processes = parts(file)
    config = load_config_from_file(str(file))
    assert (config.num_machines, config.num_processes, config.use_cpu) == (machines, processes, False)
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(file), "-m", "mr1_bench", "train"]))
    assert (args.num_processes, args.num_machines, args.module, args.training_script) == (processes, machines, True, "mr1_bench")
    assert args.multi_gpu == (kind == "ddp" and processes > 1)
    assert args.use_fsdp == (kind == "fsdp2") and args.use_deepspeed == kind.startswith("zero")
    if kind == "fsdp2":
        with patch_environment(**prepare_multi_gpu_env(args)):
            plugin = FullyShardedDataParallelPlugin()  # as the trainer makes it
        assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.cpu_ram_efficient_loading) == (2, True, False)
        assert config.distributed_type == DistributedType.FSDP and args.fsdp_version == 2
        assert args.fsdp_reshard_after_forward and args.fsdp_auto_wrap_policy == "TRANSFORMER_BASED_WRAP"
        assert not args.fsdp_cpu_ram_efficient_loading  # the weights are in memory already, and equal
    if kind.startswith("zero"):
        assert args.zero_stage == int(kind[-1]) and not args.zero3_init_flag
        assert {args.offload_optimizer_device, args.offload_param_device} == {"none"}
        assert args.gradient_clipping == "auto"
    if kind == "zero3":
        assert args.zero3_save_16bit_model  # or the weights could not be collected for a checkpoint
    if machines > 1:
        assert args.main_process_ip and args.main_process_port and args.machine_rank == 0


def test_what_is_divided_is_divided_and_the_rest_is_not(models):
    config = flags.resolve("grpo-d", flags.read_file(flags.find_file("paper-2b-gr"), "grpo-d"), {"out": Path("unused"), "engine": "trl"})
    found = {
        kind: memory.estimate(memory.workload(models["2B"], config, processes=8, sharding=kind)) for kind in ("none", "optimizer", "all")
    }
    for kind, divided in (
        ("optimizer", {"master", "moments", "gradients"}),
        ("all", {"master", "moments", "gradients", "weights", "reference"}),
    ):
        for name in ("weights", "master", "moments", "gradients", "reference", "activations", "logits", "rollout"):
            whole = getattr(found["none"], name)
            assert getattr(found[kind], name) == (-(-whole // 8) if name in divided else whole) > 0
    assert (found["none"].gathered, found["all"].gathered) == (0, found["none"].weights)
    assert found["none"].workload.prompts == 2  # of 16


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_comment_names_the_memory_that_the_trainer_estimates(file, models):
    kind, _, processes = parts(file)
    comment = " ".join(line[1:].strip() for line in file.read_text().splitlines() if line.startswith("#"))
    for size in TEXT:
        assert needs(models, size, kind, processes) in comment
    assert "Validated by loading; run only on GPUs." in comment
