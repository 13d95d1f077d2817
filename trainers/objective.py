"""The mathematics of GRPO as pure functions on tensors: advantage, KL estimate, loss. Each formula names its source.

P prompts, G samples a prompt, N = P*G samples, T tokens of the longest completion. Log-probabilities and KL are in nats. It must not know
models, prompts or files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mr1_bench.trainers.config import Aggregation, KLEstimator

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


_SPREAD_FLOOR = 1e-4  # keeps the division finite in a group without spread; R1-V's and TRL's value


def advantages(rewards_PG: Float[Tensor, "P G"], *, scaled: bool = True) -> Float[Tensor, "P G"]:
    """Group-relative advantages: reward minus the group's mean, divided by its sample standard deviation if `scaled`.

    Source: DeepSeekMath (arXiv 2402.03300), section 4.1.2. Unscaled: Dr. GRPO (arXiv 2503.20783).
    """
    centred = rewards_PG - rewards_PG.mean(1, keepdim=True)
    return centred / (rewards_PG.std(1, keepdim=True) + _SPREAD_FLOOR) if scaled else centred


def kl_estimate(logprobs_NT: Float[Tensor, "N T"], reference_NT: Float[Tensor, "N T"], kind: KLEstimator = "k3") -> Float[Tensor, "N T"]:
    """Estimate KL(policy || reference) at each token that the policy drew.

    With x = log p_reference − log p_policy: k1 = −x, k2 = x²/2, k3 = e^x − x − 1. Source: J. Schulman, "Approximating KL divergence"
    (2020); k3 is GRPO's (DeepSeekMath, equation 4).
    """
    x = reference_NT - logprobs_NT
    if kind == "k1":
        return -x
    if kind == "k2":
        return x.square() / 2
    return x.exp() - x - 1


def surrogate(
    logprobs_NT: Float[Tensor, "N T"], old_NT: Float[Tensor, "N T"], advantages_N: Float[Tensor, " N"], clip: float
) -> tuple[Float[Tensor, "N T"], Bool[Tensor, "N T"]]:
    """Clipped surrogate, negated: −min(r·A, clip(r, 1−ε, 1+ε)·A) with r = p/p_old. Source: PPO (arXiv 1707.06347), equation 7.

    Returns:
        The loss of each token, before the mean, and whether the clip held it.
    """
    ratio = (logprobs_NT - old_NT).exp()
    advantage = advantages_N[:, None]
    free, held = ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage
    return -torch.minimum(free, held), held < free


def importance(trainer_NT: Float[Tensor, "N T"], engine_NT: Float[Tensor, "N T"], cap: float) -> Float[Tensor, "N T"]:
    """Truncated importance weights: min(p_trainer / p_engine, cap) at each token that another engine drew with the same weights.

    Source: F. Yao and others, "Your efficient RL framework secretly brings you off-policy RL training" (2025).
    """
    return (trainer_NT - engine_NT).exp().clamp(max=cap)


def weights(mask_NT: Bool[Tensor, "N T"], aggregation: Aggregation, *, samples: int, tokens: int) -> Float[Tensor, "N T"]:
    """Weight of each token in the mean, so that a batch may be summed in pieces.

    Args:
        mask_NT: tokens that count.
        aggregation: `sequence`, the published mean over each sequence and then over sequences; or `token`, one mean over all tokens.
        samples: sequences in the whole batch.
        tokens: tokens that count in the whole batch.
    """
    mask = mask_NT.float()
    if aggregation == "token":
        return mask / max(tokens, 1)
    return mask / mask.sum(1, keepdim=True).clamp(min=1) / samples
