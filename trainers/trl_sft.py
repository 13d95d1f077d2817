"""TRL's SFTTrainer, made to compute our step: our targets, and the mean over the tokens of all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trl
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from mr1_bench.synth import hasty
from mr1_bench.trainers.config import SFTConfig
from mr1_bench.trainers.engine import stop_tokens
from mr1_bench.trainers.items import Item
from mr1_bench.trainers.sft import target_text
from mr1_bench.trainers.trl_trainers import Ours, limited

if TYPE_CHECKING:
    from torch import nn

    from mr1_bench.trainers.metrics import Row
    from mr1_bench.trainers.models import Loaded


class SFT(Ours, trl.SFTTrainer):
    """TRL's SFTTrainer on our targets: the loss is the mean over the tokens of all processes."""

    def __init__(self, config: SFTConfig, loaded: Loaded, *rest: Any) -> None:
        """Make the trainer."""
        self._hasty = hasty.parse_shares(config.hasty)
        self._collate = DataCollatorForVisionLanguageModeling(limited(loaded, config), completion_only_loss=True)
        super().__init__(config, loaded, *rest, data_collator=self._batch)

    def _batch(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        found = []
        for one in rows:
            item, text, image = self._read(one["row"])
            found.append({"prompt": text, "completion": self._target(item)[0], "images": [image]})
        return self._collate(found)

    def _target(self, item: Item) -> tuple[str, bool]:
        """What is to be learned after an item's prompt, and whether it had to be cut off."""
        tokenizer, limit = self._loaded.processor.tokenizer, self._config.max_new_tokens
        text = target_text(item, self._config.target, self._hasty)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        if len(ids) >= limit:
            return tokenizer.decode(ids[:limit]), True
        return text + tokenizer.convert_ids_to_tokens(stop_tokens(self._loaded)[0][0]), False

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """As TRL's; `num_items_in_batch` counts the target tokens of all processes."""
        self._tokens = int(num_items_in_batch)
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As TRL's; its entropy is a mean over this part's tokens, and the parts differ in their number."""
        self._make_head_whole(model)
        tokens = self.accelerator.reduce((inputs["labels"][:, 1:] != -100).sum(), "sum")
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self._sums[1] += self._metrics["train"]["entropy"][-1] * tokens
        return loss

    def _row(self, logs: dict[str, float]) -> Row:  # noqa: ARG002
        prompts, done = self._config.prompts_per_step, self._under_way
        cut = sum(self._target(self._read(row)[0])[1] for row in range((done - 1) * prompts, done * prompts))
        absent = ("reward", "accuracy", "format", "kl", "beta", "clip_share", "zero_spread_share")
        found = {"entropy": float(self._sums[1]) / self._tokens, "length": self._tokens / prompts, "cut_off_share": cut / prompts}
        return dict.fromkeys(absent) | found
