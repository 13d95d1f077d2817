"""How much memory a training run needs, from its numbers alone, so that one that cannot fit is refused before it starts.

What lasts (weights, their float32 masters, moments, reference, gradients) is counted exactly. What comes and goes (activations, the
rollout's keys and values, logits) is an estimate from the shapes: its constants were fitted to the tensors that the passes of `prefix`
keep for their gradient, and lean to the high side. It must not know how anything is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mr1_bench.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mr1_bench.trainers.config import TrainConfig

Sharding = Literal["none", "optimizer", "all"]
"""What several processes divide among them: nothing (DDP); master weights, moments and gradients (ZeRO-2); or the weights and the
reference too (FSDP2, ZeRO-3)."""

_BYTES = {"float32": 4, "bfloat16": 2}
_IMAGE_TOKEN = 28 * 28  # pixels; the vision tower sees four patches of it
_TEXT = 160  # prompt tokens beside the image, where nothing better is known: chat form, question, instruction
_LOGITS_CHUNK = 2**26  # logits held at a time, as `prefix` does
_LOGIT_BYTES = 24  # a logit: in the model's precision, in float32, log-softmax, probabilities, and the gradients of these
_DEVICE_CONTEXT = 2**30  # what a CUDA context and its libraries take
_FRAGMENTS = 0.05  # share that an allocator loses between its blocks
_LORA_RANK = 16  # what a remedy suggests
_FEW_IMAGE_TOKENS = 64  # smaller images are not worth shrinking


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """The numbers that decide how much memory is needed.

    Attributes:
        hidden, layers, intermediate, vocabulary: sizes of the decoder.
        key_width: width of all key heads of a layer together.
        query_groups: query heads that share a key head.
        vision_hidden, vision_layers, vision_intermediate: sizes of the vision tower.
        total, trainable, vision_total: number of parameters: all, those that are trained, those of the vision tower.
        lora_rank: 0 where all weights are trained.
        prompts: prompts in a batch.
        micro_prompts: prompts computed at a time.
        group: completions a prompt; 1 in supervised training.
        shared: the prompt is computed once a group; else (the plain path) once a completion, with the logits of all tokens at once.
        prompt_tokens, image_tokens: longest prompt, and how many of its tokens are the image's.
        completion_tokens: longest completion.
        dtype: precision of the passes, `float32` or `bfloat16`.
        checkpointing: decoder layers are computed again in the backward pass.
        reference: a frozen copy of all weights is kept.
        rollout: completions are sampled.
        train_vision: the vision tower has gradients.
        cuda: on a CUDA device, else a CPU.
        processes: among which the batch is divided; `prompts` and `micro_prompts` are those of one.
        sharding: what else is divided among them.
        drawn: prompts whose completions are drawn at a time; 0: as many as are computed at a time.
    """

    hidden: int
    layers: int
    intermediate: int
    vocabulary: int
    key_width: int
    query_groups: int
    vision_hidden: int
    vision_layers: int
    vision_intermediate: int
    total: int
    trainable: int
    vision_total: int
    lora_rank: int
    prompts: int
    micro_prompts: int
    group: int
    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    dtype: str
    checkpointing: bool
    reference: bool
    rollout: bool
    train_vision: bool
    cuda: bool
    shared: bool = True
    processes: int = 1
    sharding: Sharding = "none"
    drawn: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes of one process by purpose. Those from `weights` to `reference` last; the larger of the update's and the rollout's come on top.

    Attributes:
        workload: what it was made from.
        weights: all parameters in the precision of the passes.
        master: float32 copies of the trained ones, where they are of lower precision.
        moments: AdamW's two, float32.
        reference: the frozen copy.
        gradients: float32.
        activations: what one micro-batch keeps for its backward pass, the shared prefix among it.
        logits: a chunk of them, with what its gradient needs.
        rollout: keys and values while sampling, joined weights, and what the prompt pass keeps meanwhile.
        overhead: of the device and its allocator.
        gathered: where the weights are divided: the whole of them, in the precision of the passes, while all of them are needed.
    """

    workload: Workload
    weights: int
    master: int
    moments: int
    reference: int
    gradients: int
    activations: int
    logits: int
    rollout: int
    overhead: int
    gathered: int = 0

    @property
    def update(self) -> int:
        """Bytes that an update needs beside what lasts."""
        return self.gradients + self.activations + self.logits

    @property
    def total(self) -> int:
        """Bytes at the fullest moment."""
        lasting = self.weights + self.master + self.moments + self.reference + self.gathered
        return lasting + max(self.update, self.rollout) + self.overhead

    def table(self) -> str:
        """All parts in one line, for the start of a run."""
        names = ("weights", "master", "moments", "reference", "gathered")
        lasting = " + ".join(f"{name} {human_bytes(size)}" for name in names if (size := getattr(self, name)))
        update = " + ".join(f"{name} {human_bytes(getattr(self, name))}" for name in ("gradients", "activations", "logits"))
        then = f"the larger of update ({update}) and rollout ({human_bytes(self.rollout)})" if self.rollout else update
        overhead = f" + overhead {human_bytes(self.overhead)}" if self.overhead else ""
        return f"about {human_bytes(self.total)} = {lasting} + {then}{overhead}"


def human_bytes(size: float) -> str:
    """A number of bytes in a unit that leaves one to three digits before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def estimate(workload: Workload) -> Estimate:
    """Estimate the memory of a run."""
    w, size = workload, _BYTES[workload.dtype]
    lasting = w.total * size
    prompt, completion = _prompt_activations(w), _completion_activations(w)
    samples = w.micro_prompts * w.group
    tokens = samples * w.completion_tokens
    chunk = min(tokens, max(1, _LOGITS_CHUNK // w.vocabulary)) * w.vocabulary * _LOGIT_BYTES
    whole = 0 if w.shared else 2 * tokens * w.vocabulary * size  # the plain path's logits and their gradient
    parts: dict[str, int] = {
        "weights": lasting,
        "master": 0 if w.dtype == "float32" else 4 * w.trainable,
        "moments": 8 * w.trainable,
        "reference": lasting if w.reference else 0,
        "gradients": 4 * w.trainable,
        "activations": prompt + completion,
        "logits": chunk + whole,
        "rollout": _rollout(w, prompt) if w.rollout else 0,
    }
    if w.sharding != "none":
        parts |= {name: -(-parts[name] // w.processes) for name in _DIVIDED[w.sharding]}
    if w.sharding == "all":
        parts["gathered"] = lasting
    bare = Estimate(w, **parts, overhead=0)
    return replace(bare, overhead=int(bare.total * _FRAGMENTS) + _DEVICE_CONTEXT if w.cuda else 0)


_DIVIDED: dict[Sharding, tuple[str, ...]] = {
    "optimizer": ("master", "moments", "gradients"),
    "all": ("weights", "master", "moments", "gradients", "reference"),
}


def _layer_elements(w: Workload, tokens: int, seen: int) -> int:
    """Elements that one decoder layer keeps for its backward pass, of `tokens` that each attend to `seen`."""
    upcast = 4 if w.dtype == "bfloat16" else 0  # each of the two norms keeps its input in float32
    return tokens * ((13 + upcast) * w.hidden + 4 * w.intermediate + 6 * w.key_width + w.query_groups * seen)


def _kept(w: Workload, layer: int, tokens: int) -> int:
    """Bytes that all layers keep, given the elements of one: with checkpointing each layer's input, and one layer at a time in full."""
    elements = layer + w.layers * tokens * w.hidden if w.checkpointing else layer * w.layers
    return elements * _BYTES[w.dtype]


def _prompt_activations(w: Workload) -> int:
    copies = w.micro_prompts * (1 if w.shared else w.group)
    tokens = copies * w.prompt_tokens
    prefix = 2 * tokens * w.key_width * w.layers * _BYTES[w.dtype]
    patches = 4 * copies * w.image_tokens
    block = patches * (11 * w.vision_hidden + 4 * w.vision_intermediate)
    blocks = block + w.vision_layers * patches * w.vision_hidden if w.checkpointing else block * w.vision_layers
    tower = blocks * _BYTES[w.dtype] if w.train_vision else 0
    return prefix + _kept(w, _layer_elements(w, tokens, w.prompt_tokens), tokens) + tower


def _completion_activations(w: Workload) -> int:
    samples, seen = w.micro_prompts * w.group, w.prompt_tokens + w.completion_tokens
    tokens = samples * w.completion_tokens
    layer = _layer_elements(w, tokens, seen) + 2 * samples * seen * w.key_width  # the prefix is repeated for each completion
    return _kept(w, layer, tokens)


def _rollout(w: Workload, prompt: int) -> int:
    samples, size = (w.drawn or w.micro_prompts) * w.group, _BYTES[w.dtype]
    cache = samples * (w.prompt_tokens + w.completion_tokens) * 2 * w.key_width * w.layers * size
    joined = 0 if w.lora_rank else w.layers * w.hidden * (w.hidden + 2 * w.key_width + 2 * w.intermediate) * size
    logits = samples * w.vocabulary * (size + 8)
    kept = prompt if w.micro_prompts == w.prompts else 0  # a batch of one part keeps its prompt pass for the first update
    return cache + joined + logits + kept


def require(needed: Estimate, available: int | None) -> None:
    """Refuse a run that cannot fit.

    Args:
        needed: its estimate.
        available: bytes that the run may use (`available_memory`); None: unknown, and everything passes.

    Raises:
        UserError: too little memory. The message names what each setting would save, most first.
    """
    if available is None or needed.total <= available:
        return
    remedies = list(_remedies(needed.workload))
    totals = [(estimate(change(needed.workload)).total, advice) for advice, change in remedies]
    lines = [
        f"{advice} saves {human_bytes(needed.total - total)} (then {human_bytes(total)}{', which fits' if total <= available else ''})"
        for total, advice in sorted(totals)
        if total < needed.total
    ]
    least = estimate(functools.reduce(lambda workload, remedy: remedy[1](workload), remedies, needed.workload)).total
    last = "" if least <= available else f". Even all of them together need {human_bytes(least)}: take a smaller model or a larger device"
    device = "the GPU" if needed.workload.cuda else "this machine"
    raise UserError(
        f"the run needs about {human_bytes(needed.total)} of memory, and {device} has {human_bytes(available)} for it. "
        f"What would help: {'; '.join(lines) if lines else 'nothing that can be set'}{last}. ({needed.table()})"
    )


def _remedies(w: Workload) -> Iterator[tuple[str, Callable[[Workload], Workload]]]:
    """Settings that save memory, and what each changes."""
    if not w.checkpointing:
        yield "--gradient-checkpointing", lambda now: replace(now, checkpointing=True)
    if w.micro_prompts > 1:
        yield "--micro-prompts 1", lambda now: replace(now, micro_prompts=1)
    if w.cuda and w.dtype == "float32":
        yield "--dtype bfloat16", lambda now: replace(now, dtype="bfloat16")
    if w.train_vision:
        yield "--freeze-vision", lambda now: replace(now, train_vision=False, trainable=now.trainable - now.vision_total)
    if not w.lora_rank:
        yield f"--lora-rank {_LORA_RANK}", _with_adapters
    if w.image_tokens > _FEW_IMAGE_TOKENS:
        yield f"--max-pixels {w.image_tokens // 2 * _IMAGE_TOKEN}", _with_smaller_images
    if w.group > 2:
        yield f"--num-generations {w.group // 2}", lambda now: replace(now, group=now.group // 2)


def _with_adapters(w: Workload) -> Workload:
    """The same with adapters on every linear map of the decoder's layers; the base, with its adapters off, is the reference."""
    widths = 2 * (w.hidden + w.hidden) + 2 * (w.hidden + w.key_width) + 3 * (w.hidden + w.intermediate)
    adapters = w.layers * _LORA_RANK * widths
    return replace(w, lora_rank=_LORA_RANK, trainable=adapters, total=w.total + adapters, reference=False, train_vision=False)


def _with_smaller_images(w: Workload) -> Workload:
    fewer = w.image_tokens // 2
    return replace(w, image_tokens=fewer, prompt_tokens=w.prompt_tokens - w.image_tokens + fewer)


def workload(
    model: nn.Module,
    config: TrainConfig,
    *,
    shared: bool = True,
    prompt_tokens: int | None = None,
    image_tokens: int | None = None,
    processes: int = 1,
    sharding: Sharding = "none",
) -> Workload:
    """Read the numbers off a loaded model, with `requires_grad` set and adapters inside, and its configuration.

    Args:
        model: a model of the Qwen2-VL family, or another whose configuration names its sizes the same way.
        config: the settings.
        shared: whether the prompt is computed once a group.
        prompt_tokens: longest prompt, where it is known; else an image of `max_pixels` and a page's line of text.
        image_tokens: tokens of its image, where they are known.
        processes: among which a batch is divided.
        sharding: what else is divided among them.
    """
    sizes: Any = model.config
    text, vision = sizes.get_text_config(), getattr(sizes, "vision_config", None)
    image = config.max_pixels // _IMAGE_TOKEN if image_tokens is None else image_tokens
    prompt = min(image + _TEXT, config.max_prompt_tokens) if prompt_tokens is None else prompt_tokens
    heads = text.num_attention_heads
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    tower = {name: param for name, param in model.named_parameters() if "visual" in name or "vision" in name}
    own = next(model.parameters())
    grouped = config.method != "sft"
    prompts = -(-config.prompts_per_step // processes)
    return Workload(
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        intermediate=text.intermediate_size,
        vocabulary=text.vocab_size,
        key_width=key_heads * width,
        query_groups=heads // key_heads,
        vision_hidden=_vision_width(vision),
        vision_layers=_first(vision, "depth", "num_hidden_layers"),
        vision_intermediate=_first(vision, "intermediate_size") or int(_vision_width(vision) * (getattr(vision, "mlp_ratio", 4) or 4)),
        total=sum(param.numel() for param in model.parameters()),
        trainable=sum(param.numel() for param in model.parameters() if param.requires_grad),
        vision_total=sum(param.numel() for param in tower.values() if param.requires_grad),
        lora_rank=config.lora_rank,
        prompts=prompts,
        micro_prompts=min(config.micro_prompts or prompts, prompts),
        group=getattr(config, "num_generations", 1) if grouped else 1,
        prompt_tokens=prompt,
        image_tokens=min(image, prompt),
        completion_tokens=config.max_new_tokens,
        dtype=config.dtype,
        checkpointing=config.gradient_checkpointing,
        reference=grouped and not config.lora_rank and getattr(config, "beta_max", 0.0) > 0,
        rollout=grouped,
        train_vision=any(param.requires_grad for param in tower.values()),
        cuda=own.device.type == "cuda",
        shared=shared,
        processes=processes,
        sharding=sharding,
        drawn=prompts if config.engine == "trl" else 0,
    )


def _first(source: Any, *names: str) -> int:
    """The first of some attributes that is there; 0 where there is none."""
    return next((int(value) for name in names if (value := getattr(source, name, None))), 0)


def _vision_width(vision: Any) -> int:
    return _first(vision, "embed_dim", "hidden_size")  # in Qwen2-VL hidden_size is the width after merging


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process may use on a device, those that it already holds included; None where the system does not say."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    free = _meminfo()
    if free is None:
        return None
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        free = min(free, max(limit - used, 0))
    return free + _resident()


def _meminfo() -> int | None:
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    rows = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return int(rows["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in rows else None


def _number(path: Path) -> int | None:
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdecimal() else None


def _resident() -> int:
    import resource

    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
