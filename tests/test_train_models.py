import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from mr1_bench.errors import UserError
from mr1_bench.trainers import models, prefix
from mr1_bench.trainers.batches import Processing
from mr1_bench.trainers.config import GRPOConfig
from mr1_bench.trainers.items import open_items
from mr1_bench.trainers.models import Loaded, export, load, make_reference


@pytest.fixture
def config(tiny_checkpoint: Path) -> Any:
    def make(**changes: object) -> GRPOConfig:
        given = {"method": "grpo", "task": "vc-synth", "model": str(tiny_checkpoint), "out": Path("run"), "device": "cpu"} | changes
        return GRPOConfig(**given)  # type: ignore[arg-type]

    return make


@torch.no_grad()
def first_logits(model: nn.Module, loaded: Loaded, config: GRPOConfig) -> torch.Tensor:
    """Logits of the first token after two prompts, by the walk through the layers that training uses."""
    items = open_items(config, "train")
    prompts = Processing(loaded.processor, loaded.model, config)([items[0], items[1]]).parts[0].prompts
    assert prompts is not None
    return model.lm_head(prefix.encode_prompt(model, prompts, prefix.encode_images(model, prompts)).last).float()


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_state(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def disturb(model: nn.Module, std: float = 0.02) -> None:
    """Move every trained weight, as a few steps would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * std)


def reload(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    AutoProcessor.from_pretrained(folder)
    model, notes = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(notes.values()), notes
    return model


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


# What is refused


@pytest.fixture
def damaged(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to break."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def test_a_language_model_is_refused(damaged: Path, config: Any) -> None:
    from transformers import LlamaConfig

    LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(damaged)
    with pytest.raises(UserError, match="is of type 'llama', which is no vision-language model"):
        load(config(model=str(damaged)))


def test_an_unknown_type_is_refused(damaged: Path, config: Any) -> None:
    (damaged / "config.json").write_text('{"model_type": "qwen9_vl"}')
    with pytest.raises(UserError, match=r"config\.json is none that transformers .* knows"):
        load(config(model=str(damaged)))


def test_pickled_weights_are_refused(damaged: Path, config: Any) -> None:
    (damaged / "model.safetensors").rename(damaged / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"found only pickled ones \(pytorch_model\.bin\)"):
        load(config(model=str(damaged)))
    (damaged / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"expected weights as .* and found none"):
        load(config(model=str(damaged)))


def test_cut_off_weights_are_refused(damaged: Path, config: Any) -> None:
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="damaged or cut off"):
        load(config(model=str(damaged)))


def test_weights_that_would_be_random_are_refused(damaged: Path, config: Any) -> None:
    settings = json.loads((damaged / "config.json").read_text())
    settings["vision_config"]["depth"] += 1
    (damaged / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"weights are missing from its files, .* and would be random"):
        load(config(model=str(damaged)))


def test_weights_of_other_sizes_are_refused(damaged: Path, config: Any) -> None:
    settings = json.loads((damaged / "config.json").read_text())
    settings["text_config"]["intermediate_size"] += 8
    (damaged / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="weights cannot be loaded"):
        load(config(model=str(damaged)))


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        (["processor_config.json"], "no processor that can be loaded|has no image_processor"),
        (["tokenizer.json", "tokenizer_config.json"], "the model expects .* as token 5.., and its tokenizer has it nowhere"),
        (["chat_template.jinja"], "has no chat template"),
    ],
)
def test_a_model_without_its_processor_is_refused(damaged: Path, config: Any, absent: list[str], message: str) -> None:
    for name in absent:
        (damaged / name).unlink()
    with pytest.raises(UserError, match=message):
        load(config(model=str(damaged)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "./nowhere"}, "no such folder"),
        ({"device": "gpu"}, "--device gpu is none"),
        ({"device": "meta"}, "training runs on cpu or cuda"),
        ({"device": "cuda:77"}, "--device cuda:77: PyTorch sees"),
    ],
)
def test_a_wrong_model_or_device_is_one_clear_error(config: Any, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(config(**changes))


def test_absent_peft_is_named_with_its_extra(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r'pip install "mr1-bench\[lora\]"'):
        load(config(lora_rank=4))


# What is trained


def test_all_weights_are_trained_and_nothing_is_dropped_out(config: Any, tiny_checkpoint: Path) -> None:
    from mr1_bench.records import checkpoint_sha256

    loaded = load(config())
    assert len(trained(loaded.model)) == len(list(loaded.model.parameters()))
    assert not loaded.model.training and loaded.shares and loaded.peft is None and loaded.device.type == "cpu"
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert loaded.weights_sha256 == checkpoint_sha256(tiny_checkpoint)


def test_a_frozen_vision_tower_is_not_trained(config: Any) -> None:
    names = trained(load(config(freeze_vision=True, dtype="bfloat16")).model)
    assert names and not any("visual" in name for name in names)
    assert {parameter.dtype for parameter in names.values()} == {torch.bfloat16}


def test_checkpointing_drops_nothing_out_and_changes_no_gradient(config: Any) -> None:
    gradients = []
    for recompute in (False, True):
        settings = config(gradient_checkpointing=recompute)
        loaded = load(settings)
        assert any(module.training for module in loaded.model.modules()) == recompute
        assert not any(module.training for module in loaded.model.modules() if isinstance(module, nn.Dropout | nn.Linear))
        item = open_items(settings, "train")[0]
        prompts = Processing(loaded.processor, loaded.model, settings)([item]).parts[0].prompts
        assert prompts is not None
        state = prefix.encode_prompt(loaded.model, prompts, prefix.encode_images(loaded.model, prompts), recompute=recompute)
        state.last.square().sum().backward()
        gradients.append(loaded.model.model.visual.blocks[0].attn.qkv.weight.grad)
    assert torch.equal(*gradients) and gradients[0].abs().max() > 0


@pytest.mark.parametrize("vision", [True, False])
def test_adapters_are_in_every_linear_layer_in_float32_and_all_else_is_frozen(config: Any, vision: bool) -> None:
    loaded = load(config(lora_rank=4, dtype="bfloat16", freeze_vision=not vision))
    names = trained(loaded.model)
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    assert any("visual" in name for name in names) == vision
    # 4 layers of 7 projections; 2 vision blocks of 4 and 2 in the merger; two matrices each.
    assert len(names) == 2 * (4 * 7 + (2 * 4 + 2 if vision else 0))
    assert {parameter.dtype for parameter in names.values()} == {torch.float32}
    assert loaded.peft is not None and loaded.peft.get_base_model() is loaded.model
    assert loaded.peft.peft_config["default"].lora_alpha == 8


def test_adapters_are_drawn_from_the_seed_alone(config: Any) -> None:
    drawn = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(global_seed)
        before = torch.random.get_rng_state()
        loaded = load(config(lora_rank=2, seed=seed))
        assert torch.equal(torch.random.get_rng_state(), before)
        drawn.append(torch.cat([value.flatten() for name, value in trained(loaded.model).items() if "lora_A" in name]))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


# Reference


@pytest.mark.parametrize("rank", [0, 4])
def test_the_reference_stays_the_start_while_the_policy_moves(config: Any, rank: int) -> None:
    settings = config(lora_rank=rank)
    loaded = load(settings)
    start = first_logits(loaded.model, loaded, settings)
    reference = make_reference(loaded)
    disturb(loaded.model, 0.1)
    moved = first_logits(loaded.model, loaded, settings)
    with reference() as model:
        assert torch.equal(first_logits(model, loaded, settings), start)
        assert rank or not trained(model)
    assert not torch.allclose(moved, start, atol=1e-3)
    assert torch.equal(first_logits(loaded.model, loaded, settings), moved)
    assert trained(loaded.model)


def test_the_reference_is_the_start_in_memory_and_not_on_disk(damaged: Path, config: Any) -> None:
    settings = config(model=str(damaged))
    loaded = load(settings)
    disturb(loaded.model)
    start = first_logits(loaded.model, loaded, settings)
    shutil.rmtree(damaged)
    with make_reference(loaded)() as model:
        assert torch.equal(first_logits(model, loaded, settings), start)


# Export


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_loads_as_it_is_and_answers_the_same(config: Any, tmp_path: Path, tiny_checkpoint: Path, dtype: str) -> None:
    settings = config(dtype=dtype)
    loaded = load(settings)
    disturb(loaded.model)
    before = state_of(loaded.model)
    export(loaded, tmp_path / "out")
    assert same_state(loaded.model, before)
    again = reload(tmp_path / "out", getattr(torch, dtype))
    assert torch.equal(first_logits(again, loaded, settings), first_logits(loaded.model, loaded, settings))
    assert names_in(tmp_path / "out") == names_in(tiny_checkpoint)
    for name in ("processor_config.json", "chat_template.jinja", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tiny_checkpoint / name).read_bytes(), name


@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("bfloat16", 0.05)])
@pytest.mark.parametrize("frozen", [False, True])
def test_adapters_are_merged_into_an_export_and_kept(
    config: Any, tmp_path: Path, tiny_checkpoint: Path, dtype: str, near: float, frozen: bool
) -> None:
    settings = config(lora_rank=4, dtype=dtype, freeze_vision=frozen)
    loaded = load(settings)
    start = first_logits(loaded.model, loaded, settings)
    disturb(loaded.model, 0.05)
    before, moved = state_of(loaded.model), first_logits(loaded.model, loaded, settings)
    assert (moved - start).abs().max() > 4 * near
    export(loaded, tmp_path)
    assert same_state(loaded.model, before)
    assert torch.equal(first_logits(loaded.model, loaded, settings), moved)
    merged = reload(tmp_path, getattr(torch, dtype))
    assert torch.allclose(first_logits(merged, loaded, settings), moved, rtol=0, atol=near)
    assert names_in(tmp_path) == names_in(tiny_checkpoint)

    from peft import PeftModel

    adapted = PeftModel.from_pretrained(reload(tiny_checkpoint, getattr(torch, dtype)), tmp_path / "adapter").get_base_model()
    assert torch.equal(first_logits(adapted, loaded, settings), moved)


def test_an_export_is_a_start_of_its_own(config: Any, tmp_path: Path) -> None:
    loaded = load(config(lora_rank=2))
    disturb(loaded.model)
    export(loaded, tmp_path)
    again = load(config(model=str(tmp_path)))
    assert again.weights_sha256 != loaded.weights_sha256 and again.shares


# A bare machine

_BARE = """
import importlib.util, sys
HIDDEN = {"torchvision", "peft", "datasets", "pyarrow", "lmms_eval", "rich", "scipy", "sklearn", "pandas", "matplotlib"}
class Hide:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide)
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.partition(".")[0] in HIDDEN else find_spec(name, package)

from pathlib import Path
import torch
from safetensors.torch import save_file
from mr1_bench.trainers import models
from mr1_bench.trainers.batches import Processing
from mr1_bench.trainers.config import GRPOConfig
from mr1_bench.trainers.items import open_items

source, out = sys.argv[1:]
config = GRPOConfig(method="grpo", task="vc-synth,gr-synth", model=source, out=Path("run"), device="cpu")
loaded = models.load(config)
models.export(loaded, Path(out))
items = open_items(config, "train")
part = Processing(loaded.processor, loaded.model, config)(items[:4]).parts[0]
pictures = [item.image for item in part.items]
whole = loaded.processor(text=list(part.texts), images=pictures, return_tensors="pt", padding=True, padding_side="left")
assert torch.equal(whole["input_ids"], part.prompts.ids) and torch.equal(whole["pixel_values"], part.prompts.pixels)
odd = loaded.processor.image_processor([picture.resize((333, 211)) for picture in pictures], return_tensors="pt")["pixel_values"]
seen = {name: getattr(part.prompts, name) for name in ("ids", "pixels", "positions")}
save_file(seen | {"odd": odd}, out + "/seen.safetensors")
assert not HIDDEN & set(sys.modules)
"""


@pytest.fixture(scope="module")
def bare(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a process without torchvision, peft, pyarrow and the rest exports and sees."""
    out = tmp_path_factory.mktemp("bare")
    done = subprocess.run([sys.executable, "-c", _BARE, str(tiny_checkpoint), str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    yield out


def test_without_torchvision_the_export_is_the_same(bare: Path, tiny_checkpoint: Path) -> None:
    for name in ("processor_config.json", "chat_template.jinja", "generation_config.json", "tokenizer.json", "model.safetensors"):
        assert (bare / name).read_bytes() == (tiny_checkpoint / name).read_bytes(), name


def test_without_torchvision_the_inputs_are_nearly_the_same(bare: Path, config: Any) -> None:
    from safetensors.torch import load_file

    seen = load_file(bare / "seen.safetensors")
    settings = config(task="vc-synth,gr-synth")
    loaded = load(settings)
    part = Processing(loaded.processor, loaded.model, settings)(open_items(settings, "train")[:4]).parts[0]
    assert part.prompts is not None
    assert torch.equal(part.prompts.ids, seen["ids"]) and torch.equal(part.prompts.positions, seen["positions"])
    # Not resized, the pixels differ by rounding alone; resized, by one or two of 255 steps of brightness here and there.
    assert (part.prompts.pixels - seen["pixels"]).abs().max() < 1e-6
    pictures = [item.image.resize((333, 211)) for item in part.items]
    odd = loaded.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    assert (odd - seen["odd"]).abs().max() < 2.5 / 255 / 0.26
    assert (odd - seen["odd"]).abs().mean() < 1e-3


def test_the_video_part_is_found_wherever_a_checkpoint_has_it(tmp_path: Path) -> None:
    assert models._video_settings(tmp_path) == {}
    (tmp_path / "preprocessor_config.json").write_text('{"min_pixels": 1}')
    assert models._video_settings(tmp_path) == {"min_pixels": 1}
    (tmp_path / "processor_config.json").write_text('{"video_processor": {"min_pixels": 2}}')
    assert models._video_settings(tmp_path) == {"min_pixels": 2}
