"""What the engine that drew the completions computes differently from the trainer, and the correction for it.

Two engines give the same weights slightly different log-probabilities, so their samples are not quite the policy's. Each token's loss is
weighted by p_trainer / p_engine, cut off (`objective.importance`); a difference too large to be rounding is an error, for the weights, the
prompt or the settings are then not the same. It must not know engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from mr1_bench.trainers import objective

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class MismatchError(RuntimeError):
    """The engines differ by more than is allowed."""


class Mismatch:
    """The comparison over the parts of one batch.

    Attributes:
        weights: of each part's tokens, as far as `add` was called.
    """

    def __init__(self, engine: Sequence[Float[Tensor, "N T"]], cap: float) -> None:
        """Begin with what the engine drew with, part after part; `cap` bounds the weights."""
        self._engine, self._cap = engine, cap
        self.weights: list[Float[Tensor, "N T"]] = []
        self._sum = self._largest = self._capped = self._tokens = 0.0

    def add(self, trainer_NT: Float[Tensor, "N T"], mask_NT: Bool[Tensor, "N T"]) -> None:
        """Compare the next part with what the trainer gives the same tokens."""
        engine_NT = self._engine[len(self.weights)]
        weights = objective.importance(trainer_NT, engine_NT, self._cap)
        difference = (trainer_NT - engine_NT)[mask_NT].abs()
        self.weights.append(weights)
        self._sum += float(difference.sum())
        self._largest = float(torch.maximum(torch.tensor(self._largest), difference.max().cpu()))  # NaN stays NaN
        self._capped += int((weights[mask_NT] >= self._cap).sum())
        self._tokens += len(difference)

    def metrics(self) -> dict[str, float]:
        """Mean and largest difference of log-probabilities, nats, and the share of tokens whose weight was cut off."""
        mean = self._sum / self._tokens
        return {"mismatch": mean, "mismatch_max": self._largest, "importance_capped_share": self._capped / self._tokens}

    def check(self, limit: float) -> None:
        """Refuse a mean difference above the limit; 0: never.

        Raises:
            MismatchError: it is above.
        """
        mean = self._sum / self._tokens
        if limit and not mean <= limit:
            raise MismatchError(
                f"log-probabilities of trainer and vLLM differ by {mean:.3g} nats a token on average (at most {self._largest:.3g}), more "
                f"than --mismatch-limit {limit:g}: these are not the policy's own samples. Usual causes: a number type other than --dtype "
                "in vLLM, a server of another checkpoint or without --logprobs-mode processed_logprobs, quantised weights"
            )
