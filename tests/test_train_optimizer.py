"""The optimiser: hand-worked steps, masters in float32, refusal of bad gradients, bitwise restore; the course of the learning rate."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mr1_bench.errors import UserError
from mr1_bench.trainers.config import TrainConfig
from mr1_bench.trainers.optimizer import NonFiniteError, Optimizer, learning_rate


def make_config(**changes: Any) -> TrainConfig:
    return TrainConfig(method="grpo", task="vc-synth", model="tiny", out=Path("unused"), **{"steps": 10, "lr": 0.1, **changes})


class Small(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 4.0]], dtype=dtype))
        self.vector = nn.Parameter(torch.tensor([3.0, -1.0], dtype=dtype))
        self.unused = nn.Parameter(torch.ones(2, dtype=dtype))
        self.frozen = nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x @ self.matrix + self.vector) ** 2).sum() + self.frozen.sum()


def train(model: Small, optimizer: Optimizer, first: int, last: int) -> list[float]:
    norms = []
    for step in range(first, last):
        for part in range(2):
            x = torch.randn(4, 2, generator=torch.Generator().manual_seed(10 * step + part))
            model(x.to(model.matrix.dtype)).backward()
        norms.append(optimizer.step(0.01))
    return norms


def test_first_step_by_hand() -> None:
    # Adam's first update is lr * sign(g), whatever the gradient's size; weight decay takes lr * decay * w off matrices only.
    model = Small()
    optimizer = Optimizer(model, make_config(weight_decay=0.5, max_grad_norm=1.0))
    model.matrix.grad = torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    model.vector.grad = torch.tensor([0.0, -4.0])
    assert optimizer.step(0.1) == pytest.approx(5.0)  # 3, 4: norm 5, before scaling down to 1
    assert model.matrix.tolist() == [pytest.approx([0.95 - 0.1, -1.9]), pytest.approx([0.475, 3.8])]
    assert model.vector.tolist() == pytest.approx([3.0, -0.9])
    assert model.unused.tolist() == [1.0, 1.0]
    assert model.matrix.grad is None and model.vector.grad is None
    moments = optimizer.tensors()
    assert moments["exp_avg/matrix"][0, 0].item() == pytest.approx(0.1 * 3 / 5, rel=1e-5)  # the clipped gradient went in
    assert "exp_avg/unused" not in moments and "param/unused" in moments
    assert not any("frozen" in name for name in moments)


def test_no_clipping_at_zero() -> None:
    model = Small()
    optimizer = Optimizer(model, make_config(max_grad_norm=0.0))
    model.vector.grad = torch.tensor([30.0, 40.0])
    assert optimizer.step(0.1) == pytest.approx(50.0)
    assert optimizer.tensors()["exp_avg/vector"].tolist() == pytest.approx([3.0, 4.0])


def test_same_as_plain_adamw() -> None:
    ours, theirs = Small(), Small()
    optimizer = Optimizer(ours, make_config(weight_decay=0.1, max_grad_norm=2.0))
    plain = torch.optim.AdamW(
        [{"params": [theirs.matrix], "weight_decay": 0.1}, {"params": [theirs.vector, theirs.unused], "weight_decay": 0.0}], lr=0.01
    )
    norms = train(ours, optimizer, 0, 5)
    for step in range(5):
        plain.zero_grad()
        for part in range(2):
            theirs(torch.randn(4, 2, generator=torch.Generator().manual_seed(10 * step + part))).backward()
        assert float(nn.utils.clip_grad_norm_(theirs.parameters(), 2.0)) == pytest.approx(norms[step], rel=1e-6)
        plain.step()
    torch.testing.assert_close(ours.matrix, theirs.matrix)
    torch.testing.assert_close(ours.vector, theirs.vector)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bad_gradient_leaves_everything(bad: float, dtype: torch.dtype) -> None:
    model = Small(dtype)
    optimizer = Optimizer(model, make_config())
    train(model, optimizer, 0, 2)
    before = {name: tensor.clone() for name, tensor in (optimizer.tensors() | dict(model.named_parameters())).items()}
    (model.vector * torch.tensor([bad, 1.0], dtype=dtype)).sum().backward()
    with pytest.raises(NonFiniteError, match=r"norm is (nan|inf): the step was not taken"):
        optimizer.step(0.1)
    for name, tensor in (optimizer.tensors() | dict(model.named_parameters())).items():
        assert torch.equal(tensor, before[name]), name


def test_all_frozen_is_refused() -> None:
    model = Small().requires_grad_(False)
    with pytest.raises(UserError, match="every parameter of the model is frozen"):
        Optimizer(model, make_config())


def test_masters_keep_what_bfloat16_loses() -> None:
    # At 1.0 a bfloat16 step is 2^-8 up: an update of 0.001 is lost by itself, but not in the sum of eight.
    model = Small(torch.bfloat16)
    optimizer = Optimizer(model, make_config())
    for _ in range(8):
        model.unused.sum().backward()
        optimizer.step(0.001)
    assert optimizer.tensors()["param/unused"].tolist() == pytest.approx([0.992, 0.992], abs=1e-5)
    assert model.unused.dtype == torch.bfloat16
    assert model.unused.tolist() == [0.9921875, 0.9921875]


def test_gradients_of_pieces_add_up_in_float32() -> None:
    model = Small(torch.bfloat16)
    optimizer = Optimizer(model, make_config(max_grad_norm=0.0))
    for value in [256.0] + [1.0] * 8:  # in bfloat16 256 + 1 is 256
        (model.unused[0] * value).backward()
    assert optimizer.step(0.001) == 264.0
    assert optimizer.tensors()["exp_avg/unused"][0].item() == pytest.approx(26.4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restore_is_bitwise(dtype: torch.dtype, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    config = make_config(weight_decay=0.1)
    whole, first = Small(dtype), Small(dtype)
    straight = Optimizer(whole, config)
    norms = train(whole, straight, 0, 9)

    begun = Optimizer(first, config)
    train(first, begun, 0, 4)
    save_file(begun.tensors(), tmp_path / "state.safetensors")
    resumed = Small(dtype)
    optimizer = Optimizer(resumed, config)
    train(resumed, optimizer, 50, 51)  # whatever it held before is replaced
    resumed.matrix.sum().backward()  # gradients left over, too
    optimizer.load(load_file(tmp_path / "state.safetensors"))
    assert train(resumed, optimizer, 4, 9) == norms[4:]
    ours, theirs = optimizer.tensors(), straight.tensors()
    assert ours.keys() == theirs.keys() and "step/matrix" in ours
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(torch.equal(param, other) for param, other in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_state_of_another_model_is_refused() -> None:
    optimizer = Optimizer(Small(), make_config())
    tensors = optimizer.tensors()
    with pytest.raises(UserError, match="only the model trains vector"):
        optimizer.load({name: tensor for name, tensor in tensors.items() if name != "param/vector"})
    with pytest.raises(UserError, match="only the saved one trains extra"):
        optimizer.load(tensors | {"param/extra": torch.ones(1)})
    with pytest.raises(UserError, match=r"param of vector is torch.float32 \(3,\), here torch.float32 \(2,\)"):
        optimizer.load(tensors | {"param/vector": torch.ones(3)})


def test_learning_rates_by_hand() -> None:
    linear = [learning_rate(make_config(steps=6, warmup_steps=1, lr=1.0), step) for step in range(6)]
    assert linear == pytest.approx([0.5, 1.0, 0.8, 0.6, 0.4, 0.2])
    cosine = [learning_rate(make_config(steps=4, lr=1.0, lr_schedule="cosine"), step) for step in range(4)]
    assert cosine == pytest.approx([1.0, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4])
    assert [learning_rate(make_config(steps=2, lr=3.0, lr_schedule="constant"), step) for step in range(2)] == [3.0, 3.0]


@given(steps=st.integers(1, 200), warmup=st.integers(0, 250), kind=st.sampled_from(["constant", "linear", "cosine"]))
def test_learning_rate_is_positive_and_has_one_peak(steps: int, warmup: int, kind: Any) -> None:
    config = make_config(steps=steps, warmup_steps=warmup, lr_schedule=kind, lr=1.0)
    rates = [learning_rate(config, step) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    peak = min(warmup, steps - 1)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if warmup < steps:
        assert rates[warmup] == 1
