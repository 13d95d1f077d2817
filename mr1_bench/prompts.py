"""What is asked of the model, in training and evaluation alike: the only place where prompts are worded.

The image comes first and the text after it, with no system prompt beyond the model's own chat template. The two `*_think` templates are
R1-V's evaluation prompts (Deep-Agent/R1-V, `src/eval`), which the paper's figures follow; the `*_direct` ones are ours, for the baseline
that the paper leaves out.
"""

from __future__ import annotations

import hashlib

_THINK = "{question} %sutput the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags."

TEMPLATES: dict[str, str] = {
    "vc_think": _THINK % "First o",
    "gr_think": _THINK % "O",
    "gr_think_train": (_THINK % "O").replace("{question} ", "{question}  "),  # R1-V trains on geometry with two spaces here
    "vc_direct": "{question} Answer with the number only.",
    "gr_direct": "{question} Answer with the final value only.",
}


def render(name: str, question: str) -> str:
    """Return the text that follows the image.

    Args:
        name: a key of `TEMPLATES`.
        question: the item's question, inserted as it is.
    """
    return TEMPLATES[name].replace("{question}", question)


def prompt_hash(name: str) -> str:
    """Return the SHA-256 (hex) of a template: two results with different hashes were asked differently."""
    return hashlib.sha256(TEMPLATES[name].encode()).hexdigest()


def answer(gold: str) -> str:
    """Return the target of supervised training on the answer alone."""
    return f"<answer>{gold}</answer>"


def worked_answer(solution: str, gold: str) -> str:
    """Return the target of supervised training on a worked solution, in the form that the prompts ask for."""
    return f"<think>{solution}</think>{answer(gold)}"
