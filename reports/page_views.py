"""From analysed values to what the templates of the page show: facts as text, positions of dots and bars, rows put together.

Plain functions to dictionaries and lists; no sentence is made here and nothing is computed anew. This module must not know HTML or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mr1_bench.reports import page_text
from mr1_bench.reports.analysis import Comparison, Gain, MatrixCell, Measured, Table1
from mr1_bench.reports.figure_style import method_name, task_name


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def facts(pairs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Pairs for a list of facts: without the empty ones, numbers as text."""
    shown: list[tuple[str, Any]] = []
    for key, value in pairs.items():
        if value in ("", None, {}, []):
            continue
        if isinstance(value, Mapping):
            shown.append((key, {str(inner): _text(one) for inner, one in value.items()}))
        else:
            shown.append((key, ", ".join(map(_text, value)) if isinstance(value, list) else _text(value)))
    return shown


def parity_view(record: Mapping[str, Any]) -> dict[str, Any]:
    """One record of `mr1-bench parity`: all its facts, and, where it is whole, the row of the table that compares the engines."""
    view: dict[str, Any] = {"facts": facts(record), "row": None}
    try:
        counts = {name: (record[name]["identical"], record[name]["of"]) for name in ("texts", "answers")}
        accuracy, apart = record["accuracy"], record["log-probability difference"]
        numbers = [accuracy[key] for key in ("vllm", "hf", "difference", "low", "high", "McNemar p")]
        numbers += [apart["mean size"], apart["largest"]]
        if not all(isinstance(number, int | float) for number in (*numbers, *counts["texts"], *counts["answers"])):
            return view
        view["row"] = {
            "model": record["model"]["path"],
            "task": record["task"],
            "n": record["items"],
            "verdict": record["gate"]["verdict"],
            "accuracy": accuracy,
            "p": accuracy["McNemar p"],
            "mean": f"{apart['mean size']:.1e}",
            "largest": f"{apart['largest']:.1e}",
            "worst": list(dict(record["worst items"]).items()),
            **counts,
        }
    except (KeyError, TypeError, ValueError):
        pass  # of another version: its facts are shown as they are
    return view


def _made_by(known: Mapping[str, Any]) -> dict[str, Any]:
    return {"commit": known["commit"], "code": known["code_sha256"], "packages": known["packages"], "when (UTC)": known["when"]}


def run_view(known: Mapping[str, Any], anchor: str) -> dict[str, Any]:
    """One run as the template shows it."""
    trained = page_text.join([task_name(one) for one in known["task"].split(",")]) if known["task"] else ""
    seed = f", seed {known['seed']}" if known["seed"] is not None else ""
    about_run = {
        "run folder": known["folder"],
        "seed": known["seed"],
        "model": known["model"],
        "weights": known["weights_sha256"],
        "starting weights": known["start_weights_sha256"],
        "training data": known["data_sha256"],
        "prompts": known["prompts_sha256"],
    }
    made = _made_by(known)
    evaluations = {folder: facts(about) for folder, one in known["evaluations"].items() if one and (about := _made_by(one)) != made}
    results = []
    for task, result in known["results"].items():
        metrics = [{"name": name, "k": None, "n": None, "low": None, "high": None} | one for name, one in result["metrics"].items()]
        about = {"evaluation": result["folder"], "engine": result["engine"], "tokens a second": result["tokens_per_s"]}
        results.append({"task": task, "foreign": result["foreign"], "metrics": metrics, "facts": facts(about | result["identity"])})
    what = f"on {trained}{seed}" if trained else f"({known['model']})"
    view = {"anchor": anchor, "name": known["run"], "method": known["method"], "what": what, "arm": known["arm"]}
    return view | {"facts": facts(about_run | made), "evaluations": evaluations, "config": facts(known["config"]), "results": results}


@dataclass(frozen=True, slots=True)
class _Row:
    method: str
    measured: Measured
    x: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...]
    text: str


def glance(table: Table1) -> list[dict[str, Any]]:
    """Small dot plots of table 1, one a task, on one common scale."""
    panels = []
    shown = [(cell, cell.acc) for cell in table.cells if cell.acc]
    if not shown:
        return []
    ends = [end for _, one in shown for end in (one.mean, one.low, one.high, *(seed.value for seed in one.seeds)) if end is not None]
    # A hair is left to rounding: 0.7 is 70 %, not 80 %.
    low, high = 10 * math.floor(10 * min(ends) + 1e-9), 10 * math.ceil(10 * max(ends) - 1e-9)
    high = max(high, low + 10)

    def place(share: float) -> float:
        return round((100 * share - low) / (high - low) * 100, 2)

    for task in table.tasks:
        rows = []
        for cell, one in shown:
            if cell.task == task:
                left, right = (None if end is None else place(end) for end in (one.low, one.high))
                dots = tuple(place(seed.value) for seed in one.seeds) if len(one.seeds) > 1 else ()
                rows.append(_Row(cell.method, one, place(one.mean), left, right, dots, f"{method_name(cell.method)}: {one.mean:.1%}"))
        if rows:
            panels.append({"title": task_name(task), "rows": rows, "low": low, "high": high})
    return panels


def gain_rows(gains: Sequence[Gain]) -> list[dict[str, Any]]:
    """Headline gains, one row a gain and task, with both metrics in it."""
    rows: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    for gain in gains:
        row = rows.setdefault((gain.name, gain.tasks), {"name": gain.name, "tasks": gain.tasks, "acc": None, "acc_r1v": None})
        row[gain.metric] = gain
    return list(rows.values())


def comparison_groups(comparisons: Sequence[Comparison], matrix: Sequence[MatrixCell]) -> list[dict[str, Any]]:
    """Comparisons by training and test task, with the place of each difference on one common scale from 0 to 100, zero at 50."""
    gaps = [one.difference for one in comparisons if one.difference]
    reach = max((abs(end) for gap in gaps for end in (gap.low, gap.high)), default=0.0) or 1.0
    reach = 0.05 * math.ceil(reach / 0.05)

    def place(share: float) -> float:
        return round(50 + 50 * share / reach, 2)

    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for one in comparisons:
        key = (one.train_task, one.eval_task)
        head = {"train": one.train_task, "eval": one.eval_task, "relation": one.relation, "rows": [], "reach": round(100 * reach)}
        gap = one.difference
        cells = [cell for cell in matrix if (cell.train_task, cell.eval_task) == key and cell.method in (one.a, one.b)]
        runs = [seed.run for cell in cells if cell.acc for seed in cell.acc.seeds]
        row = {"one": one, "runs": runs, "x": place(gap.value) if gap else None}
        row |= {"low": place(gap.low), "high": place(gap.high)} if gap else {}
        groups.setdefault(key, head)["rows"].append(row)
    return list(groups.values())


def matrix_groups(cells: Sequence[MatrixCell]) -> list[tuple[str, list[MatrixCell]]]:
    """Cells of the matrix by training task, the base first."""
    groups: dict[str, list[MatrixCell]] = {}
    for cell in cells:
        groups.setdefault(cell.train_task, []).append(cell)
    return list(groups.items())
