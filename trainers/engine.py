"""The three operations that training asks of a model, and the one implementation for models whose prompt pass can be shared.

`plain.PlainEngine` has the same form for all other models. An engine must not know rewards, losses or files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from mr1_bench.trainers import decode, prefix

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor, nn

    from mr1_bench.trainers.batches import Part
    from mr1_bench.trainers.models import Loaded
    from mr1_bench.trainers.prefix import Completions, Prefix


class Engine(Protocol):
    """Encode prompts, sample completions after them, and give the log-probabilities of completions."""

    def encode(self, part: Part) -> Any:
        """The state of P prompts, with a gradient graph where gradients are enabled."""

    def sample(self, state: Any, group: int, *, max_new_tokens: int, temperature: float, generator: torch.Generator | None) -> Completions:
        """Draw `group` completions after each prompt; at temperature 0 the likeliest."""

    def logprobs(self, state: Any, completions: Completions, *, temperature: float) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"]]:
        """Log-probabilities (differentiable) and entropies (not), as `prefix.completion_logprobs`."""


class SharedEngine:
    """Image and prompt are computed once a prompt, and its completions share them."""

    def __init__(self, model: nn.Module, stop: tuple[int, ...], pad: int, *, recompute: bool = False) -> None:
        """Wrap a model of `prefix.FAMILY`.

        Args:
            model: the model, adapters inside it or not.
            stop: tokens that end a completion.
            pad: token written after the end.
            recompute: gradient checkpointing.
        """
        self._model, self._stop, self._pad, self._recompute = model, stop, pad, recompute

    def encode(self, part: Part) -> Prefix:
        """Encode the images and run the prompts through the decoder, each once."""
        assert part.prompts is not None
        prompts = part.prompts.to(next(self._model.parameters()).device)
        images = prefix.encode_images(self._model, prompts)
        return prefix.encode_prompt(self._model, prompts, images, recompute=self._recompute)

    def sample(
        self, state: Prefix, group: int, *, max_new_tokens: int, temperature: float, generator: torch.Generator | None
    ) -> Completions:
        """Draw completions; see `decode.sample`."""
        return decode.sample(
            self._model,
            state.detach(),
            group,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            generator=generator,
            stop=self._stop,
            pad=self._pad,
        )

    def logprobs(self, state: Prefix, completions: Completions, *, temperature: float) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"]]:
        """Log-probabilities and entropies; see `prefix.completion_logprobs`."""
        return prefix.completion_logprobs(self._model, state, completions, temperature=temperature, recompute=self._recompute)


def stop_tokens(loaded: Loaded) -> tuple[tuple[int, ...], int]:
    """Tokens that end a completion, and the one that pads: the generation config's, else the tokenizer's."""
    generation, tokenizer = loaded.model.generation_config, loaded.processor.tokenizer
    stop = generation.eos_token_id if generation.eos_token_id is not None else tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else generation.pad_token_id
    stops = tuple(stop) if isinstance(stop, list | tuple) else (stop,)
    return stops, stops[0] if pad is None else pad


def read_texts(processor: Any, completions: Completions) -> list[str]:
    """The completions as lmms-eval's backends read them: without special tokens and outer white space."""
    rows = [ids[:length].tolist() for ids, length in zip(completions.ids, completions.lengths.tolist(), strict=True)]
    texts: list[str] = processor.tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [text.strip() for text in texts]


def make_engine(loaded: Loaded, model: nn.Module, *, rollout: str = "auto", recompute: bool = False) -> Engine:
    """The engine for a model: shared where it can be, unless `rollout` is `plain`."""
    stop, pad = stop_tokens(loaded)
    if loaded.shares and rollout != "plain":
        return SharedEngine(model, stop, pad, recompute=recompute)
    from mr1_bench.trainers.plain import PlainEngine

    return PlainEngine(model, loaded.processor, stop, pad, recompute=recompute)
