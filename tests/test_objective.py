"""Advantage, KL estimate, surrogate and mean against numbers worked by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mr1_bench.trainers import objective

LN2 = math.log(2)


def test_advantages_of_a_group_by_hand():
    # rewards 2, 0, 0, 2: mean 1, sample variance 4/3
    got = objective.advantages(torch.tensor([[2.0, 0.0, 0.0, 2.0]]))
    spread = math.sqrt(4 / 3) + 1e-4
    assert got.tolist()[0] == pytest.approx([1 / spread, -1 / spread, -1 / spread, 1 / spread], rel=1e-6)


def test_unscaled_advantages_are_reward_minus_mean():
    got = objective.advantages(torch.tensor([[3.0, 1.0], [0.0, 0.0]]), scaled=False)
    assert got.tolist() == [[1.0, -1.0], [0.0, 0.0]]


def test_a_group_without_spread_has_no_advantage():
    assert objective.advantages(torch.full((2, 4), 1.7)).abs().max() < 1e-3  # rounding of the mean over the floor of the spread
    assert objective.advantages(torch.ones(2, 4)).tolist() == [[0.0] * 4] * 2


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0]), min_size=2, max_size=16), st.floats(-5, 5))
def test_advantages_sum_to_zero_and_ignore_a_constant(rewards, shift):
    group = torch.tensor([rewards], dtype=torch.float64)
    got = objective.advantages(group)
    assert float(got.sum()) == pytest.approx(0, abs=1e-9)
    assert torch.allclose(got, objective.advantages(group + shift), atol=1e-8)


@pytest.mark.parametrize(("kind", "expected"), [("k1", -LN2), ("k2", LN2**2 / 2), ("k3", 2 - LN2 - 1)])
def test_kl_estimates_by_hand(kind, expected):
    # the reference gives the token twice the policy's probability: x = ln 2
    got = objective.kl_estimate(torch.tensor([[math.log(0.25)]]), torch.tensor([[math.log(0.5)]]), kind)
    assert got.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_kl_estimates_are_unbiased(kind):
    policy, reference = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.5, 0.3]).double()
    true = float((policy * (policy / reference).log()).sum())
    estimates = objective.kl_estimate(policy.log()[None], reference.log()[None], kind)
    assert float((policy * estimates).sum()) == pytest.approx(true, rel=1e-9)


def test_surrogate_by_hand():
    # ratios 1.5 and 0.5 with advantages +1 and -1, clip 0.2
    old = torch.zeros(4, 1)
    new = torch.tensor([[math.log(1.5)], [math.log(1.5)], [math.log(0.5)], [math.log(0.5)]])
    loss, clipped = objective.surrogate(new, old, torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.2)
    assert loss.flatten().tolist() == pytest.approx([-1.2, 1.5, -0.5, 0.8], rel=1e-6)
    assert clipped.flatten().tolist() == [True, False, False, True]


def test_on_policy_gradient_is_advantage_times_grad_log_p():
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    loss, clipped = objective.surrogate(logprobs, logprobs.detach(), torch.tensor([0.7]), 0.2)
    loss.sum().backward()
    assert logprobs.grad.flatten().tolist() == pytest.approx([-0.7, -0.7])
    assert not clipped.any()


def test_weights_of_both_means():
    mask = torch.tensor([[True, True, True, True], [True, False, False, False]])
    sequence = objective.weights(mask, "sequence", samples=2, tokens=5)
    assert sequence.tolist() == [[0.125] * 4, [0.5, 0.0, 0.0, 0.0]]
    token = objective.weights(mask, "token", samples=2, tokens=5)
    assert token[mask].tolist() == pytest.approx([0.2] * 5)
    assert token[~mask].sum() == 0


def test_pieces_of_a_batch_weigh_as_the_whole():
    mask = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    for kind in ("sequence", "token"):
        whole = objective.weights(mask, kind, samples=3, tokens=6)
        pieces = [objective.weights(part, kind, samples=3, tokens=6) for part in mask.split(2)]
        assert torch.equal(whole, torch.cat(pieces))
        assert float(whole.sum()) == pytest.approx(1)


def test_importance_weights_are_cut_off():
    trainer = torch.tensor([[math.log(0.5), math.log(0.3), math.log(0.9)]])
    engine = torch.tensor([[math.log(0.4), math.log(0.6), math.log(0.1)]])
    assert objective.importance(trainer, engine, 2.0).flatten().tolist() == pytest.approx([1.25, 0.5, 2.0])
