"""The shared prefix: image and prompt are computed once a prompt, not once a sample, in rollout, reference and policy passes alike.

A group's G completions attend to the same prompt. So the prompt runs through the decoder once (`encode_prompt`), which leaves its keys
and values, differentiably; each completion then runs on its own over those (`completion_logprobs`, `decode.sample`). The result is that
of G full forwards, to rounding, at a fraction of the cost; the gradients of the G completions add up in the shared keys and values (the
same idea for text alone: Prefix Grouper, arXiv 2506.05433). The decoder layers are walked here with the model's own modules, so that
adapters inside them work. It must not know rewards, losses or files.

Sizes: P prompts, G samples a prompt, N = P*G samples, L prompt tokens, T completion tokens, D hidden width, H query heads, K key heads,
E a head's width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor, nn

FAMILY = ("qwen2_vl", "qwen2_5_vl")
"""`model_type` of the models whose layers this file can walk."""

_CHUNK = 2**26  # logits held at a time (256 MiB in fp32); more are computed in pieces, and again in the backward pass


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """P prompts with one image each, left-padded, as the processor gives them, with the positions the model gives them.

    Attributes:
        ids, mask: tokens, and which of them are no padding.
        positions: rotary positions in time, height and width.
        pixels: patches of all images, one after another.
        grids: patches of each image in time, height and width.
    """

    ids: Int[Tensor, "P L"]
    mask: Bool[Tensor, "P L"]
    positions: Int[Tensor, "3 P L"]
    pixels: Float[Tensor, "patches features"]
    grids: Int[Tensor, "images 3"]

    def to(self, device: torch.device) -> PromptBatch:
        """The same batch on a device; copies from pinned memory do not wait."""
        return PromptBatch(*(getattr(self, name).to(device, non_blocking=True) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Prefix:
    """What the decoder keeps of P prompts: rotated keys and values of each layer, and the state from which the first token is predicted."""

    keys: tuple[Float[Tensor, "P K L E"], ...]
    values: tuple[Float[Tensor, "P K L E"], ...]
    mask: Bool[Tensor, "P L"]
    last: Float[Tensor, "P D"]
    next_position: Int[Tensor, " P"]

    def detach(self) -> Prefix:
        """The same numbers without their gradient graph."""
        return replace(
            self,
            keys=tuple(key.detach() for key in self.keys),
            values=tuple(value.detach() for value in self.values),
            last=self.last.detach(),
        )


@dataclass(frozen=True, slots=True)
class Completions:
    """N = P*G sampled completions, right-padded; sample n belongs to prompt n // G. The mask covers the end token."""

    ids: Int[Tensor, "N T"]
    mask: Bool[Tensor, "N T"]

    @classmethod
    def join(cls, rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> Completions:
        """Completions from lists of tokens."""
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        return cls(ids, torch.arange(longest, device=device) < lengths[:, None])

    @property
    def lengths(self) -> Int[Tensor, " N"]:
        """Tokens of each completion, its end token among them."""
        return self.mask.sum(-1)

    def cut_off(self, limit: int, stop: tuple[int, ...]) -> int:
        """Number of completions that reached `limit` tokens without one of the tokens that end them."""
        if self.ids.shape[1] < limit:
            return 0
        last = self.ids[:, limit - 1]
        return int((self.mask[:, limit - 1] & ~torch.isin(last, torch.tensor(stop, device=last.device))).sum())


def encode_images(model: nn.Module, batch: PromptBatch) -> Float[Tensor, "image_tokens D"]:
    """Encode all images of a batch, each once."""
    features = model.model.get_image_features(batch.pixels, batch.grids)
    return torch.cat(features.pooler_output)


def encode_prompt(model: nn.Module, batch: PromptBatch, images: Float[Tensor, "image_tokens D"], *, recompute: bool = False) -> Prefix:
    """Run the prompts through the decoder, each once.

    Args:
        model: a model of `FAMILY`, adapters inside it or not.
        batch: the prompts.
        images: what `encode_images` gave.
        recompute: gradient checkpointing: forget each layer's activations and compute them again in the backward pass.
    """
    text = model.model.language_model
    hidden = text.embed_tokens(batch.ids)
    places = (batch.ids == model.config.image_token_id).unsqueeze(-1)
    hidden = hidden.masked_scatter(places, images.to(hidden.dtype))
    rope = rotations(text, hidden, batch.positions)
    length = batch.ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()
    alone = torch.eye(length, dtype=torch.bool, device=hidden.device)  # padding attends to itself: an empty softmax is NaN
    seen = ((causal & batch.mask[:, None, :]) | alone)[:, None]
    whole, final = (_bias(seen, text), length), (_bias(seen[:, :, -1:], text), 1)
    keys, values = [], []
    for layer in text.layers:
        # Of the last layer's outputs only that of the last token is used, to predict the first token of the completions.
        bias, queries = final if layer is text.layers[-1] else whole
        hidden, key, value = _layer(layer, hidden, rope, _attend, bias, queries, recompute=recompute)
        keys.append(key)
        values.append(value)
    last = normalize(text.norm, hidden)[:, -1]
    return Prefix(tuple(keys), tuple(values), batch.mask, last, batch.positions.amax((0, 2)) + 1)


def completion_logprobs(
    model: nn.Module, prefix: Prefix, completions: Completions, *, temperature: float = 1.0, recompute: bool = False
) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"]]:
    """Log-probability of every token of the completions, and the entropy of the distribution it was drawn from.

    Args:
        model: the model that encoded the prefix.
        prefix: P prompts.
        completions: N completions, N a multiple of P.
        temperature: the logits are divided by it first, as in sampling.
        recompute: gradient checkpointing of the decoder layers.

    Returns:
        Log-probabilities (differentiable) and entropies (not), in nats; 0 at padding.
    """
    text = model.model.language_model
    group = len(completions.ids) // len(prefix.mask)
    hidden = prefix.last.repeat_interleave(group, 0).unsqueeze(1)
    inputs = completions.ids[:, :-1]
    if inputs.shape[1]:
        own = text.embed_tokens(inputs)
        rope = rotations(text, own, _next_positions(prefix, group, inputs.shape[1]))
        causal = torch.ones(inputs.shape[1], inputs.shape[1], dtype=torch.bool, device=inputs.device).tril()
        seen = prefix.mask.repeat_interleave(group, 0)[:, None, None].expand(-1, -1, inputs.shape[1], -1)
        bias = _bias(torch.cat((seen, causal.expand(len(inputs), 1, -1, -1)), -1), text)
        for layer, keys, values in zip(text.layers, prefix.keys, prefix.values, strict=True):
            own, _, _ = _layer(layer, own, rope, _attend_after, bias, inputs.shape[1], keys, values, recompute=recompute)
        hidden = torch.cat((hidden, normalize(text.norm, own)), 1)
    logprobs, entropies = _logprobs(model.lm_head, hidden, completions.ids, temperature)
    return logprobs.masked_fill(~completions.mask, 0), entropies.masked_fill(~completions.mask, 0)


def _next_positions(prefix: Prefix, group: int, length: int) -> Int[Tensor, "3 N T"]:
    first = prefix.next_position.repeat_interleave(group)
    return (first[:, None] + torch.arange(length, device=first.device)).expand(3, -1, -1)


def _layer(
    layer: nn.Module,
    hidden: Float[Tensor, "B L D"],
    rope: tuple[Tensor, Tensor],
    attend: Callable[..., Tensor],
    bias: Tensor,
    queries: int,
    *context: Tensor,
    recompute: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One decoder layer; gives its output at the last `queries` positions and its keys and values at all."""
    arguments = (layer, hidden, rope, attend, bias, queries, *context)
    if recompute and torch.is_grad_enabled():
        result: tuple[Tensor, Tensor, Tensor] = checkpoint(_run_layer, *arguments, use_reentrant=False, preserve_rng_state=False)
        return result
    return _run_layer(*arguments)


def _run_layer(
    layer: nn.Module,
    hidden: Tensor,
    rope: tuple[Tensor, Tensor],
    attend: Callable[..., Tensor],
    bias: Tensor,
    queries: int,
    *context: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    attention = layer.self_attn
    cos, sin = rope[0].unsqueeze(1), rope[1].unsqueeze(1)
    normed = normalize(layer.input_layernorm, hidden)
    key = rotate(_heads(attention.k_proj(normed), attention.head_dim), cos, sin)
    value = _heads(attention.v_proj(normed), attention.head_dim)
    if queries < hidden.shape[1]:
        hidden, normed, cos, sin = hidden[:, -queries:], normed[:, -queries:], cos[:, :, -queries:], sin[:, :, -queries:]
    query = rotate(_heads(attention.q_proj(normed), attention.head_dim), cos, sin)
    hidden = hidden + attention.o_proj(attend(query, key, value, bias, *context))
    return hidden + layer.mlp(normalize(layer.post_attention_layernorm, hidden)), key, value


def _heads(flat: Tensor, width: int) -> Float[Tensor, "B heads L E"]:
    return flat.unflatten(-1, (-1, width)).transpose(1, 2)


def normalize(norm: nn.Module, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """Apply one of the model's RMS norms as one kernel, where transformers' module takes six."""
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def rotations(text: nn.Module, hidden: Tensor, positions: Int[Tensor, "3 B L"]) -> tuple[Float[Tensor, "B L E"], Float[Tensor, "B L E"]]:
    """Cosines and sines of the rotary positions, the first half of the sines negated for `rotate`."""
    cos, sin = text.rotary_emb(hidden, positions)
    first, second = sin.chunk(2, -1)
    return cos, torch.cat((-first, second), -1)


def rotate(x: Float[Tensor, "... E"], cos: Tensor, sin: Tensor) -> Float[Tensor, "... E"]:
    """Rotate each pair (x_i, x_(i+E/2)) by its position's angle; cosines and sines from `rotations`."""
    first, second = x.chunk(2, -1)
    return torch.addcmul(x * cos, torch.cat((second, first), -1), sin)


def _bias(mask: Bool[Tensor, "B 1 L M"], text: nn.Module) -> Float[Tensor, "B 1 R*L M"]:
    """What is added to attention scores, 0 or −inf: made once for all layers, for the R heads of a key head as `_attend` folds them."""
    bias = torch.zeros(mask.shape, dtype=text.embed_tokens.weight.dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
    return bias.repeat(1, 1, text.layers[0].self_attn.num_key_value_groups, 1)


def _attend(
    query: Float[Tensor, "B H L E"], key: Float[Tensor, "B K M E"], value: Float[Tensor, "B K M E"], bias: Tensor
) -> Float[Tensor, "B L H*E"]:
    """Attention with grouped query heads, without repeating the keys: heads that share a key head become more queries of it."""
    kinds = key.shape[1]
    folded = query.unflatten(1, (kinds, -1)).flatten(2, 3)
    mixed = F.scaled_dot_product_attention(folded, key, value, attn_mask=bias)
    return mixed.unflatten(2, (-1, query.shape[2])).flatten(1, 2).transpose(1, 2).flatten(2)


def _attend_after(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, shared_key: Tensor, shared_value: Tensor) -> Tensor:
    """Attention of N completions to their own tokens and to the P prompts they share."""
    group = len(query) // len(shared_key)
    key = torch.cat((shared_key.repeat_interleave(group, 0), key), 2)
    value = torch.cat((shared_value.repeat_interleave(group, 0), value), 2)
    return _attend(query, key, value, bias)


def _logprobs(head: nn.Module, hidden: Float[Tensor, "N T D"], ids: Int[Tensor, "N T"], temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies; in pieces that are computed again in the backward pass where the vocabulary is large."""
    rows = max(1, _CHUNK // head.weight.shape[0])
    flat, targets = hidden.flatten(0, 1), ids.flatten()
    if len(flat) <= rows:
        pieces = [_logprob_piece(head, flat, targets, temperature)]
    else:
        pieces = [
            checkpoint(_logprob_piece, head, part, target, temperature, use_reentrant=False, preserve_rng_state=False)
            for part, target in zip(flat.split(rows), targets.split(rows), strict=True)
        ]
    logprobs, entropies = (torch.cat(part).view(ids.shape) for part in zip(*pieces, strict=True))
    return logprobs, entropies


def _logprob_piece(head: nn.Module, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = head(hidden).float()
    if temperature != 1:
        logits = logits / temperature
    all_logprobs = logits.log_softmax(-1)
    with torch.no_grad():
        entropy = -(all_logprobs.exp() * all_logprobs).sum(-1)
    return all_logprobs.gather(-1, targets[:, None]).squeeze(-1), entropy
