"""What TRL's trainers have in common as we use them: our items in our order, our prompts, learning rate, held-out items and weights.

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
from datasets import Dataset
from PIL.Image import Image, Resampling
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback, TrainerCallback
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import disable_dropout_in_model

from mr1_bench.trainers.batches import Processing, limit_size
from mr1_bench.trainers.clock import Clock, seed_of
from mr1_bench.trainers.config import TrainConfig
from mr1_bench.trainers.engine import make_engine
from mr1_bench.trainers.evaluation import HeldOut, evaluate
from mr1_bench.trainers.grpo import Sample
from mr1_bench.trainers.items import Item, batch_indices
from mr1_bench.trainers.mismatch import MismatchError
from mr1_bench.trainers.optimizer import NonFiniteError, learning_rate
from mr1_bench.trainers.trl_engine import arguments, sharding
from mr1_bench.trainers.trl_state import gather, scatter

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mr1_bench.trainers.loop import Sets
    from mr1_bench.trainers.metrics import Row
    from mr1_bench.trainers.models import Loaded
    from mr1_bench.trainers.trl_crew import Crew
    from mr1_bench.trainers.trl_engine import TRLRun


class _Begin(TrainerCallback):
    """Calls back when TRL has made everything ready."""

    def __init__(self, begin: Any) -> None:
        self._begin = begin

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._begin()


class Ours:
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

    def _divide(self) -> None:
        """After passes without gradients: FSDP2 keeps the output layer whole then, as tensors that neither optimiser nor TRL knows."""
        for module in self._bare().modules():
            if isinstance(module, FSDPModule):
                module.reshard()

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
        self._divide()
        scores = [score for item, score in zip(found.items, found.scores, strict=True) if item is not extra]
        return HeldOut((), (), tuple(itertools.chain.from_iterable(self._crew.everyone(scores))))

    def _gather(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """All weights, and the optimiser's state, for the first process to save."""
        self._divide()
        trained = self._trained()
        kept = {id(param) for _, param in trained}
        frozen = [(name, param) for name, param in self._bare().named_parameters() if id(param) not in kept]
        tensors = gather(trained, self.optimizer, keep=self._crew.leads)
        weights = tensors | gather(frozen, self.optimizer, keep=self._crew.leads)
        return {key.removeprefix("param/"): value for key, value in weights.items() if key.startswith("param/")}, tensors


def limited(loaded: Loaded, config: TrainConfig) -> Any:
    """The model's processor as TRL is to call it: pictures of at most `max_pixels`, padding on the left."""
    processor = copy.deepcopy(loaded.processor)
    processor.image_processor.size = limit_size(processor.image_processor, config.max_pixels)
    processor.tokenizer.padding_side = "left"
    return processor
