"""Sampling N = P*G completions after P prompts that were computed once (`prefix.encode_prompt`).

The keys and values live in buffers of fixed size, so that one decoding step is the same sequence of kernels every time: on a CUDA
device it is recorded once as a graph and replayed, which removes the cost of launching it; on a CPU the same step runs as it is, over the
filled part of the buffers. Rows that have ended are dropped once they are half of the batch. It must not know rewards or losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from mr1_bench.trainers.prefix import Completions, Prefix, normalize, rotate, rotations

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor, nn

_LOOK = 8  # on a CUDA device, ask for the number of ended rows every so many tokens: asking waits for the device


@torch.no_grad()
def sample(
    model: nn.Module,
    prefix: Prefix,
    group: int,
    *,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
    stop: Sequence[int],
    pad: int,
) -> Completions:
    """Draw `group` completions after each prompt.

    Args:
        model: the model that encoded the prefix.
        prefix: P prompts.
        group: G, samples a prompt.
        max_new_tokens: a completion is cut off after this many tokens.
        temperature: 0 takes the likeliest token.
        generator: source of randomness, on the model's device; not used at temperature 0.
        stop: tokens that end a completion.
        pad: token written after the end.
    """
    rows = len(prefix.mask) * group
    device = prefix.last.device
    decoder = _Decoder(model, prefix, group, max_new_tokens)
    ids = torch.full((rows, max_new_tokens), pad, device=device)
    lengths = torch.full((rows,), max_new_tokens, device=device)
    active = torch.arange(rows, device=device)  # rows of `ids` that the decoder still holds
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    stops = torch.tensor(stop, device=device)
    logits = model.lm_head(prefix.last).repeat_interleave(group, 0)
    for t in range(max_new_tokens):
        tokens = _draw(logits, temperature, generator)
        ids[active, t] = torch.where(ended, pad, tokens)
        ends = torch.isin(tokens, stops) & ~ended
        lengths[active] = torch.where(ends, t + 1, lengths[active])
        ended = ended | ends
        if t + 1 == max_new_tokens:
            break
        if device.type != "cuda" or t % _LOOK == _LOOK - 1:
            left = int((~ended).sum())
            if left == 0:
                break
            if left <= len(active) // 2:
                keep = (~ended).nonzero().squeeze(1)
                active, tokens, ended = active[keep], tokens[keep], ended[keep]
                decoder.keep(keep)
        logits = decoder.step(tokens)
    longest = int(lengths.max())
    mask = torch.arange(longest, device=device) < lengths[:, None]
    return Completions(ids[:, :longest], mask)


def _draw(logits: Float[Tensor, "N V"], temperature: float, generator: torch.Generator | None) -> Int[Tensor, " N"]:
    if temperature == 0:
        return logits.argmax(-1)
    # One uniform number a row against the summed probabilities: torch.multinomial draws one for every token of the vocabulary.
    summed = (logits.float() / temperature).softmax(-1).cumsum(-1, dtype=torch.float64)
    draws = torch.rand(len(logits), 1, generator=generator, device=logits.device, dtype=torch.float64) * summed[:, -1:]
    return torch.searchsorted(summed, draws, right=True).squeeze(1).clamp_(max=logits.shape[1] - 1)


class _Decoder:
    """The buffers of N rows and the step that adds one token to each."""

    def __init__(self, model: nn.Module, prefix: Prefix, group: int, max_new_tokens: int) -> None:
        self._text, self._head = model.model.language_model, model.lm_head
        self._layers = [_Weights(layer) for layer in self._text.layers]
        length = prefix.mask.shape[1]
        room = (0, 0, 0, max_new_tokens - 1)
        self._keys = [F.pad(key, room).repeat_interleave(group, 0) for key in prefix.keys]
        self._values = [F.pad(value, room).repeat_interleave(group, 0) for value in prefix.values]
        bias = torch.zeros(prefix.mask.shape, dtype=prefix.last.dtype, device=prefix.mask.device).masked_fill_(~prefix.mask, -torch.inf)
        self._bias = F.pad(bias, (0, max_new_tokens - 1), value=-torch.inf).repeat_interleave(group, 0)
        self._position = prefix.next_position.repeat_interleave(group)
        self._slot = torch.tensor([length], device=prefix.mask.device)
        self._filled = length
        self._graph: torch.cuda.CUDAGraph | None = None

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Drop all other rows."""
        self._keys = [key[rows] for key in self._keys]
        self._values = [value[rows] for value in self._values]
        self._bias, self._position = self._bias[rows], self._position[rows]
        self._graph = None

    def step(self, tokens: Int[Tensor, " N"]) -> Float[Tensor, "N V"]:
        """Append one token a row; the logits of the next."""
        self._filled += 1
        if tokens.device.type != "cuda":
            return self._forward(tokens, self._filled)
        if self._graph is None:
            self._record(tokens)
        self._tokens.copy_(tokens)
        self._graph.replay()
        return self._logits

    def _record(self, tokens: Int[Tensor, " N"]) -> None:
        self._tokens = tokens.clone()
        state = [tensor.clone() for tensor in (self._bias, self._position, self._slot)]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up on first use, which cannot be recorded
            self._forward(self._tokens, self._bias.shape[1])
        torch.cuda.current_stream().wait_stream(stream)
        for tensor, before in zip((self._bias, self._position, self._slot), state, strict=True):
            tensor.copy_(before)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):  # another thread prepares the next batch
            self._logits = self._forward(self._tokens, self._bias.shape[1])

    def _forward(self, tokens: Int[Tensor, " N"], span: int) -> Float[Tensor, "N V"]:
        """One step over the first `span` places of the buffers; all state changes in place."""
        hidden = self._text.embed_tokens(tokens)
        cos, sin = rotations(self._text, hidden, self._position.view(1, -1, 1).expand(3, -1, -1))
        self._bias.index_fill_(1, self._slot, 0)
        bias = self._bias[:, None, None, :span]
        for weights, keys, values in zip(self._layers, self._keys, self._values, strict=True):
            hidden = weights.forward(hidden, cos, sin, keys, values, self._slot, bias, span)
        self._position.add_(1)
        self._slot.add_(1)
        return self._head(normalize(self._text.norm, hidden))


class _Weights:
    """One decoder layer for a single token a row; projections of the same input are joined into one product where they are plain."""

    def __init__(self, layer: nn.Module) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._layer, self._width = layer, attention.head_dim
        self._qkv = _join(attention.q_proj, attention.k_proj, attention.v_proj)
        self._gate_up = _join(mlp.gate_proj, mlp.up_proj)

    def forward(
        self, hidden: Float[Tensor, "N D"], cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, slot: Tensor, bias: Tensor, span: int
    ) -> Float[Tensor, "N D"]:
        layer = self._layer
        kinds = keys.shape[1]
        heads = self._qkv(normalize(layer.input_layernorm, hidden)).unflatten(-1, (-1, self._width))
        turned, value = heads.split((heads.shape[1] - kinds, kinds), 1)
        query, key = rotate(turned, cos, sin).split((turned.shape[1] - kinds, kinds), 1)
        keys.index_copy_(2, slot, key.unsqueeze(2))
        values.index_copy_(2, slot, value.unsqueeze(2))
        mixed = F.scaled_dot_product_attention(query.unflatten(1, (kinds, -1)), keys[:, :, :span], values[:, :, :span], attn_mask=bias)
        hidden = hidden + layer.self_attn.o_proj(mixed.flatten(1))
        gate, up = self._gate_up(normalize(layer.post_attention_layernorm, hidden)).chunk(2, -1)
        return hidden + layer.mlp.down_proj(layer.mlp.act_fn(gate) * up)


def _join(*projections: nn.Module) -> Callable[[Tensor], Tensor]:
    """One function for several linear maps of the same input, outputs side by side; a copy of the weights if none has an adapter."""
    if all(type(projection) is torch.nn.Linear for projection in projections):
        weight = torch.cat([projection.weight for projection in projections])
        bias = None if projections[0].bias is None else torch.cat([projection.bias for projection in projections])
        return lambda x: F.linear(x, weight, bias)
    return lambda x: torch.cat([projection(x) for projection in projections], -1)
