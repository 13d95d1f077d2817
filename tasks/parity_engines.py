"""One engine answering a task's items greedily, for `parity`: in a process of its own, so that neither takes the other's memory.

`python -m mr1_bench.tasks.parity_engines vllm|hf REQUEST` reads a request, generates, and writes token ids and log-probabilities. Both
get the same text and the same lossless image, through the checkpoint's own processor. vLLM goes first; Hugging Face's model then also
computes what it gives the tokens that vLLM chose, so that the same tokens are compared whatever it would have said itself. It must not
know grading or records.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mr1_bench import data, prompts, records
from mr1_bench.errors import UserError
from mr1_bench.specs import get_spec
from mr1_bench.tasks import vllm_backend
from mr1_bench.vllm_setup import limited

_ALTERNATIVES = 5  # log-probabilities a token of vLLM's: at a fork the other engine's token is nearly always among them


def read_items(task: str, n: int) -> list[data.Example]:
    """Return the first n items of a task."""
    spec = get_spec(task)
    examples = data.load(spec.data, spec.split, level=spec.level or 1, n=spec.size)
    return [examples[index] for index in range(n)]


def _prompts(processor: Any, request: dict[str, Any]) -> tuple[list[str], list[Any]]:
    """The items' texts under the checkpoint's chat template, image first, and their images."""
    spec, texts, images = get_spec(request["task"]), [], []
    for item in read_items(request["task"], request["n"]):
        content = [{"type": "image"}, {"type": "text", "text": prompts.render(spec.prompt, item.question)}]
        texts.append(processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True))
        images.append(item.image.convert("RGB"))
    return texts, images


def _penalty(checkpoint: Path) -> float:
    """The checkpoint's repetition penalty, which Hugging Face's generate obeys by itself."""
    return float(vllm_backend.generation_arguments(checkpoint).partition("=")[2] or 1.0)


def run_vllm(request: dict[str, Any]) -> dict[str, Any]:
    """Generate with vLLM; return the answers' tokens, log-probabilities and nearest alternatives.

    Raises:
        UserError: it is not installed, cannot load the checkpoint, or has too little memory.
    """
    vllm_backend.prepare()
    checkpoint = Path(request["checkpoint"])
    start = time.perf_counter()
    with limited(f"vLLM could not serve {checkpoint}: loading", request["limit_s"]):
        from transformers import AutoProcessor
        from vllm import LLM, SamplingParams

        processor = AutoProcessor.from_pretrained(checkpoint)
        engine = LLM(str(checkpoint), seed=0, **request["vllm_args"])
    loaded = time.perf_counter()
    texts, images = _prompts(processor, request)
    decoding = SamplingParams(
        temperature=0.0, max_tokens=request["max_new_tokens"], logprobs=_ALTERNATIVES, repetition_penalty=_penalty(checkpoint)
    )
    with limited("generation with vLLM", request["limit_s"]):
        inputs = [{"prompt": text, "multi_modal_data": {"image": image}} for text, image in zip(texts, images, strict=True)]
        outputs = engine.generate(inputs, decoding, use_tqdm=False)
        vllm_backend.refuse_cut_answers(outputs, request["max_new_tokens"])
    answers = []
    for output in outputs:
        answer = output.outputs[0]
        tables = [{str(token): entry.logprob for token, entry in table.items()} for table in answer.logprobs]
        chosen = [table[str(token)] for token, table in zip(answer.token_ids, tables, strict=True)]
        answers.append(
            {"prompt": list(output.prompt_token_ids), "tokens": list(answer.token_ids), "logprobs": chosen, "alternatives": tables}
        )
    dtype = str(engine.llm_engine.model_config.dtype).removeprefix("torch.")
    return {"answers": answers, "dtype": dtype, "load_s": loaded - start, "generate_s": time.perf_counter() - loaded}


def run_hf(request: dict[str, Any]) -> dict[str, Any]:
    """Generate with transformers; return the answers' tokens, and its log-probabilities of vLLM's tokens.

    Raises:
        UserError: it cannot load the checkpoint.
    """
    import torch
    import transformers
    from transformers import AutoModelForImageTextToText, AutoProcessor

    transformers.logging.set_verbosity_error()
    other = json.loads(Path(request["vllm_file"]).read_text(encoding="utf-8"))["answers"]
    start = time.perf_counter()
    with limited(f"transformers could not load {request['checkpoint']}: loading", request["limit_s"]):
        processor = AutoProcessor.from_pretrained(request["checkpoint"], padding_side="left")
        model = AutoModelForImageTextToText.from_pretrained(request["checkpoint"], dtype="auto").to(request["device"]).eval()
    loaded = time.perf_counter()
    texts, images = _prompts(processor, request)
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    answers: list[dict[str, Any]] = []
    with torch.inference_mode(), limited("generation with transformers", request["limit_s"]):
        for begin in range(0, len(texts), request["batch_size"]):
            part = slice(begin, begin + request["batch_size"])
            inputs = processor(text=texts[part], images=images[part], padding=True, return_tensors="pt").to(model.device)
            greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
            made = model.generate(**inputs, **greedy, max_new_tokens=request["max_new_tokens"])
            width = inputs["input_ids"].shape[1]
            for row, mask in zip(made.tolist(), inputs["attention_mask"].tolist(), strict=True):
                answers.append({"prompt": row[width - sum(mask) : width], "tokens": _until_end(row[width:], ends)})
    generated = time.perf_counter()
    with torch.inference_mode(), limited("scoring with transformers", request["limit_s"]):
        for index, answer in enumerate(answers):
            inputs = processor(text=[texts[index]], images=[images[index]], return_tensors="pt").to(model.device)
            answer |= _score(model, inputs, other[index]["tokens"], answer["tokens"])
            answers[index] = answer
    dtype = str(model.dtype).removeprefix("torch.")
    times = {"load_s": loaded - start, "generate_s": generated - loaded, "score_s": time.perf_counter() - generated}
    return {"answers": answers, "dtype": dtype, **times}


def _until_end(tokens: Sequence[int], ends: set[int]) -> list[int]:
    """The tokens up to the first end-of-text token, that one included, as vLLM returns them."""
    last = next((index for index, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return list(tokens[: last + 1])


def _score(model: Any, inputs: Any, tokens: Sequence[int], own: Sequence[int]) -> dict[str, Any]:
    """Log-probabilities that the model gives to another's tokens, and to its own token where the two first differ."""
    import torch

    more = torch.tensor([list(tokens)], device=model.device)
    fields = {key: value for key, value in inputs.items() if key not in ("input_ids", "attention_mask", "mm_token_type_ids")}
    for key, tail in (("input_ids", more), ("attention_mask", torch.ones_like(more)), ("mm_token_type_ids", torch.zeros_like(more))):
        if key in inputs:
            fields[key] = torch.cat([inputs[key], tail.to(inputs[key].dtype)], dim=1)
    logits = model(**fields, logits_to_keep=len(tokens) + 1).logits[0, :-1].float()
    table = logits.log_softmax(-1)
    fork = first_difference(tokens, own)
    at_fork = fork is not None and fork < min(len(tokens), len(own))
    return {
        "logprobs_of_vllm": table.gather(1, more[0][:, None])[:, 0].tolist(),
        "logprob_at_fork": float(table[fork, own[fork]]) if fork is not None and at_fork else None,
    }


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Return the first position at which two sequences differ, or one of them has ended; None where they are equal."""
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return None if len(a) == len(b) else min(len(a), len(b))


def main(arguments: Sequence[str]) -> int:
    """Answer one request: `vllm REQUEST` or `hf REQUEST`."""
    name, path = arguments
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        result = run_vllm(request) if name == "vllm" else run_hf(request)
    except UserError as error:
        print(f"mr1-bench: {error}", file=sys.stderr)
        return 2
    records.write_json(Path(request[f"{name}_file"]), result)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # vLLM's own threads may outlive the work


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
