"""TRL's GRPOTrainer as the peer of a measurement: our weights, prompts, loss, batch, lengths and precision; nothing of it is replaced.

Its own training loop runs; a callback notes the time from the start to the end of each step, which holds its processing, rollout, reward,
reference and policy passes, backward and optimiser, and gives the floor to the other side between two steps. It must not know our trainer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor
    from trl import GRPOTrainer

    from mr1_bench.trainers.config import GRPOConfig
    from mr1_bench.trainers.items import Item

Reward = Callable[["Item", str], float]


def build_trainer(
    model: Qwen2VLForConditionalGeneration,
    checkpoint: Path,
    processor: Qwen2VLProcessor,
    items: Sequence[Item],
    reward: Reward,
    config: GRPOConfig,
) -> GRPOTrainer:
    """Make TRL's trainer for the settings of ours.

    Args:
        model: the policy; TRL trains it in place. Its generation config names the end token.
        checkpoint: the same weights on disk, from which TRL loads its reference.
        processor: of the model.
        items: `prompts_per_step` for each step, in order.
        reward: earned by a completion to an item.
        config: our settings.
    """
    import datasets
    from transformers import PrinterCallback
    from trl import GRPOConfig as PeerConfig
    from trl import GRPOTrainer

    on_cpu = next(model.parameters()).device.type == "cpu"
    end = model.generation_config.eos_token_id
    rows = [{"prompt": [{"role": "user", "content": item.prompt}], "image": item.image, "index": index} for index, item in enumerate(items)]

    def reward_function(completions: list[Any], completion_ids: list[list[int]], index: list[int], **_: Any) -> list[float]:
        if any(len(ids) != config.max_new_tokens for ids in completion_ids):
            raise SystemExit("TRL's completions do not all have the fixed length: the sides did not do the same work")
        texts = [one[0]["content"].strip() for one in completions]
        return [reward(items[row], text) for row, text in zip(index, texts, strict=True)]

    model.config._name_or_path = str(checkpoint)
    trainer = GRPOTrainer(
        model=model,
        args=PeerConfig(
            output_dir=str(checkpoint.parent / "trl"),
            per_device_train_batch_size=config.prompts_per_step * config.num_generations,
            num_generations=config.num_generations,
            max_completion_length=config.max_new_tokens,
            max_steps=config.steps,
            # the loss, as ours
            beta=config.beta_max,
            loss_type="grpo",
            use_bias_correction_kl=False,
            epsilon=config.clip,
            scale_rewards="group",
            temperature=config.temperature,
            num_iterations=config.inner_updates,
            # the optimiser, as ours
            learning_rate=config.lr,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            gradient_checkpointing=config.gradient_checkpointing,
            bf16=config.dtype == "bfloat16",
            generation_kwargs={"eos_token_id": end},
            shuffle_dataset=False,
            use_cpu=on_cpu,
            dataloader_pin_memory=not on_cpu,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        reward_funcs=reward_function,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=processor,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.eos_token_ids = end  # it had added the tokenizer's own, at which it would cut completions off
    return trainer


def run(trainer: GRPOTrainer, between: Callable[[int], None]) -> list[float]:
    """Train, and call `between(step)` after each step, outside the time taken; seconds of each step."""
    from transformers import TrainerCallback

    cuda = next(trainer.model.parameters()).is_cuda
    seconds: list[float] = []

    class Stopwatch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - self.start)
            between(len(seconds) - 1)

    trainer.add_callback(Stopwatch())
    trainer.train()
    return seconds
