"""GRPO, and GRPO-D: GRPO whose KL weight β changes during training (OThink-MR1, arXiv 2503.16081).

One step, in the paper's order: sample G completions for each of P prompts; reward each by the evaluation's own Score; compare each with
its group; and take μ gradient steps on the clipped surrogate, with a KL leash to the frozen start that is weighted by β(s). With a
constant schedule this is GRPO. The mathematics is in `objective` and `schedule`, the passes through the model in `engine`. This file must
not know run folders or the command line.

Sizes in names: P prompts, G samples a prompt, N = P*G, T tokens of the longest completion. A batch is computed in one or more parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mr1_bench.grading import Score, grade
from mr1_bench.trainers import models, objective
from mr1_bench.trainers.clock import Clock, seeded
from mr1_bench.trainers.engine import Engine, make_engine, read_texts, stop_tokens
from mr1_bench.trainers.mismatch import Mismatch
from mr1_bench.trainers.optimizer import NonFiniteError
from mr1_bench.trainers.schedule import KLWeight, adapt, beta_at

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

    from mr1_bench.trainers.batches import Batch
    from mr1_bench.trainers.config import GRPOConfig
    from mr1_bench.trainers.items import Item
    from mr1_bench.trainers.models import Loaded
    from mr1_bench.trainers.optimizer import Optimizer
    from mr1_bench.trainers.prefix import Completions
    from mr1_bench.trainers.vllm_rollout import Sampler

Reference = Callable[[], AbstractContextManager["nn.Module"]]
"""Gives the frozen start of the policy for the length of a `with` block."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion of a training step and its verdict."""

    item: Item
    text: str
    score: Score
    reward: float
    advantage: float


@dataclass(frozen=True, slots=True)
class Rollout:
    """P*G completions and what they earned; completions and states lie in the batch's parts, samples run through all of them.

    `engine` has the log-probabilities of another engine that drew them, None where the policy did, and `states` is empty then.
    """

    completions: list[Completions]
    states: list[Any]
    engine: list[Float[Tensor, "N T"]] | None
    texts: list[str]
    scores: list[Score]
    rewards_PG: Float[Tensor, "P G"]
    advantages_PG: Float[Tensor, "P G"]

    @property
    def tokens(self) -> int:
        """Tokens of all completions."""
        return sum(int(drawn.mask.sum()) for drawn in self.completions)


def kl_weight(config: GRPOConfig) -> KLWeight:
    """The schedule of β that a configuration asks for."""
    horizon = max(1, round(config.steps * config.kl_horizon))
    return KLWeight(config.kl_schedule, config.beta_min, config.beta_max, horizon, config.kl_target)


def reward(score: Score, format_weight: float) -> float:
    """Accuracy + w * format (OThink-MR1, section 3), from the Score that evaluation gives."""
    return float(score.correct) + format_weight * float(score.format_ok)


class GRPO:
    """The training step. Between steps it keeps only the β that an adaptive schedule has reached."""

    def __init__(
        self, loaded: Loaded, config: GRPOConfig, optimizer: Optimizer, reference: Reference | None, sampler: Sampler | None = None
    ) -> None:
        """Prepare the engines.

        Args:
            loaded: the policy and its processor.
            config: the settings.
            optimizer: moves the policy's weights.
            reference: gives the frozen start; None only where β is always 0.
            sampler: draws the completions in place of the policy.
        """
        self._loaded, self._config, self._optimizer = loaded, config, optimizer
        self._reference, self._sampler = reference, sampler
        self._policy = self._engine(loaded.model)
        self._device = next(loaded.model.parameters()).device
        self._weight = kl_weight(config)
        self.adapted: float | None = None
        self.moved = False  # whether the step under way has changed the weights

    def step(self, step: int, batch: Batch, learning_rate: float) -> tuple[dict[str, Any], list[Sample]]:
        """Take one step.

        Args:
            step: its number, from 0; it decides β and seeds the sampling.
            batch: P prompts.
            learning_rate: of this step.

        Returns:
            Metrics of the step, and its N samples.

        Raises:
            NonFiniteError: the loss or the gradient is NaN or infinite; that update has not touched the weights.
            MismatchError: the engine that drew the completions is not the policy; the weights have not been touched.
        """
        self.moved = False
        clock = Clock(self._device)
        beta = beta_at(self._weight, step, self.adapted)
        if self._sampler is not None:
            with clock("push"):
                self._sampler.push(models.weights(self._loaded))
        with clock("rollout"):
            completions, states, engine = self._sample(step, batch)
        with clock("reward"):
            rollout = self._grade(batch, completions, states, engine)
        with clock("reference"):
            references = self._reference_logprobs(batch, completions) if beta > 0 else None
        means = self._update(batch, rollout, references, beta, learning_rate, clock)
        if self._weight.schedule == "adaptive":
            self.adapted = adapt(self._weight, beta, means["kl"])
        row: dict[str, Any] = self._metrics(rollout) | {"kl": None, "beta": beta, "lr": learning_rate} | means | clock.times()
        row["tokens_per_s"] = rollout.tokens / row["time_step"]
        return row, self._samples(batch, rollout)

    def _sample(self, step: int, batch: Batch) -> tuple[list[Completions], list[Any], list[Float[Tensor, "N T"]] | None]:
        """Sample G completions after each prompt.

        The weights do not change before the first update. So a batch of one part keeps the gradient graph of this prompt pass for it.
        """
        config = self._config
        if self._sampler is not None:
            drawn = self._sampler.sample(batch.parts, step)
            return [one.completions for one in drawn], [], [one.logprobs for one in drawn]
        generator = seeded(self._device, config.seed, step, "rollout")
        with torch.set_grad_enabled(len(batch.parts) == 1):
            states = [self._policy.encode(part) for part in batch.parts]
        limits: dict[str, Any] = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature}
        return [self._policy.sample(state, config.num_generations, **limits, generator=generator) for state in states], states, None

    def _grade(self, batch: Batch, completions: list[Completions], states: list[Any], engine: list[Float[Tensor, "N T"]] | None) -> Rollout:
        """Reward each completion, and compare it with its group."""
        config = self._config
        texts = [text for drawn in completions for text in read_texts(self._loaded.processor, drawn)]
        items = _repeat(batch.items, config.num_generations)
        scores = [grade(item.spec, item.gold, text) for item, text in zip(items, texts, strict=True)]
        rewards_PG = torch.tensor([reward(score, config.format_weight) for score in scores]).view(-1, config.num_generations)
        advantages_PG = objective.advantages(rewards_PG, scaled=config.scale_advantages)
        return Rollout(completions, states, engine, texts, scores, rewards_PG, advantages_PG)

    @torch.no_grad()
    def _reference_logprobs(self, batch: Batch, completions: list[Completions]) -> list[Float[Tensor, "N T"]]:
        """Log-probabilities under the frozen start."""
        assert self._reference is not None
        with self._reference() as model:
            engine = self._engine(model)
            return [
                engine.logprobs(engine.encode(part), drawn, temperature=self._config.temperature)[0]
                for part, drawn in zip(batch.parts, completions, strict=True)
            ]

    def _update(
        self,
        batch: Batch,
        rollout: Rollout,
        references: list[Float[Tensor, "N T"]] | None,
        beta: float,
        learning_rate: float,
        clock: Clock,
    ) -> dict[str, float]:
        """Take μ gradient steps; gives the means over tokens and updates."""
        config = self._config
        samples, tokens = len(rollout.texts), rollout.tokens
        advantages = rollout.advantages_PG.flatten().to(self._device).split([len(drawn.ids) for drawn in rollout.completions])
        old: list[Float[Tensor, "N T"]] = []
        mismatch = Mismatch(rollout.engine, config.importance_cap) if rollout.engine else None
        sums = dict.fromkeys(("loss", "grad_norm", "entropy", "clip_share") + (("kl",) if references else ()), 0.0)
        for update in range(config.inner_updates):
            for index, (part, drawn) in enumerate(zip(batch.parts, rollout.completions, strict=True)):
                with clock("policy"):
                    reuse = update == 0 and len(rollout.states) == 1
                    state = rollout.states[index] if reuse else self._policy.encode(part)
                    logprobs, entropies = self._policy.logprobs(state, drawn, temperature=config.temperature)
                    if update == 0:
                        old.append(logprobs.detach())
                        if mismatch:
                            mismatch.add(old[index], drawn.mask)
                    loss_NT, clipped = objective.surrogate(logprobs, old[index], advantages[index], config.clip)
                    if mismatch:
                        loss_NT = loss_NT * mismatch.weights[index]
                    sums["entropy"] += _total(entropies, drawn) / tokens
                    sums["clip_share"] += _total(clipped, drawn) / tokens
                    if references:
                        kl_NT = objective.kl_estimate(logprobs, references[index], config.kl_estimator)
                        loss_NT = loss_NT + beta * kl_NT
                        sums["kl"] += _total(kl_NT.detach(), drawn) / tokens
                    loss = (loss_NT * objective.weights(drawn.mask, config.loss_mean, samples=samples, tokens=tokens)).sum()
                    if not math.isfinite(loss.item()):
                        raise NonFiniteError(f"the loss is {loss.item()}")
                    sums["loss"] += loss.item()
                with clock("backward"):
                    loss.backward()
            rollout.states.clear()
            if mismatch and update == 0:
                mismatch.check(config.mismatch_limit)
            with clock("optimizer"):
                sums["grad_norm"] += self._optimizer.step(learning_rate)
            self.moved = True
        return {name: value / config.inner_updates for name, value in sums.items()} | (mismatch.metrics() if mismatch else {})

    def _metrics(self, rollout: Rollout) -> dict[str, float]:
        limit, (stop, _) = self._config.max_new_tokens, stop_tokens(self._loaded)
        samples = len(rollout.texts)
        same = rollout.rewards_PG.amax(1) == rollout.rewards_PG.amin(1)
        return {
            "reward": rollout.rewards_PG.mean().item(),
            "accuracy": sum(score.correct for score in rollout.scores) / samples,
            "format": sum(score.format_ok for score in rollout.scores) / samples,
            "length": rollout.tokens / samples,
            "zero_spread_share": same.float().mean().item(),
            "cut_off_share": sum(drawn.cut_off(limit, stop) for drawn in rollout.completions) / samples,
        }

    def _samples(self, batch: Batch, rollout: Rollout) -> list[Sample]:
        items = _repeat(batch.items, self._config.num_generations)
        earned = (rollout.rewards_PG.flatten().tolist(), rollout.advantages_PG.flatten().tolist())
        return [Sample(*row) for row in zip(items, rollout.texts, rollout.scores, *earned, strict=True)]

    def _engine(self, model: nn.Module) -> Engine:
        return make_engine(self._loaded, model, rollout=self._config.rollout, recompute=self._config.gradient_checkpointing)


def _repeat(items: Sequence[Item], group: int) -> list[Item]:
    return [item for item in items for _ in range(group)]


def _total(values: Tensor, drawn: Completions) -> float:
    return float((values * drawn.mask).sum())
