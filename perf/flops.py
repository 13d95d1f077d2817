"""The least work of one GRPO step whose prompts are shared: its floating-point operations, and how long its matrix products take alone.

Counted are the products of the language model, the vision tower and the output head, each thing once: images and prompts once a prompt in
the rollout and the reference pass, and not again in the policy pass, which keeps the rollout's. It must not know trainers.

Sizes: P prompts of L tokens, N samples of T tokens, n patches an image; a product of (M, K) and (K, N) matrices is 2*M*K*N operations.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shapes import Shape

_PATCH_FEATURES = 3 * 2 * 14 * 14  # colours, frames, height and width of a patch
_MERGE = 4  # patches that become one token


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product (rows, inner) by (inner, columns), `count` of them in one forward pass."""

    rows: int
    inner: int
    columns: int
    count: float = 1

    @property
    def flops(self) -> float:
        """Operations of all of them."""
        return 2.0 * self.rows * self.inner * self.columns * self.count

    def backward(self) -> tuple[Product, Product]:
        """The two products of the backward pass: for the input, and for the weights."""
        return (
            Product(self.rows, self.columns, self.inner, self.count),
            Product(self.columns, self.rows, self.inner, self.count),
        )


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass: its products with weights, and the operations of its attention."""

    products: tuple[Product, ...]
    attention: float

    @property
    def flops(self) -> float:
        """All its operations."""
        return sum(product.flops for product in self.products) + self.attention

    def __add__(self, other: Pass) -> Pass:
        return Pass(self.products + other.products, self.attention + other.attention)

    def backward(self) -> Pass:
        """The backward pass: twice the operations."""
        return Pass(tuple(half for product in self.products for half in product.backward()), 2 * self.attention)


def vision(shape: Shape, patches: int) -> Pass:
    """All P images of a batch, `patches` each."""
    rows, width, layers = shape.prompts * patches, shape.vision_hidden, shape.vision_layers
    tokens, merged = rows // _MERGE, _MERGE * width
    products = (
        Product(rows, _PATCH_FEATURES, width),
        Product(rows, width, 3 * width, layers),
        Product(rows, width, width, layers),
        Product(rows, width, 4 * width, layers),
        Product(rows, 4 * width, width, layers),
        Product(tokens, merged, merged),
        Product(tokens, merged, shape.hidden),
    )
    return Pass(products, 4.0 * shape.prompts * patches**2 * width * layers)


def prompt(shape: Shape, length: float) -> Pass:
    """All P prompts; of the last layer only keys and values are needed, and the one state that predicts the first token."""
    rows, layers = round(shape.prompts * length), shape.layers
    products = (
        *_layer(shape, rows, layers - 1),
        Product(rows, shape.hidden, 2 * shape.key_heads * shape.head),
        *_layer(shape, shape.prompts, 1)[:1],
        *_layer(shape, shape.prompts, 1)[2:],
        Product(shape.prompts, shape.hidden, shape.vocabulary),
    )
    causal = 2.0 * shape.prompts * length**2 * shape.hidden * (layers - 1)
    return Pass(products, causal + 4.0 * shape.prompts * length * shape.hidden)


def completions(shape: Shape, length: float, tokens: int, *, at_once: int | None = None) -> Pass:
    """N completions of `tokens` tokens after prompts of `length`; the first token was predicted by the prompt.

    Args:
        shape: the sizes.
        length: tokens of a prompt.
        tokens: of a completion.
        at_once: tokens of a completion that run together: all, or 1 while they are sampled.
    """
    samples, inputs = shape.prompts * shape.group, tokens - 1
    at_once = at_once or inputs
    times = inputs / at_once
    rows = samples * at_once
    products = tuple(
        Product(one.rows, one.inner, one.columns, one.count * times)
        for one in (*_layer(shape, rows, shape.layers), Product(rows, shape.hidden, shape.vocabulary))
    )
    return Pass(products, 4.0 * samples * inputs * (length + inputs / 2) * shape.hidden * shape.layers)


def _layer(shape: Shape, rows: int, layers: int) -> tuple[Product, ...]:
    hidden, mlp = shape.hidden, shape.mlp
    return (
        Product(rows, hidden, hidden, layers),
        Product(rows, hidden, 2 * shape.key_heads * shape.head, layers),
        Product(rows, hidden, hidden, layers),
        Product(rows, hidden, mlp, 2 * layers),
        Product(rows, mlp, hidden, layers),
    )


@dataclass(frozen=True, slots=True)
class Step:
    """The passes of one step."""

    rollout: Pass
    reference: Pass
    policy: Pass
    backward: Pass

    @property
    def flops(self) -> float:
        """All operations of the step."""
        return sum(one.flops for one in self.passes)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """All passes."""
        return (self.rollout, self.reference, self.policy, self.backward)


def step(shape: Shape, patches: int, length: float) -> Step:
    """Count a step.

    Args:
        shape: sizes of the model and of the work.
        patches: of an image.
        length: mean tokens of a prompt, those of its image among them.
    """
    shared = vision(shape, patches) + prompt(shape, length)
    after = completions(shape, length, shape.new_tokens)
    sampled = completions(shape, length, shape.new_tokens, at_once=1)
    return Step(shared + sampled, shared + after, after, (shared + after).backward())


def update_flops(shape: Shape, patches: int, length: float) -> float:
    """Model operations of the update: forward and backward of image, prompt and completions, each once, nothing recomputed."""
    return 3 * (vision(shape, patches) + prompt(shape, length) + completions(shape, length, shape.new_tokens)).flops


def product_rate(size: int, device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of square matrix products of this size."""
    product = Product(size, size, size)
    return product.flops / _seconds(product, device, dtype)


def seconds_of_products(products: Iterable[Product], device: torch.device, dtype: torch.dtype) -> float:
    """Seconds that the products take one after another, each kind measured by itself."""
    known: dict[tuple[int, int, int], float] = {}
    total = 0.0
    for one in products:
        key = (one.rows, one.inner, one.columns)
        if key not in known:
            known[key] = _seconds(Product(*key), device, dtype)
        total += known[key] * one.count
    return total


def _seconds(product: Product, device: torch.device, dtype: torch.dtype, rounds: int = 9) -> float:
    left = torch.randn(product.rows, product.inner, device=device, dtype=dtype)
    right = torch.randn(product.columns, product.inner, device=device, dtype=dtype)
    repeats = max(1, min(200, round(2e7 / product.flops)))
    found = []
    for _ in range(rounds):
        _wait(device)
        start = time.perf_counter()
        for _ in range(repeats):
            torch.nn.functional.linear(left, right)
        _wait(device)
        found.append((time.perf_counter() - start) / repeats)
    return min(found)  # noise only slows


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
