"""AdamW on float32 weights, whatever precision the model computes in, and the course of the learning rate.

With bfloat16 parameters the optimiser keeps a float32 master copy of each and adds up the gradients of a step's parts in float32, since
small updates and small summands would vanish in 8 bits of mantissa; within a part autograd adds in bfloat16. All its state is named by
parameter, so that it can be saved and restored bitwise. It must not know losses, files or the meaning of a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from mr1_bench.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mr1_bench.trainers.config import TrainConfig

_EPSILON = 1e-8  # AdamW's usual guard against division by zero
_MASTER, _MEAN, _SQUARE, _COUNT = "param", "exp_avg", "exp_avg_sq", "step"


class NonFiniteError(UserError):
    """The gradient is infinite or not a number; the weights were not touched."""


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of a step (from 0): a linear rise over `warmup_steps`, then constant, linear or cosine down towards 0 at `steps`.

    No step has rate 0: step 0 of a warm-up of W steps has 1 / (W + 1) of the peak, and the last step is the one before 0 would be reached.
    """
    warmup = config.warmup_steps
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    left = max(config.steps - step, 0) / max(config.steps - warmup, 1)
    if config.lr_schedule == "linear":
        return config.lr * left
    if config.lr_schedule == "cosine":
        return config.lr * (1 - math.cos(math.pi * left)) / 2
    return config.lr


class Optimizer:
    """AdamW over the parameters of a model that require a gradient; weight decay on matrices only (two or more dimensions)."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        """Take a model whose parameters are on their device, in their precision, with `requires_grad` set.

        Raises:
            UserError: no parameter requires a gradient.
        """
        self._params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        if not self._params:
            raise UserError("nothing to train: every parameter of the model is frozen; check --freeze-vision and --lora-rank")
        self._masters = {name: _master(param) for name, param in self._params.items()}
        self._max_norm = config.max_grad_norm
        decayed = [master for master in self._masters.values() if master.ndim >= 2]
        others = [master for master in self._masters.values() if master.ndim < 2]
        self._adam = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.lr,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=_EPSILON,
            fused=True,
        )

    def step(self, lr: float) -> float:
        """Scale the gradients down to `max_grad_norm` (0: leave them), update the weights, and drop the gradients.

        Args:
            lr: learning rate of this step.

        Returns:
            Norm of the whole gradient before it was scaled.

        Raises:
            NonFiniteError: that norm is infinite or not a number. No weight or moment has changed.
        """
        gradients = [master.grad for master in self._masters.values() if master.grad is not None]
        total = get_total_norm(gradients)
        norm = float(total)
        if not math.isfinite(norm):
            raise NonFiniteError(
                f"the gradient's norm is {norm}: the step was not taken, and the weights are those of the step before. "
                "Usual causes: a learning rate that is too high, a KL weight near 0 for long, or too little precision (--dtype float32)"
            )
        if self._max_norm > 0:
            clip_grads_with_norm_(self._masters.values(), self._max_norm, total)
        for group in self._adam.param_groups:
            group["lr"] = lr
        self._adam.step()
        self.zero_grad()
        self._publish()
        return norm

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for name, param in self._params.items():
            param.grad = self._masters[name].grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The whole state by name: `param/NAME` in float32 and, once it was updated, `exp_avg/NAME`, `exp_avg_sq/NAME` and `step/NAME`.

        They are the tensors themselves, not copies: write them before the next step.
        """
        found = {f"{_MASTER}/{name}": master.detach() for name, master in self._masters.items()}
        for name, master in self._masters.items():
            found |= {f"{key}/{name}": value for key, value in self._adam.state.get(master, {}).items()}
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore, bitwise, what `tensors` gave: the optimiser's state and the model's parameters.

        Raises:
            UserError: the tensors belong to other parameters.
        """
        self._check(tensors)
        with torch.no_grad():
            for name, master in self._masters.items():
                master.copy_(tensors[f"{_MASTER}/{name}"])
                self._adam.state.pop(master, None)
                if f"{_COUNT}/{name}" in tensors:
                    moments = {key: torch.empty_like(master).copy_(tensors[f"{key}/{name}"]) for key in (_MEAN, _SQUARE)}
                    count = tensors[f"{_COUNT}/{name}"].to(master.device, copy=True)  # the fused update wants it beside the weights
                    self._adam.state[master] = {_COUNT: count, **moments}
        self.zero_grad()
        self._publish()

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        here = {f"{_MASTER}/{name}" for name in self._masters}
        there = {name for name in tensors if name.startswith(f"{_MASTER}/")}
        if here != there:
            name = min(here ^ there)
            side = "saved one" if name in there else "model"
            raise UserError(f"the saved optimiser state is of another model: only the {side} trains {name.partition('/')[2]}")
        for name, master in self._masters.items():
            for key in (_MASTER, _MEAN, _SQUARE):
                saved = tensors.get(f"{key}/{name}", master)
                if saved.shape != master.shape or saved.dtype != master.dtype:
                    raise UserError(
                        f"the saved optimiser state is of another model: {key} of {name} is {saved.dtype} {tuple(saved.shape)}, "
                        f"here {master.dtype} {tuple(master.shape)}"
                    )

    def _publish(self) -> None:
        """Round the masters into the parameters of lower precision."""
        with torch.no_grad():
            for name, param in self._params.items():
                if param is not self._masters[name]:
                    param.copy_(self._masters[name])


def _master(param: nn.Parameter) -> Tensor:
    """The float32 weight that is updated: the parameter itself, or a copy that its gradients are moved to as they come."""
    if param.dtype == torch.float32:
        return param
    master = param.detach().float()

    def move_gradient(source: Tensor) -> None:
        if source.grad is not None:
            master.grad = source.grad.float() if master.grad is None else master.grad.add_(source.grad)
            source.grad = None

    param.register_post_accumulate_grad_hook(move_gradient)
    return master
