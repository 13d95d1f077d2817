"""Supervised fine-tuning: the loss is on the completion only, prompt and checkpoints are those of the other trainers.

It must not know run folders or the command line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mr1_bench import prompts
from mr1_bench.errors import UserError
from mr1_bench.synth import hasty
from mr1_bench.trainers.clock import Clock
from mr1_bench.trainers.engine import make_engine, stop_tokens
from mr1_bench.trainers.optimizer import NonFiniteError
from mr1_bench.trainers.prefix import Completions

if TYPE_CHECKING:
    from mr1_bench.trainers.batches import Batch
    from mr1_bench.trainers.config import SFTConfig
    from mr1_bench.trainers.items import Item
    from mr1_bench.trainers.models import Loaded
    from mr1_bench.trainers.optimizer import Optimizer


def target_text(item: Item, target: str, hasty_shares: Mapping[str, float] | None = None) -> str:
    """What the model learns to write after an item's prompt.

    Args:
        item: the item.
        target: `solution` or `answer`.
        hasty_shares: question family -> share of its worked solutions that stop a step early.

    Raises:
        UserError: the worked solution is asked for, and the item has none.
    """
    if target == "answer":
        return prompts.answer(item.gold)
    if not item.solution:
        raise UserError(f"{item.id} has no worked solution to learn from; train with --target answer")
    if hasty_shares and hasty.is_hasty(item.id, item.meta.get("family", ""), hasty_shares) and (early := hasty.stop_early(item.solution)):
        return prompts.worked_answer(*early)
    return prompts.worked_answer(item.solution, item.gold)


class SFT:
    """The training step."""

    def __init__(self, loaded: Loaded, config: SFTConfig, optimizer: Optimizer) -> None:
        """Prepare the engine."""
        self._loaded, self._config, self._optimizer = loaded, config, optimizer
        self._engine = make_engine(loaded, loaded.model, recompute=config.gradient_checkpointing)
        self._device = next(loaded.model.parameters()).device
        self._stop, self._pad = stop_tokens(loaded)
        self._hasty = hasty.parse_shares(config.hasty)
        self.moved = False  # whether a step that failed has changed the weights: its one update is its last act

    def step(self, step: int, batch: Batch, learning_rate: float) -> tuple[dict[str, Any], list[Any]]:  # noqa: ARG002
        """Take one step: the mean over all target tokens of −log p.

        Raises:
            NonFiniteError: the loss or the gradient is NaN or infinite; the weights are untouched.
        """
        clock = Clock(self._device)
        targets = [self._targets(part.items) for part in batch.parts]
        tokens = sum(int(target.mask.sum()) for target in targets)
        total = entropy = 0.0
        for part, target in zip(batch.parts, targets, strict=True):
            with clock("policy"):
                logprobs, entropies = self._engine.logprobs(self._engine.encode(part), target, temperature=1.0)
                loss = -logprobs.sum() / tokens
                if not math.isfinite(loss.item()):
                    raise NonFiniteError(f"the loss is {loss.item()}")
                total += loss.item()
                entropy += float(entropies.sum()) / tokens
            with clock("backward"):
                loss.backward()
        with clock("optimizer"):
            norm = self._optimizer.step(learning_rate)
        cut_off = sum(target.cut_off(self._config.max_new_tokens, self._stop) for target in targets) / len(batch.items)
        row: dict[str, Any] = {
            "reward": None,
            "accuracy": None,
            "format": None,
            "kl": None,
            "beta": None,
            "loss": total,
            "entropy": entropy,
        }
        row |= {
            "grad_norm": norm,
            "length": tokens / len(batch.items),
            "clip_share": None,
            "zero_spread_share": None,
            "cut_off_share": cut_off,
        }
        row |= {"lr": learning_rate} | clock.times()
        row["tokens_per_s"] = tokens / row["time_step"]
        return row, []

    def _targets(self, items: Sequence[Item]) -> Completions:
        """The target texts as tokens, ended like a completion, cut off at the limit of a completion."""
        tokenizer, limit = self._loaded.processor.tokenizer, self._config.max_new_tokens
        texts = [target_text(item, self._config.target, self._hasty) for item in items]
        rows = [[*ids, self._stop[0]][:limit] for ids in tokenizer(texts, add_special_tokens=False).input_ids]
        return Completions.join(rows, self._pad, self._device)
