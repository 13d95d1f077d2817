"""A study as a table for analysis by hand: one row a run and evaluated task, a pandas DataFrame.

It must not know files. Means are per checkpoint: nothing here is averaged over runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mr1_bench import stats
from mr1_bench.reports.measures import relation_of
from mr1_bench.reports.study import Result, Run, Study

if TYPE_CHECKING:
    import pandas as pd

_SETTINGS = ("steps", "lr", "beta_max", "beta_min", "kl_schedule", "format_weight", "num_generations", "target")
_METRICS = ("acc", "acc_r1v", "format", "answered")

COLUMNS = (
    *("run", "method", "trained_on", "arm", "seed", "status", *_SETTINGS),
    *("task", "relation", "n", "acc", "acc_k", "acc_n", "acc_low", "acc_high"),
    *("acc_r1v", "acc_r1v_k", "acc_r1v_n", "acc_r1v_low", "acc_r1v_high", "format", "answered", "mean_tokens"),
    *("dataset_sha256", "prompt_sha256", "limit", "engine", "tokens_per_s", "foreign", "model", "weights", "start"),
    *("folder", "eval_folder", "why"),
)
"""Names of the columns, in order; shares lie between 0 and 1, intervals are 95 % Wilson intervals over items."""


def run_frame(study: Study) -> pd.DataFrame:
    """Return one row for each run and task it was evaluated on.

    A run without an evaluation has one row whose `task` is missing; so has one that is not in the study, with the reason in `why`.

    Args:
        study: from `collect.read_study`.

    Returns:
        A frame with the columns `COLUMNS`; whole numbers are nullable integers.
    """
    import pandas as pd

    frame = pd.DataFrame(rows(study), columns=list(COLUMNS))
    whole = ["seed", "steps", "num_generations", "n", "acc_k", "acc_n", "acc_r1v_k", "acc_r1v_n", "limit"]
    return frame.astype(dict.fromkeys(whole, "Int64"))


def rows(study: Study) -> list[dict[str, Any]]:
    """Return the rows of `run_frame` as plain values."""
    found = []
    for run in study.runs:
        about = _about(run)
        found += [about | _measured(run, result) for result in run.results.values()] or [about]
    for missing in study.missing:
        found.append({"run": missing.name, "status": "missing", "folder": str(missing.folder), "why": missing.why})
    return [dict.fromkeys(COLUMNS) | row for row in found]


def _about(run: Run) -> dict[str, Any]:
    settings = {key: run.config.get(key) for key in _SETTINGS}
    if settings["kl_schedule"] == "constant":
        settings["beta_min"] = settings["beta_max"]
    return settings | {
        "run": run.name,
        "method": run.method,
        "trained_on": run.task or None,
        "arm": run.arm,
        "seed": run.seed,
        "status": "finished",
        "model": run.model,
        "weights": run.weights or None,
        "start": run.start or None,
        "folder": str(run.folder),
    }


def _measured(run: Run, result: Result) -> dict[str, Any]:
    row: dict[str, Any] = {"task": result.task, "relation": relation_of(run, result.task), "n": result.n or None}
    row |= {metric: result.means.get(metric) for metric in _METRICS}
    for metric in ("acc", "acc_r1v"):
        row |= {f"{metric}_{key}": value for key, value in zip(("k", "n", "low", "high"), counts(result, metric), strict=True)}
    lengths = [answer.tokens for answer in result.answers if answer.tokens is not None]
    row["mean_tokens"] = sum(lengths) / len(lengths) if lengths else None
    row |= {key: result.identity.get(key) for key in ("dataset_sha256", "prompt_sha256", "limit")}
    row |= {"engine": result.engine or None, "tokens_per_s": result.tokens_per_s, "foreign": result.foreign}
    return row | {"eval_folder": str(result.folder)}


def counts(result: Result, metric: str = "acc") -> tuple[int, int, float, float] | tuple[None, None, None, None]:
    """Return right answers, verdicts, and the 95 % Wilson interval of their share; None each where only a mean is known."""
    verdicts = result.correct(metric)
    if not verdicts:
        return None, None, None, None
    k, n = sum(verdicts.values()), len(verdicts)
    return k, n, *stats.wilson(k, n)
