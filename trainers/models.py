"""The policy, its frozen start and its checkpoints: loading, adapters, export, all in the Hugging Face form.

A checkpoint is refused here, before any time is spent, if it is no vision-language model, holds pickled or damaged weights, or lacks a
processor. It must not know what the model is trained on or how.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mr1_bench import records
from mr1_bench.errors import UserError
from mr1_bench.model_files import resolve_model
from mr1_bench.trainers.prefix import FAMILY

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

    from mr1_bench.trainers.config import TrainConfig

_VISION = ("visual", "vision_tower", "vision_model", "vision_encoder", "vision_embed_tokens")
"""What transformers calls the vision tower in one model or another."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to train.

    Attributes:
        model: the model, adapters inside it if there are any; in evaluation mode, so that nothing is dropped out.
        processor: its processor.
        shares: whether `prefix` can walk its layers.
        peft: the wrapper that switches the adapters; None where all weights are trained.
        name: the folder or model id it was loaded from.
        weights_sha256: hash of the starting checkpoint.
    """

    model: nn.Module
    processor: Any
    shares: bool
    peft: PeftModel | None
    name: str
    weights_sha256: str

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device


def load(config: TrainConfig) -> Loaded:
    """Load the starting checkpoint to the configured device and precision, and mark what is trained.

    Raises:
        UserError: there is no such model, it is no vision-language model, its weights are pickled, damaged or incomplete, its processor is
            missing, or there is no such device.
    """
    device = choose_device(config.device)
    folder = _find(config.model)
    settings = _vision_language_config(folder, config)
    processor = load_processor(folder, trust_remote_code=config.trust_remote_code)
    _check_pair(processor, settings, folder)
    model = _load_weights(folder, settings, config).eval()
    if config.freeze_vision:
        for tower in _vision_towers(model):
            tower.requires_grad_(False)
    peft = _add_adapters(model, config) if config.lora_rank else None
    model.to(device)
    if config.gradient_checkpointing:
        recompute_activations(model, True)
    shares = settings.model_type in FAMILY
    return Loaded(model, processor, shares, peft, config.model, records.checkpoint_sha256(folder))


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is the GPU where there is one.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is none; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: training runs on cpu or cuda")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UserError(f"--device {name}: PyTorch sees {count or 'no'} CUDA GPU{'s' if count > 1 else ''} here; use --device cpu")
        torch.cuda.set_device(device.index or 0)  # streams and graphs are made on the current device
    return device


def _find(name: str) -> Path:
    """The folder of a checkpoint with safetensors weights."""
    folder = resolve_model(name)
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        found = f"only pickled ones ({', '.join(pickled[:3])}), which can run code when they are loaded" if pickled else "none"
        raise UserError(
            f"--model {name}: expected weights as *.safetensors and found {found}. Save it with save_pretrained in a current transformers"
        )
    return folder


def _vision_language_config(folder: Path, config: TrainConfig) -> Any:
    import transformers
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    try:
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise UserError(
            f"--model {config.model}: its config.json is none that transformers {transformers.__version__} knows ({_first_line(error)})"
        ) from error
    custom = config.trust_remote_code and "AutoModelForImageTextToText" in (getattr(settings, "auto_map", None) or {})
    if type(settings) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not custom:
        raise UserError(
            f"--model {config.model} is of type {settings.model_type!r}, which is no vision-language model: it could not see the images. "
            "Use one such as Qwen/Qwen2-VL-2B-Instruct, or `tiny`"
        )
    return settings


def _load_weights(folder: Path, settings: Any, config: TrainConfig) -> nn.Module:
    import transformers
    from transformers import AutoModelForImageTextToText

    transformers.logging.disable_progress_bar()
    try:
        model, notes = AutoModelForImageTextToText.from_pretrained(
            folder,
            config=settings,
            dtype=getattr(torch, config.dtype),
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"--model {config.model}: its weights cannot be loaded ({_first_line(error)})") from error
    missing = sorted(notes["missing_keys"])
    if missing:
        raise UserError(
            f"--model {config.model}: {len(missing)} weights are missing from its files, {missing[0]} for one, and would be random; "
            "copy or save the checkpoint again"
        )
    loaded: nn.Module = model
    return loaded


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# Processor


def load_processor(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Load a checkpoint's processor; without torchvision, which only videos need, one that takes images alone.

    Raises:
        UserError: there is none, or it takes no images, or it has no chat template.
    """
    from transformers import AutoProcessor

    try:
        if has_torchvision():
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
        else:
            processor = _load_without_torchvision(folder, trust_remote_code)
    except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
        raise UserError(
            f"{folder} has no processor that can be loaded ({_first_line(error)}); save it there with save_pretrained"
        ) from error
    for part in ("image_processor", "tokenizer"):
        if getattr(processor, part, None) is None:
            raise UserError(f"{folder} has no {part} (its files give a {type(processor).__name__}); save the model's processor there")
    if processor.chat_template is None:
        raise UserError(f"{folder} has no chat template (chat_template.jinja), so it is no instruction-tuned model; use one that is")
    return processor


def _check_pair(processor: Any, settings: Any, folder: Path) -> None:
    """Refuse a processor that is not the model's: transformers makes up an empty tokenizer where its files are absent."""
    token, expected = getattr(processor, "image_token", None), getattr(settings, "image_token_id", None)
    if token is None or expected is None:
        return
    found = processor.tokenizer.get_vocab().get(token)
    if found != expected:
        raise UserError(
            f"{folder}: the model expects {token!r} as token {expected}, and its tokenizer has it {'nowhere' if found is None else found}: "
            "the tokenizer's files are absent or another model's. Save the model's own processor there"
        )


def has_torchvision() -> bool:
    """Whether torchvision can be imported; transformers' video processors need it."""
    from transformers.utils import is_torchvision_available

    return bool(is_torchvision_available())


def _load_without_torchvision(folder: Path, trust_remote_code: bool) -> Any:
    """Assemble the processor with its video part standing by unused: transformers' needs torchvision even to be made."""
    from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    kind = PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)), None)
    if kind is None or "video_processor" not in kind.get_attributes():
        return AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
    settings, _ = kind.get_processor_dict(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return without_video(kind)(
        image_processor=AutoImageProcessor.from_pretrained(folder, backend="pil"),
        tokenizer=tokenizer,
        video_processor=unused_video_processor(_video_settings(folder)),
        chat_template=settings.get("chat_template") or tokenizer.chat_template,
    )


def _video_settings(folder: Path) -> dict[str, Any]:
    """The video part of a checkpoint's processor as its files have it."""
    for name in ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json"):
        path = folder / name
        if path.is_file():
            settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if name != "processor_config.json":
                return settings
            if "video_processor" in settings:
                return dict(settings["video_processor"])
    return {}


def without_video(kind: type[Any]) -> type[Any]:
    """The same class of processor, of the same name in its files, that takes any object for its video part."""

    def check(self: Any, name: str, part: Any) -> Any:
        return None if name == "video_processor" else kind.check_argument_for_proper_class(self, name, part)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check})


def unused_video_processor(settings: dict[str, Any]) -> Any:
    """Stand in for a video processor where torchvision is absent: it keeps and writes its settings, and processes nothing."""
    from transformers.utils import PushToHubMixin

    class Unused(PushToHubMixin):  # type: ignore[misc]
        _auto_class = None

        def to_dict(self) -> dict[str, Any]:
            return copy.deepcopy(settings)

    return Unused()


# What is trained


def _vision_towers(model: nn.Module) -> list[nn.Module]:
    """The model's vision tower, with what brings its output to the width of the language model where that is inside it."""
    towers = [module for name, module in model.named_modules() if name.rpartition(".")[2] in _VISION]
    if not towers:
        raise UserError(f"{type(model).__name__} has no part that is known as a vision tower; leave --freeze-vision out")
    return towers


def _add_adapters(model: nn.Module, config: TrainConfig) -> PeftModel:
    """Put low-rank adapters into the linear layers, all other weights frozen."""
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise UserError(f'--lora-rank needs {error.name}: pip install "mr1-bench[lora]"') from error
    settings = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,
        lora_dropout=0.0,
        target_modules=_adapted_layers(model, vision=not config.freeze_vision),
        task_type="CAUSAL_LM",
        base_model_name_or_path=config.model,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        # The model is still on the CPU, so that a seed means the same on every device. Adapters stay float32 whatever the model is in.
        wrapped: PeftModel = get_peft_model(model, settings, autocast_adapter_dtype=True)
    return wrapped.eval()


def _adapted_layers(model: nn.Module, *, vision: bool) -> list[str]:
    """Full names of the linear layers, the output layer left out."""
    output = model.get_output_embeddings()
    frozen = set() if vision else {id(module) for tower in _vision_towers(model) for module in tower.modules()}
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not output and id(module) not in frozen
    ]
    return sorted(names)


def recompute_activations(model: nn.Module, on: bool) -> None:
    """Switch gradient checkpointing of transformers' own layers, which only looks at layers in training mode.

    Only these layers themselves are put into that mode, and not what is in them, so that still nothing is dropped out.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    if on:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = on


def make_reference(loaded: Loaded) -> Callable[[], AbstractContextManager[nn.Module]]:
    """Freeze the start of the policy: a copy of the weights as they are in memory, or, with adapters, the same weights with those off.

    Returns:
        A function whose result gives the reference for the length of a `with` block; with adapters the policy itself is, inside the block.
    """
    if loaded.peft is None:
        start = copy.deepcopy(loaded.model).requires_grad_(False)
        return lambda: contextlib.nullcontext(start)
    return lambda: _adapters_off(loaded)


@contextlib.contextmanager
def _adapters_off(loaded: Loaded) -> Iterator[nn.Module]:
    assert loaded.peft is not None
    with loaded.peft.disable_adapter():
        yield loaded.model


# Checkpoints


def export(loaded: Loaded, folder: Path, gathered: dict[str, Tensor] | None = None) -> None:
    """Write the model as it is now in the Hugging Face form; the model in memory stays bitwise what it is.

    With adapters the weights are written with them merged in, each rounded once, and the adapters by themselves to `folder/adapter`.

    Args:
        loaded: the model.
        folder: an existing or new folder; files in it are overwritten.
        gathered: the weights, where they are not the model's own: collected from the processes that share them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if loaded.peft is None:
        loaded.model.save_pretrained(folder, safe_serialization=True, state_dict=gathered)
    else:
        loaded.model.save_pretrained(folder, safe_serialization=True, state_dict=weights(loaded))
        loaded.peft.save_pretrained(folder / "adapter", safe_serialization=True)
    loaded.processor.save_pretrained(folder)


def weights(loaded: Loaded) -> dict[str, Tensor]:
    """The weights as they are now, under the names that a checkpoint has them, adapters merged in."""
    return loaded.model.state_dict() if loaded.peft is None else _merged(loaded.model)


@torch.no_grad()
def _merged(model: nn.Module) -> dict[str, Tensor]:
    """The weights under the names they have without adapters, the adapters' products added."""
    from peft.tuners.lora import LoraLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    merged: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        owner, found, rest = name.partition(".base_layer.")
        if found:
            if rest == "weight":
                layer = layers[owner]
                delta = sum(layer.get_delta_weight(adapter).float() for adapter in layer.active_adapters)
                value = (value.float() + delta).to(value.dtype)
            merged[f"{owner}.{rest}"] = value
        elif ".lora_" not in name:
            merged[name] = value
    return merged
