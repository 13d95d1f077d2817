"""Between lmms-eval and mr1_bench: hands a row's image and prompt to the harness, and its answer to the graders.

It must not know how grading works: it turns `Score`s into metric values. Each YAML names these functions by their dotted path.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from loguru import logger

from mr1_bench import data, prompts
from mr1_bench.errors import UserError
from mr1_bench.grading import grade
from mr1_bench.r1v import grade_r1v
from mr1_bench.specs import TaskSpec, get_spec
from mr1_bench.tasks import embedded


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    """Return the row's one image, RGB."""
    return [doc["image"].convert("RGB")]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any]) -> str:
    """Return the prompt text; the YAML names the template."""
    return prompts.render(lmms_eval_specific_kwargs["prompt"], doc["question"])


def score_row(spec: TaskSpec, gold: str, text: str) -> dict[str, Any]:
    """Grade one answer.

    Returns:
        The task's metrics, each 0.0 or 1.0, and under `mr1` what the graders read, for the samples file. Where the published grader ran
        into its time limit or crashed, `acc_r1v` is left out, so that the mean is over graded items, and `mr1.status_r1v` says so.
    """
    score = grade(spec, gold, text)
    row: dict[str, Any] = {"acc": float(score.correct), "answered": float(score.extracted is not None)}
    detail: dict[str, Any] = {"extracted": score.extracted, "value": score.value, "unit": score.unit, "status": score.status}
    if spec.tagged:
        published = grade_r1v(spec, gold, text)
        row["format"] = float(score.format_ok)
        detail |= {"extracted_r1v": published.extracted, "status_r1v": published.status}
        if published.correct is None:
            logger.warning(
                f"{spec.name}: the published grader gave no verdict ({published.status}); the item is left out of acc_r1v. Gold {gold!r}"
            )
        else:
            row["acc_r1v"] = float(published.correct)
    return row | {"mr1": detail}


def dataset_kwargs(spec: TaskSpec) -> dict[str, Any]:
    """Return the arguments of `datasets.load_dataset("parquet", ...)` for a task's data.

    Raises:
        DataAbsentError: the data is not in the data directory; the message says how to get it.
        SystemExit: the same, under lmms-eval's own command.
    """
    try:
        path = embedded.parquet_path(spec) if spec.synthetic else data.parquet_path(spec.data, spec.split)
    except UserError as error:
        if "lmms_eval.__main__" in sys.modules:  # its command would bury the advice under tracebacks and exit 0
            raise SystemExit(f"mr1-bench: {error}") from None
        raise
    return {"data_files": {spec.split: str(path)}}


def processor(spec: TaskSpec) -> Callable[[dict[str, Any], list[str]], dict[str, Any]]:
    """Return the `process_results` function of a task."""

    def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
        row = score_row(spec, doc["gold"], results[0])
        row["mr1"]["id"] = doc["id"]
        return row

    return process_results


def __getattr__(name: str) -> Any:
    """Resolve `data_TASK` and `process_TASK`, which the YAML files name; lmms-eval asks for them only when a task is used."""
    kind, _, task = name.partition("_")
    if kind == "data" and task.startswith("mr1_"):
        return dataset_kwargs(get_spec(task))
    if kind == "process" and task.startswith("mr1_"):
        return processor(get_spec(task))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
