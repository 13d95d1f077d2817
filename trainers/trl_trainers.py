"""TRL's trainers, made to compute our step: our items in our order, our prompts, grader, loss (`objective`), β and learning rate.

Theirs are the loop, the rollout (`generate`, or vLLM), the passes through the model, and all that is distributed: DDP, FSDP2, DeepSpeed.
Files are the run's business (`trl_engine`); each process reports its steps to it through the `Crew`. All randomness is seeded by the step.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
import trl
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from datasets import Dataset
from PIL.Image import Image, Resampling
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback, TrainerCallback
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from trl.models import prepare_deepspeed, unwrap_model_for_generation
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from mr1_bench.grading import Score, grade
from mr1_bench.synth import hasty
from mr1_bench.trainers import objective
from mr1_bench.trainers.batches import Processing, limit_size
from mr1_bench.trainers.clock import Clock, seed_of
from mr1_bench.trainers.config import GRPOConfig, SFTConfig, TrainConfig
from mr1_bench.trainers.engine import make_engine, stop_tokens
from mr1_bench.trainers.evaluation import HeldOut, evaluate
from mr1_bench.trainers.grpo import Sample, kl_weight, reward
from mr1_bench.trainers.items import Item, batch_indices
from mr1_bench.trainers.mismatch import MismatchError
from mr1_bench.trainers.optimizer import NonFiniteError, learning_rate
from mr1_bench.trainers.schedule import adapt, beta_at
from mr1_bench.trainers.sft import target_text
from mr1_bench.trainers.trl_engine import Crew, arguments, sharding
from mr1_bench.trainers.trl_state import gather, scatter

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mr1_bench.trainers.loop import Sets
    from mr1_bench.trainers.metrics import Row
    from mr1_bench.trainers.models import Loaded
    from mr1_bench.trainers.trl_engine import TRLRun


def make(config: TrainConfig, loaded: Loaded, sets: Sets, crew: Crew, run: TRLRun | None, start: dict[str, Any]) -> GRPO | SFT:
    """The trainer of one process; `run` is given to the first one alone, and what the run has come to (`TRLRun.open`) to all."""
    kind = GRPO if isinstance(config, GRPOConfig) else SFT
    return kind(config, loaded, sets, crew, run, start)


class _Begin(TrainerCallback):
    """Calls back when TRL has made everything ready."""

    def __init__(self, begin: Any) -> None:
        self._begin = begin

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._begin()


class _Ours:
    """What the two trainers have in common; goes before TRL's class."""

    def __init__(
        self, config: TrainConfig, loaded: Loaded, sets: Sets, crew: Crew, run: TRLRun | None, start: dict[str, Any], **theirs: Any
    ) -> None:
        """Make TRL's trainer of our parts, for the steps that are left."""
        self._config, self._loaded, self._sets, self._crew, self._run = config, loaded, sets, crew, run
        self._updates = getattr(config, "inner_updates", 1)
        self._reading = Processing(loaded.processor, loaded.model, config)
        self._read = functools.lru_cache(maxsize=config.prompts_per_step)(self._read_row)
        self._clock: Clock | None = None
        self._sums = torch.zeros(3)
        self._norms: list[float] = []
        self._tokens = 0
        self._first: int = start["step"]
        self.adapted: float | None = start["adapted"]
        self.samples: list[Sample] = []
        rows = list(range(self._first * config.prompts_per_step, config.steps * config.prompts_per_step)) or [0]
        super().__init__(
            model=loaded.peft or loaded.model,
            args=arguments(config, loaded, crew, config.steps - self._first),
            train_dataset=Dataset.from_dict({"row": rows, "image": [None] * len(rows)}),
            processing_class=limited(loaded, config),
            callbacks=[_Begin(self._begin)],
            **theirs,
        )
        disable_dropout_in_model(loaded.model)
        if self.is_fsdp_enabled and config.dtype == "bfloat16":  # accelerate's own rounds log-probabilities and sums of gradients too
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        if self.is_deepspeed_enabled:  # it would take a step in bfloat16 whatever the gradients are
            self.accelerator.state.deepspeed_plugin.deepspeed_config.setdefault("bf16", {})["check_grad_overflow"] = True
        self.remove_callback(PrinterCallback)
        crew.actions |= {"answer": self._answer, "gather": self._gather}

    def go(self) -> None:
        """Train to the end, or to where the run is stopped."""
        if self._first == self._config.steps:
            return
        try:
            self.train()
        except (NonFiniteError, MismatchError) as error:  # the same in all processes
            intact = self.state.global_step % self._updates == 0
            self._crew.phase(functools.partial(self._run.failed, error, intact=intact) if self._run else bool)

    def _begin(self) -> None:
        """Go back to the saved step, where there is one, and evaluate the start, where there is none."""
        if self._first:
            scatter(self._trained(), self.optimizer, self._run.take_tensors() if self._run else {})
        self._crew.phase(lambda: self._run and self._run.begin())

    @property
    def _under_way(self) -> int:
        """The step under way, from 0: those that were taken before it, by this process or the one that was resumed."""
        return self._first + self.state.global_step // self._updates

    def _bare(self) -> nn.Module:
        """The model without what distributes it and without the wrapper of adapters."""
        return self._loaded.model if self._loaded.peft else self.accelerator.unwrap_model(self.model_wrapped)

    def _make_head_whole(self, model: nn.Module) -> None:
        """Before a pass: TRL's fused head reads the output layer past FSDP2's hooks, and its gradient would not be summed."""
        head = self.accelerator.unwrap_model(model).get_output_embeddings() if self.is_fsdp_enabled else None
        if isinstance(head, FSDPModule):
            head.unshard()

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, param) for name, param in self._bare().named_parameters() if param.requires_grad]

    def _send_telemetry(self) -> None:
        """Nobody is told that somebody trains."""

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay is for matrices."""
        return [name for name, param in model.named_parameters() if param.ndim >= 2]

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Compute a part of a step; before the first part, set what depends on the step."""
        step = self._under_way
        if self._clock is None:
            self._clock = Clock(self.accelerator.device)
            self._sums, self._norms = torch.zeros(3, device=self.accelerator.device), []
            torch.manual_seed(seed_of(self._config.seed, step, "rollout", self._crew.rank))
            self._prepare_step(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self._config, step)
        return super().training_step(*args, **kwargs)

    def _prepare_step(self, step: int) -> None:
        """Set what depends on the step in one method alone."""

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> float:
        found = super()._get_grad_norm(*args, **kwargs)
        norm = float(found.full_tensor() if isinstance(found, DTensor) else found)
        if not math.isfinite(norm):
            raise NonFiniteError(f"the gradient's norm is {norm}: the step was not taken, and the weights are those of the step before")
        self._norms.append(norm)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Report a step; TRL calls it after each."""
        super().log(logs, start_time)
        if "loss" not in logs or self._clock is None:  # its summary at the end
            return
        times, self._clock = self._clock.times(), None
        done = self._under_way
        row = {"step": done} | self._row(logs)
        row |= {"loss": logs["loss"], "grad_norm": sum(self._norms) / len(self._norms), "lr": learning_rate(self._config, done - 1)}
        row |= times | {"tokens_per_s": self._tokens / times["time_step"]}
        if self._crew.phase(lambda: self._run and self._run.took(row, self.samples, self.adapted)):
            self.control.should_training_stop = True

    @abstractmethod
    def _row(self, logs: dict[str, float]) -> Row:
        """What is written down of a step in one method alone: GRPO's and SFT's differ."""

    def _read_row(self, row: int) -> tuple[Item, str, Image]:
        """The item of a place in the run's whole order, its templated prompt, and its picture; one that is too long is refused."""
        step, place = divmod(row, self._config.prompts_per_step)
        indices = batch_indices(len(self._sets.train), self._config.prompts_per_step, self._config.seed, step)
        item = self._sets.train[indices[place]]
        return item, self._reading([item]).parts[0].texts[0], self._fitted(item.image)

    def _fitted(self, picture: Image) -> Image:
        """The picture; where vLLM, which knows no --max-pixels, is to see it too, already of the size that the processor makes."""
        if not getattr(self.args, "use_vllm", False):
            return picture
        shape = self._loaded.processor.image_processor
        side, sizes = shape.patch_size * shape.merge_size, limit_size(shape, self._config.max_pixels)
        height, width = smart_resize(picture.height, picture.width, side, sizes["shortest_edge"], sizes["longest_edge"])
        return picture.resize((width, height), Resampling.BICUBIC)

    def _answer(self, split: str) -> HeldOut:
        """Answer this process's share of held-out items; gives the scores of all."""
        items = getattr(self._sets, split)
        rank, size, config = self._crew.rank, self._crew.size, self._config
        share = [items[place % len(items)] for place in range(rank, -(-len(items) // size) * size, size)]  # all compute the same number
        extra = share[-1] if rank >= (len(items) - 1) % size + 1 else None
        plain = sharding(self.accelerator.state) == "all" or config.dtype != "float32"  # only the model's own passes know these
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator):
            model = self._bare().eval()
            engine = make_engine(self._loaded, model, rollout="plain" if plain else "auto", recompute=config.gradient_checkpointing)
            found = evaluate(self._loaded, engine, self._reading, share, config.max_new_tokens)
            model.train()
        scores = [score for item, score in zip(found.items, found.scores, strict=True) if item is not extra]
        return HeldOut((), (), tuple(itertools.chain.from_iterable(self._crew.everyone(scores))))

    def _gather(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """All weights, and the optimiser's state, for the first process to save."""
        trained = self._trained()
        kept = {id(param) for _, param in trained}
        frozen = [(name, param) for name, param in self._bare().named_parameters() if id(param) not in kept]
        tensors = gather(trained, self.optimizer, keep=self._crew.leads)
        weights = tensors | gather(frozen, self.optimizer, keep=self._crew.leads)
        return {key.removeprefix("param/"): value for key, value in weights.items() if key.startswith("param/")}, tensors


class GRPO(_Ours, trl.GRPOTrainer):
    """TRL's GRPOTrainer with our reward, loss and β."""

    def __init__(self, config: GRPOConfig, loaded: Loaded, *rest: Any) -> None:
        """Make the trainer, and the reference from the weights as they are in memory."""
        self._weight = kl_weight(config)
        self._graded: list[tuple[Item, str, Score, float]] = []
        start = copy.deepcopy(loaded.model).requires_grad_(False) if config.beta_max > 0 and loaded.peft is None else None
        super().__init__(config, loaded, *rest, reward_funcs=self._reward)
        self.eos_token_ids = list(stop_tokens(loaded)[0])  # it had added the tokenizer's own
        if start is not None:
            self.ref_model = self._prepare_reference(start.to(getattr(torch, config.dtype)))

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
        found, broken = None, False
        with self._clock("rollout"):
            try:
                found = super()._generate_single_turn(prompt_ids, *args, **kwargs)
            except RuntimeError as error:
                broken = "probability tensor" in str(error)
                if not broken:
                    raise
        if any(self._crew.everyone(broken)):
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


class SFT(_Ours, trl.SFTTrainer):
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


def limited(loaded: Loaded, config: TrainConfig) -> Any:
    """The model's processor as TRL is to call it: pictures of at most `max_pixels`, padding on the left."""
    processor = copy.deepcopy(loaded.processor)
    processor.image_processor.size = limit_size(processor.image_processor, config.max_pixels)
    processor.tokenizer.padding_side = "left"
    return processor
