"""Our losses against TRL's own trainers: same weights, batch, completions and advantages; values and gradients."""

import copy
import io
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from PIL import Image

from mr1_bench.specs import get_spec
from mr1_bench.trainers import grpo, objective
from mr1_bench.trainers.batches import Processing
from mr1_bench.trainers.clock import Clock
from mr1_bench.trainers.config import GRPOConfig, SFTConfig
from mr1_bench.trainers.items import Item
from mr1_bench.trainers.mismatch import MismatchError
from mr1_bench.trainers.models import Loaded
from mr1_bench.trainers.prefix import Completions, completion_logprobs, encode_images, encode_prompt
from mr1_bench.trainers.sft import SFT, target_text

pytest.importorskip("trl", reason="trl is not installed: there is nothing to compare with")

TOLERANCE = 1e-5
GROUP, LENGTH, CLIP = 4, 11, 0.2
QUESTIONS = ["How many items?", "What is the size of the angle ABC in this figure, in degrees?", "1 2 3"]
SIZES = [(112, 56), (56, 56), (84, 140)]  # three prompts of different lengths with images of different sizes
LEARNING_RATE = 0.05


class Recorder:
    """In place of an optimiser: keeps the gradients, and takes plain gradient steps, as a second update needs."""

    def __init__(self, model):
        self.model, self.gradients = model, []

    def step(self, lr):
        self.gradients.append(take_gradients(self.model))
        descend(self.model, self.gradients[-1], lr)
        return 0.0


def take_gradients(model):
    found = {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}
    model.zero_grad()
    return found


@torch.no_grad()
def descend(model, gradients, lr):
    for name, param in model.named_parameters():
        param -= lr * gradients[name]


def assert_same_gradients(ours, theirs, tolerance=TOLERANCE):
    """Relative to the whole gradient, and to that of each parameter loosely (some are almost nothing)."""
    assert ours.keys() == theirs.keys()
    whole = sum(one.square().sum() for one in theirs.values()).sqrt()
    assert whole > 0.01  # or there is nothing to compare
    difference = sum((ours[name] - theirs[name]).square().sum() for name in theirs).sqrt()
    assert difference < tolerance * whole
    for name, one in theirs.items():
        assert (ours[name] - one).norm() < 1e-3 * one.norm() + 1e-6 * whole, name


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    """The tiny model with weights large enough that attention, pixels and the order of tokens matter."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint).eval()
    with torch.no_grad():
        for param in model.parameters():
            if param.ndim > 1:
                param.mul_(3)
    processor = AutoProcessor.from_pretrained(tiny_checkpoint)
    return Loaded(model=model, processor=processor, shares=True, peft=None, name="tiny", weights_sha256="")


@pytest.fixture(scope="module")
def items():
    found = []
    for index, (question, size) in enumerate(zip(QUESTIONS, SIZES, strict=True)):
        png = io.BytesIO()
        noise = torch.rand(size[1], size[0], 3, generator=torch.Generator().manual_seed(index))
        Image.fromarray((noise * 255).byte().numpy()).save(png, format="PNG")
        solution = "First this, then that." * index + "So."
        found.append(Item(f"item-{index}", get_spec("mr1_vc_synth"), question, str(3 + 40 * index), solution, png.getvalue(), {}))
    return found


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return GRPOConfig(method="grpo", task="vc-synth", model="tiny", out=tmp_path_factory.mktemp("out"), num_generations=GROUP)


@pytest.fixture(scope="module")
def batch(loaded, items, config):
    return Processing(loaded.processor, loaded.model, config)(items)


@pytest.fixture(scope="module")
def drawn():
    """Completions of different lengths with no vision token among them."""
    generator = torch.Generator().manual_seed(0)
    rows = len(QUESTIONS) * GROUP
    lengths = torch.randint(1, LENGTH + 1, (rows,), generator=generator)
    lengths[0] = LENGTH
    mask = torch.arange(LENGTH) < lengths[:, None]
    return Completions(torch.randint(0, 400, (rows, LENGTH), generator=generator) * mask, mask)


@pytest.fixture(scope="module")
def advantages():
    return torch.randn(len(QUESTIONS) * GROUP, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def grpo_peer(loaded, tmp_path_factory):
    """TRL's trainer on a copy of the model. Its β is set by each test: at 0 it loads no reference, and takes that from its inputs."""
    from datasets import Dataset
    from trl import GRPOConfig as PeerConfig
    from trl import GRPOTrainer

    settings = PeerConfig(
        output_dir=str(tmp_path_factory.mktemp("grpo_peer")),
        per_device_train_batch_size=len(QUESTIONS) * GROUP,
        num_generations=GROUP,
        loss_type="grpo",
        beta=0.0,
        use_bias_correction_kl=False,
        epsilon=CLIP,
        temperature=1.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )
    rows = [{"prompt": [{"role": "user", "content": "unused"}]}]
    trainer = GRPOTrainer(
        model=copy.deepcopy(loaded.model),
        args=settings,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_list(rows),
        processing_class=loaded.processor,
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # set by its training loop
    return trainer


@pytest.fixture(scope="module")
def peer_inputs(loaded, items, batch, drawn, advantages):
    """What `GRPOTrainer._generate_and_score_completions` hands to its loss: each prompt and image once a sample."""
    texts = [text for text in batch.parts[0].texts for _ in range(GROUP)]
    images = [[item.image] for item in items for _ in range(GROUP)]
    prompts = loaded.processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
    kinds = prompts["mm_token_type_ids"]
    return {
        "prompt_ids": prompts["input_ids"],
        "prompt_mask": prompts["attention_mask"],
        "completion_ids": drawn.ids,
        "completion_mask": drawn.mask.int(),
        "advantages": advantages,
        "pixel_values": prompts["pixel_values"],
        "image_grid_thw": prompts["image_grid_thw"],
        "num_images": [1] * len(texts),
        "mm_token_type_ids": torch.cat((kinds, kinds.new_zeros(drawn.ids.shape)), 1),
    }


@pytest.fixture(scope="module")
def logprobs(loaded, batch, drawn):
    """Of the model as it is, without a graph; others are made from it."""
    with torch.no_grad():
        return our_logprobs(loaded.model, batch, drawn)


def our_logprobs(model, batch, drawn):
    prompts = batch.parts[0].prompts
    return completion_logprobs(model, encode_prompt(model, prompts, encode_images(model, prompts)), drawn)[0]


def nearby(logprobs, seed, scale):
    """Log-probabilities of another policy, `scale` nats away."""
    return logprobs + scale * torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("beta", [0.0, 0.04, 0.5])
@pytest.mark.parametrize("on_policy", [True, False], ids=["first update", "later update"])
def test_grpo_loss_and_gradients(loaded, batch, drawn, advantages, logprobs, grpo_peer, peer_inputs, beta, on_policy):
    old = None if on_policy else nearby(logprobs, 2, 0.3)
    reference = nearby(logprobs, 3, 0.5)

    ours_NT = our_logprobs(loaded.model, batch, drawn)
    loss_NT, clipped = objective.surrogate(ours_NT, ours_NT.detach() if old is None else old, advantages, CLIP)
    loss_NT = loss_NT + beta * objective.kl_estimate(ours_NT, reference, "k3")
    ours = (loss_NT * objective.weights(drawn.mask, "sequence", samples=len(drawn.ids), tokens=int(drawn.mask.sum()))).sum()
    ours.backward()

    grpo_peer.beta = beta
    old_inputs = {} if old is None else {"old_per_token_logps": old}
    theirs = grpo_peer.compute_loss(grpo_peer.model, peer_inputs | old_inputs | {"ref_per_token_logps": reference})
    theirs.backward()

    assert clipped[drawn.mask].any() != on_policy  # the clip is part of what is compared
    assert theirs.abs() > 0.01
    assert abs(ours.item() - theirs.item()) < TOLERANCE
    assert_same_gradients(take_gradients(loaded.model), take_gradients(grpo_peer.model))


def test_bias_corrected_kl_is_another_loss(drawn, logprobs, grpo_peer, peer_inputs):
    """TRL's default multiplies the KL by the ratio: the comparison above must be able to see such a difference."""
    grpo_peer.beta = 0.5
    inputs = peer_inputs | {"old_per_token_logps": nearby(logprobs, 2, 0.3), "ref_per_token_logps": nearby(logprobs, 3, 0.5)}
    with torch.no_grad():
        plain = grpo_peer.compute_loss(grpo_peer.model, inputs)
        grpo_peer.args.use_bias_correction_kl = True
        corrected = grpo_peer.compute_loss(grpo_peer.model, inputs)
        grpo_peer.args.use_bias_correction_kl = False
    assert abs(plain - corrected) > 100 * TOLERANCE


def test_completions_of_another_engine(loaded, config, batch, drawn, advantages, logprobs, grpo_peer, peer_inputs, monkeypatch):
    """The trainer's own update on completions that another engine drew, with TRL's correction for vLLM."""
    beta, reference, engine = 0.04, nearby(logprobs, 3, 0.5), nearby(logprobs, 4, 0.5)
    recorder = Recorder(copy.deepcopy(loaded.model))
    policy = replace(loaded, model=recorder.model)
    trainer = grpo.GRPO(policy, replace(config, importance_cap=1.5, mismatch_limit=0.0), recorder, lambda: nullcontext(loaded.model))
    rollout = grpo.Rollout([drawn], [], [engine], [""] * len(drawn.ids), [], torch.zeros(3, GROUP), advantages.view(-1, GROUP))
    means = trainer._update(batch, rollout, [reference], beta, 0.0, Clock(torch.device("cpu")))

    monkeypatch.setattr(grpo_peer, "use_vllm", True)
    grpo_peer.beta = beta
    ratio = torch.exp((logprobs - engine) * drawn.mask).clamp(max=1.5)  # as TRL makes it of what vLLM returns
    theirs = grpo_peer.compute_loss(grpo_peer.model, peer_inputs | {"ref_per_token_logps": reference, "importance_sampling_ratio": ratio})
    theirs.backward()

    assert grpo_peer.vllm_importance_sampling_correction
    assert means["importance_capped_share"] > 0.05
    assert means["mismatch"] == pytest.approx((logprobs - engine)[drawn.mask].abs().mean().item(), rel=1e-4)
    assert abs(means["loss"] - theirs.item()) < TOLERANCE
    assert_same_gradients(recorder.gradients[0], take_gradients(grpo_peer.model))


def test_another_model_is_refused_before_the_weights_move(loaded, config, batch, drawn, advantages, logprobs):
    recorder = Recorder(copy.deepcopy(loaded.model))
    trainer = grpo.GRPO(replace(loaded, model=recorder.model), config, recorder, None)
    rollout = grpo.Rollout(
        [drawn], [], [nearby(logprobs, 4, 0.5)], [""] * len(drawn.ids), [], torch.zeros(3, GROUP), advantages.view(3, -1)
    )
    with pytest.raises(MismatchError, match=r"differ by 0\.\d+ nats a token on average .* more than --mismatch-limit 0\.1"):
        trainer._update(batch, rollout, None, 0.0, LEARNING_RATE, Clock(torch.device("cpu")))
    assert not recorder.gradients
    assert not trainer.moved


def test_two_inner_updates(loaded, config, batch, drawn, advantages, logprobs, grpo_peer, peer_inputs):
    """The trainer's own update, twice on one batch of completions: TRL's loss and gradients at both."""
    beta, reference = 0.04, nearby(logprobs, 3, 0.5)
    policy = replace(loaded, model=copy.deepcopy(loaded.model))
    recorder = Recorder(policy.model)
    trainer = grpo.GRPO(policy, replace(config, inner_updates=2), recorder, lambda: nullcontext(loaded.model))
    states = [trainer._policy.encode(part) for part in batch.parts]
    texts = [""] * len(drawn.ids)
    rollout = grpo.Rollout([drawn], states, None, texts, [], torch.zeros(len(QUESTIONS), GROUP), advantages.view(-1, GROUP))
    means = trainer._update(batch, rollout, [reference], beta, LEARNING_RATE, Clock(torch.device("cpu")))

    grpo_peer.beta = beta
    start, inputs = copy.deepcopy(grpo_peer.model.state_dict()), peer_inputs | {"ref_per_token_logps": reference}
    losses, gradients = [], []
    for old in ({}, {"old_per_token_logps": logprobs}):
        loss = grpo_peer.compute_loss(grpo_peer.model, inputs | old)
        loss.backward()
        losses.append(loss.item())
        gradients.append(take_gradients(grpo_peer.model))
        descend(grpo_peer.model, gradients[-1], LEARNING_RATE)
    grpo_peer.model.load_state_dict(start)

    assert abs(losses[0] - losses[1]) > 100 * TOLERANCE  # the first update moved the policy
    assert abs(means["loss"] - sum(losses) / 2) < TOLERANCE
    # The second gradient is taken at weights that the first has moved, rounding and all.
    for ours, theirs, tolerance in zip(recorder.gradients, gradients, (TOLERANCE, 10 * TOLERANCE), strict=True):
        assert_same_gradients(ours, theirs, tolerance)


@pytest.mark.parametrize("target", ["solution", "answer"])
def test_sft_loss_and_gradients(loaded, items, batch, target, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig as PeerConfig
    from trl import SFTTrainer

    end = loaded.processor.tokenizer.eos_token
    rows = [
        {"prompt": text, "completion": target_text(item, target) + end, "images": [item.image]}
        for text, item in zip(batch.parts[0].texts, items, strict=True)
    ]
    settings = PeerConfig(
        output_dir=str(tmp_path / "peer"),
        completion_only_loss=True,
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )
    peer = SFTTrainer(
        model=copy.deepcopy(loaded.model), args=settings, train_dataset=Dataset.from_list(rows), processing_class=loaded.processor
    )
    inputs = peer.data_collator(rows)
    peer.model.train()
    theirs = peer.compute_loss(peer.model, dict(inputs))
    theirs.backward()

    recorder = Recorder(loaded.model)
    config = SFTConfig(method="sft", task="vc-synth", model="tiny", out=tmp_path, target=target)
    row, _ = SFT(loaded, config, recorder).step(0, batch, learning_rate=0.0)

    scored = (inputs["labels"] != -100).sum().item()
    assert row["length"] * len(items) == scored  # the same tokens, the end token among them
    assert abs(row["loss"] - theirs.item()) < TOLERANCE
    assert_same_gradients(recorder.gradients[0], take_gradients(peer.model))
