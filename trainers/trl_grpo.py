"""TRL's GRPOTrainer, made to compute our step: our reward, loss (`objective`), reference and β."""

from __future__ import annotations

import copy
import functools
import math
from typing import TYPE_CHECKING, Any

import torch
import trl
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from transformers import LogitsProcessor
from trl.models import prepare_deepspeed
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from mr1_bench.grading import Score, grade
from mr1_bench.trainers import objective
from mr1_bench.trainers.config import GRPOConfig
from mr1_bench.trainers.engine import stop_tokens
from mr1_bench.trainers.grpo import Sample, kl_weight, reward
from mr1_bench.trainers.items import Item
from mr1_bench.trainers.mismatch import MismatchError
from mr1_bench.trainers.optimizer import NonFiniteError
from mr1_bench.trainers.schedule import adapt, beta_at
from mr1_bench.trainers.trl_trainers import Ours

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mr1_bench.trainers.metrics import Row
    from mr1_bench.trainers.models import Loaded


class _Watch(LogitsProcessor):
    """Notes logits that are no numbers and goes on with others: sampling from them ends a GPU's process, and others wait for it."""

    seen: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        broken = (scores.isnan() | scores.isposinf()).any()
        self.seen = broken if self.seen is None else self.seen | broken
        return scores.nan_to_num(0.0, neginf=-math.inf)


def _frozen(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy that is not trained, of parameters in `dtype`; rotary frequencies and other buffers keep theirs."""
    cast = {id(param): torch.nn.Parameter(param.detach().to(dtype, copy=True), requires_grad=False) for param in model.parameters()}
    return copy.deepcopy(model, cast)


class GRPO(Ours, trl.GRPOTrainer):
    """TRL's GRPOTrainer with our reward, loss and β."""

    def __init__(self, config: GRPOConfig, loaded: Loaded, *rest: Any) -> None:
        """Make the trainer, and the reference from the weights as they are in memory."""
        self._weight = kl_weight(config)
        self._graded: list[tuple[Item, str, Score, float]] = []
        start = _frozen(loaded.model, getattr(torch, config.dtype)) if config.beta_max > 0 and loaded.peft is None else None
        self._watch = _Watch()
        loaded.model.generate = functools.partial(loaded.model.generate, logits_processor=[self._watch])
        super().__init__(config, loaded, *rest, reward_funcs=self._reward)
        self.eos_token_ids = list(stop_tokens(loaded)[0])  # it had added the tokenizer's own
        if start is not None:
            self.ref_model = self._prepare_reference(start)

    def _prepare_reference(self, model: nn.Module) -> nn.Module:
        """As TRL does with the one that it loads."""
        disable_dropout_in_model(model)
        add_fused_lm_head(model, temperature=self.temperature)
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(model, self.accelerator)
        if self.is_fsdp_enabled:
            return fsdp2_prepare_model(self.accelerator, model).eval()
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    def _prepare_step(self, step: int) -> None:
        self.beta = beta_at(self._weight, step, self.adapted)

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        """As TRL's. Its colocated vLLM takes the first of a picture's tokens for all of them and adds the others: it is given one."""
        if self.use_vllm and self.vllm_mode == "colocate":
            picture = self._loaded.model.config.image_token_id
            prompt_ids = [[one for last, one in zip([None, *ids], ids, strict=False) if not one == last == picture] for ids in prompt_ids]
        self._watch.seen = None
        with self._clock("rollout"):
            found = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        if any(self._crew.everyone(self._watch.seen is not None and bool(self._watch.seen))):
            raise NonFiniteError("the model's probabilities are no numbers any more")
        return found

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's, of our prompts: the text with the picture before it, as `Processing` templates it."""
        read = [self._read(one["row"]) for one in inputs]
        prompts = [
            {"row": one["row"], "prompt": [{"role": "user", "content": item.prompt}], "image": image}
            for one, (item, _, image) in zip(inputs, read, strict=True)
        ]
        found = super()._generate_and_score_completions(prompts)
        earned = found["advantages"].tolist()
        self.samples = [Sample(*graded, advantage) for graded, advantage in zip(self._graded, earned, strict=True)]
        self._tokens = int(found["num_items_in_batch"])
        apart, limit = self._metrics["train"].get("sampling/sampling_logp_difference/mean"), self._config.mismatch_limit
        if apart and limit and not apart[-1] <= limit:
            raise MismatchError(f"log-probabilities of trainer and vLLM differ by {apart[-1]:.3g} nats a token, more than {limit:g}")
        return found

    def _reward(self, completion_ids: list[list[int]], row: list[int], log_metric: Any, **_: Any) -> list[float]:
        with self._clock("reward"):
            texts = [text.strip() for text in self._loaded.processor.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)]
            items = [self._read(one)[0] for one in row]
            scores = [grade(item.spec, item.gold, text) for item, text in zip(items, texts, strict=True)]
            rewards = [reward(score, self._config.format_weight) for score in scores]
        self._graded = list(zip(items, texts, scores, rewards, strict=True))
        log_metric("accuracy", sum(score.correct for score in scores) / len(scores))
        log_metric("format", sum(score.format_ok for score in scores) / len(scores))
        return rewards

    def _get_per_token_logps_and_entropies(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self._make_head_whole(model)
        return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """The compact trainer's loss of this process's part of the batch, so that the mean over processes is that of the whole."""
        config = self._config
        mask, extra = inputs["completion_mask"], ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
        logprobs, entropies, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
            torch.cat([inputs["prompt_mask"], mask], 1),
            mask.shape[1],
            compute_entropy=True,
            **{name: inputs[name] for name in extra if name in inputs},
        )
        old = inputs.get("old_per_token_logps")
        loss, clipped = objective.surrogate(logprobs, logprobs.detach() if old is None else old, inputs["advantages"], config.clip)
        if "importance_sampling_ratio" in inputs:
            loss = loss * inputs["importance_sampling_ratio"]
        kl = torch.zeros_like(logprobs)
        if self.beta > 0:
            kl = objective.kl_estimate(logprobs, inputs["ref_per_token_logps"], config.kl_estimator)
            loss = loss + self.beta * kl
        samples, tokens = config.prompts_per_step * config.num_generations, int(inputs["num_items_in_batch"])
        loss = (loss * objective.weights(mask, config.loss_mean, samples=samples, tokens=tokens)).sum()
        with torch.no_grad():
            self._sums += torch.stack([(one * mask).sum() for one in (kl.detach(), entropies, clipped)])
        return loss * self._crew.size

    def _row(self, logs: dict[str, float]) -> Row:
        config = self._config
        kl, entropy, clipped = (self.accelerator.reduce(self._sums, "sum") / (self._tokens * self._updates)).tolist()
        row = {
            "reward": logs["reward"],
            "accuracy": logs["accuracy"],
            "format": logs["format"],
            "kl": kl if self.beta > 0 else None,
            "beta": self.beta,
            "entropy": entropy,
            "length": self._tokens / (config.prompts_per_step * config.num_generations),
            "clip_share": clipped,
            "zero_spread_share": logs["frac_reward_zero_std"],
            "cut_off_share": logs["completions/clipped_ratio"],
        }
        if config.kl_schedule == "adaptive":
            self.adapted = adapt(self._weight, self.beta, kl)
        theirs = {"mismatch": "sampling/sampling_logp_difference/mean", "mismatch_max": "sampling/sampling_logp_difference/max"}
        return row | {ours: logs[name] for ours, name in theirs.items() if name in logs}
