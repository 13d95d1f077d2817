"""The embedded tiny model: a Qwen2-VL of a million parameters, made offline, for trying everything on a CPU.

It has the real architecture, processor and chat format, only small: the same code that runs it runs Qwen2-VL-2B. `build` writes an
untrained checkpoint, deterministic in its seed; `rebuild` trains it to the mid skill at which it is shipped (`tiny_model/`).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mr1_bench import prompts
from mr1_bench.errors import UserError
from mr1_bench.model_files import EMBEDDED, embedded_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2VLConfig, Qwen2VLProcessor

HELP = "Print the path of the embedded model, a Qwen2-VL of one million parameters at mid skill on the synthetic tasks; or make it again."

VOCABULARY_SIZE = 512
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""Ordinary tokens of one piece: they survive decoding without special tokens, and every answer has them."""
INITIAL_SPREAD = 0.06  # standard deviation of the random weights: at this width 0.02, the usual one, learns far more slowly
PATCH, MERGE = 14, 2  # pixels a patch, patches a token (each way): one token for 28 x 28 pixels, as in the real model

# ChatML as Qwen2-VL writes it: a default system turn, and each image as one placeholder between vision marks.
CHAT_TEMPLATE = """\
{%- if messages[0].role != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' or 'video' in part -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def _corpus() -> Iterator[str]:
    """Yield the texts that the tokenizer is fitted to: what the embedded tasks ask and how they are solved."""
    from mr1_bench.synth import make_item

    for family in ("vc", "gr"):
        for level in (1, 1, 1, 2, 3, 4, 5):
            for index in range(150):
                item = make_item(family, "train", level, index)
                question = prompts.render(f"{family}_think", item.question)
                yield f"system\nYou are a helpful assistant.\nuser\n{question}\nassistant\n{item.solution} {item.gold}"


def build_tokenizer(size: int = VOCABULARY_SIZE) -> PreTrainedTokenizerBase:
    """Return a byte-level BPE tokenizer of `size` tokens, each digit a token of its own, with Qwen's special tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL_TOKENS) - len(TAGS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=4096,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_processor(vocabulary_size: int = VOCABULARY_SIZE) -> Qwen2VLProcessor:
    """Return the tokenizer and the image processor as one Qwen2-VL processor; images keep 56 x 56 pixels or more."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    from mr1_bench.trainers import models

    sizes: dict[str, Any] = {"patch_size": PATCH, "merge_size": MERGE, "min_pixels": 56 * 56, "max_pixels": 12845056}
    whole = models.has_torchvision()
    kind = Qwen2VLProcessor if whole else models.without_video(Qwen2VLProcessor)
    processor: Qwen2VLProcessor = kind(
        image_processor=Qwen2VLImageProcessor(**sizes),
        video_processor=Qwen2VLVideoProcessor(**sizes) if whole else models.unused_video_processor({}),
        tokenizer=build_tokenizer(vocabulary_size),
        chat_template=CHAT_TEMPLATE,
    )
    return processor


def build_config(tokenizer: PreTrainedTokenizerBase) -> Qwen2VLConfig:
    """Return the sizes of the tiny model: 4 layers of width 128 over a 2-layer vision tower of width 64."""
    from transformers import Qwen2VLConfig

    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end", "image_pad", "video_pad")}
    return Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": 4,
            "initializer_range": INITIAL_SPREAD,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "bos_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 2,
            "initializer_range": INITIAL_SPREAD,
            "embed_dim": 64,
            "hidden_size": 128,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
        },
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        tie_word_embeddings=True,
    )


def build(out: Path, seed: int = 0) -> Path:
    """Write an untrained tiny checkpoint, complete or not at all.

    Args:
        out: folder to create; it must not exist.
        seed: seed of the random weights.

    Returns:
        `out`, a checkpoint that `transformers` Auto classes, lmms-eval's `qwen2_vl` and vLLM load as it is.

    Raises:
        UserError: `out` exists.
    """
    if out.exists():
        raise UserError(f"{out} exists; name a folder that does not, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    import torch
    import transformers
    from transformers import GenerationConfig, Qwen2VLForConditionalGeneration

    transformers.logging.disable_progress_bar()
    processor = build_processor()
    tokenizer = processor.tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2VLForConditionalGeneration(build_config(tokenizer))
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id], pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        model.save_pretrained(partial, safe_serialization=True)
        processor.save_pretrained(partial)
        partial.chmod(0o755)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def rebuild(out: Path) -> Path:
    """Make the embedded model from nothing: an untrained checkpoint in `out/start`, trained by the recipe `tiny-model` in `out/run`.

    Stopped at any moment, the same call goes on.

    Returns:
        The trained checkpoint.

    Raises:
        UserError: `out` holds something else, or cannot be written.
    """
    from mr1_bench.trainers import flags, loop

    start = out / "start"
    if not start.is_dir():
        build(start)
    settings = flags.read_file(flags.find_file("tiny-model"), "sft")
    loop.train(flags.resolve("sft", settings, {"model": str(start), "out": out / "run"}))
    return out / "run" / "last"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("name", choices=[EMBEDDED], help="which model")
    making = parser.add_mutually_exclusive_group()
    making.add_argument("--rebuild", metavar="DIR", type=Path, help="make it again from nothing (minutes of CPU time) in this folder")
    making.add_argument("--untrained", metavar="DIR", type=Path, help="write an untrained one to this folder, which must not exist")
    parser.add_argument("--seed", type=int, default=0, help="seed of the untrained one's weights (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Print the path of the embedded model, or make one and print its path."""
    if args.rebuild:
        print(rebuild(args.rebuild))
    elif args.untrained:
        print(build(args.untrained, args.seed))
    else:
        print(embedded_model())
    return 0
