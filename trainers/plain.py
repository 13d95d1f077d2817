"""The plain path: every completion is computed in full, through transformers' own `generate` and `forward`.

It works for any image-text-to-text model, at the cost of encoding image and prompt once a sample; `engine.SharedEngine` has the same form
for the models whose prompts can be shared. It must not know rewards, losses or files.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

from mr1_bench.trainers.models import recompute_activations
from mr1_bench.trainers.prefix import FAMILY, Completions, PromptBatch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor, nn

    from mr1_bench.trainers.batches import Part

_CHUNK = 2**26  # logits held at a time; see `prefix`
_LOG = logging.getLogger(__name__)


class PlainEngine:
    """Each completion is a full forward of image, prompt and completion."""

    def __init__(self, model: nn.Module, processor: Any, stop: tuple[int, ...], pad: int, *, recompute: bool = False) -> None:
        """Wrap any image-text-to-text model.

        Args:
            model: the model, adapters inside it or not.
            processor: its processor.
            stop: tokens that end a completion.
            pad: token written after the end.
            recompute: gradient checkpointing.
        """
        self._model, self._processor, self._stop, self._pad, self._recompute = model, processor, stop, pad, recompute
        self._accepted = frozenset(inspect.signature(model.forward).parameters)
        _say_once(model.config.model_type)

    def encode(self, part: Part) -> Part:
        """The prompts as they are: nothing of them is computed ahead."""
        return part

    @torch.no_grad()
    def sample(self, state: Part, group: int, *, max_new_tokens: int, temperature: float, generator: torch.Generator | None) -> Completions:
        """Draw completions with `generate`."""
        from transformers import GenerationConfig

        inputs = self._inputs(state, group)
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            eos_token_id=list(self._stop),
            pad_token_id=self._pad,
            # Everything that a model's own generation config might set is said here: the policy is sampled as it is.
            repetition_penalty=1.0,
            num_beams=1,
            **({"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {"do_sample": False}),
        )
        recompute_activations(self._model, False)  # it would switch the cache off
        device = inputs["input_ids"].device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            if generator is not None:
                # `generate` draws from the global state, which is set from the generator and then put back.
                torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
            rows = self._model.generate(**inputs, generation_config=settings)
        if self._recompute:
            recompute_activations(self._model, True)
        return _completions(rows[:, inputs["input_ids"].shape[1] :], self._stop, self._pad)

    def logprobs(self, state: Part, completions: Completions, *, temperature: float) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"]]:
        """Log-probabilities and entropies; 0 at padding."""
        inputs = self._inputs(state, len(completions.ids) // len(state.items))
        length = completions.ids.shape[1]
        arguments = _append(inputs, completions)
        if "position_ids" in self._accepted and not hasattr(self._model.model, "get_rope_index"):
            # As `generate` counts them: padding on the left takes no position. Models with rotary positions of their own make these.
            arguments["position_ids"] = (arguments["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        if "logits_to_keep" in self._accepted:
            arguments["logits_to_keep"] = length + 1
        logits = self._model(**arguments, use_cache=False).logits[:, -length - 1 : -1]
        return _logprobs(logits, completions, temperature)

    def _inputs(self, state: Part, group: int) -> dict[str, Tensor]:
        """The model's inputs for every prompt, `group` times each, on its device."""
        first = next(self._model.parameters())
        if state.prompts is not None:
            return _repeat(state.prompts.to(first.device), group, self._model.config.image_token_id)
        texts = [text for text in state.texts for _ in range(group)]
        pictures = [[picture] for picture in (item.image for item in state.items) for _ in range(group)]
        with _padding_undone(self._processor.tokenizer):
            batch = self._processor(text=texts, images=pictures, return_tensors="pt", padding=True, padding_side="left")
        return {name: value.to(first.device, first.dtype if value.is_floating_point() else None) for name, value in batch.items()}


@contextlib.contextmanager
def _padding_undone(tokenizer: Any) -> Iterator[None]:
    """Put back how a tokenizer pads: it remembers the last call, and would write that into the checkpoints."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    before = None if backend is None else backend.padding
    yield
    if backend is not None and before is None:
        backend.no_padding()
    elif backend is not None:
        backend.enable_padding(**before)


def _repeat(prompts: PromptBatch, group: int, image_token: int) -> dict[str, Tensor]:
    """What a Qwen2-VL processor makes of every prompt, `group` times each."""
    ids = prompts.ids.repeat_interleave(group, 0)
    images = prompts.pixels.split(prompts.grids.prod(-1).tolist())
    return {
        "input_ids": ids,
        "attention_mask": prompts.mask.repeat_interleave(group, 0).long(),
        "mm_token_type_ids": (ids == image_token).int(),
        "pixel_values": torch.cat([image for image in images for _ in range(group)]),
        "image_grid_thw": prompts.grids.repeat_interleave(group, 0),
    }


def _append(inputs: dict[str, Tensor], completions: Completions) -> dict[str, Tensor]:
    """Inputs of prompts and completions together; what is said of each token is 0 (text) for those of a completion."""
    tail = {"input_ids": completions.ids, "attention_mask": completions.mask.to(inputs["attention_mask"].dtype)}
    joined = dict(inputs)
    for name, value in inputs.items():
        if value.shape == inputs["input_ids"].shape:
            joined[name] = torch.cat((value, tail.get(name, torch.zeros_like(completions.ids, dtype=value.dtype))), 1)
    return joined


def _completions(ids: Int[Tensor, "N T"], stop: tuple[int, ...], pad: int) -> Completions:
    """Cut completions after their first end token."""
    ends = torch.isin(ids, torch.tensor(stop, device=ids.device))
    mask = ends.cumsum(-1) - ends.int() == 0
    longest = int(mask.sum(-1).max())
    return Completions(torch.where(mask, ids, pad)[:, :longest], mask[:, :longest])


def _logprobs(logits: Float[Tensor, "N T V"], completions: Completions, temperature: float) -> tuple[Tensor, Tensor]:
    rows = max(1, _CHUNK // logits.shape[-1])
    flat, targets = logits.flatten(0, 1), completions.ids.flatten()
    pieces = [
        checkpoint(_piece, part, target, temperature, use_reentrant=False, preserve_rng_state=False)
        for part, target in zip(flat.split(rows), targets.split(rows), strict=True)
    ]
    logprobs, entropies = (torch.cat(part).view(completions.ids.shape) for part in zip(*pieces, strict=True))
    return logprobs.masked_fill(~completions.mask, 0), entropies.masked_fill(~completions.mask, 0)


def _piece(logits: Float[Tensor, "rows V"], targets: Int[Tensor, " rows"], temperature: float) -> tuple[Tensor, Tensor]:
    all_logprobs = (logits.float() / temperature).log_softmax(-1)
    with torch.no_grad():
        entropy = -(all_logprobs.exp() * all_logprobs).sum(-1)
    return all_logprobs.gather(-1, targets[:, None]).squeeze(-1), entropy


@functools.cache
def _say_once(model_type: str) -> None:
    why = "as asked" if model_type in FAMILY else f"a model of type {model_type!r} cannot share its prompts ({', '.join(FAMILY)} can)"
    _LOG.warning("plain path: %s; image and prompt are computed once a sample", why)
