"""What each run is for, told from how its settings differ from those of the others; and which runs may not be averaged.

Pure functions on runs. This module must not know files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mr1_bench.reports.study import Arm, Run

_BOOKKEEPING = frozenset(
    [
        *("seed", "method", "task", "out", "data", "images", "device", "trust_remote_code"),
        *("log_to", "keep", "show_every", "stop_on_alarm", "save_every", "eval_every", "eval_items"),
    ]
)
"""Settings that do not decide the weights, that are judged by the hash of what they name, or that have a field of their own."""
_SCHEDULE = frozenset({"kl_schedule", "beta_min", "kl_horizon", "kl_target"})
_SWEEPS: dict[Arm, frozenset[str]] = {
    "beta": frozenset({"beta_max"}),
    "format": frozenset({"format_weight"}),
    "schedule": _SCHEDULE,
}


def settings(run: Run) -> dict[str, Any]:
    """Return what makes a run what it is, but for its seed: its settings without bookkeeping and without those that have no effect."""
    kept = {key: value for key, value in run.config.items() if key not in _BOOKKEEPING}
    if kept.get("kl_schedule") == "constant":
        kept = {key: value for key, value in kept.items() if key not in _SCHEDULE or key == "kl_schedule"}
    elif kept.get("kl_schedule") != "adaptive":
        kept.pop("kl_target", None)
    if run.start:
        # The same checkpoint may lie elsewhere on another machine.
        kept["model"] = run.start
    identity = run.record.get("identity")
    if isinstance(identity, dict) and identity.get("data_sha256"):
        kept["data_sha256"] = identity["data_sha256"]
    return kept


def made_with(run: Run) -> dict[str, Any]:
    """Return what else must be equal for runs to be averaged, and is no setting: the code that trained, and the prompts it trained on."""
    identity = run.record.get("identity") if run.config else None
    identity = identity if isinstance(identity, dict) else {}
    return {key: identity.get(key) for key in ("code_sha256", "prompts_sha256")}


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which two runs differ, with both values."""
    keys = [*first, *(key for key in second if key not in first)]
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def _key(run: Run) -> str:
    return json.dumps(settings(run), sort_keys=True, default=str)


def _sweep_of(main: Run, run: Run) -> Arm:
    changed = set(differing(settings(main), settings(run)))
    if "kl_schedule" not in changed and changed != {"beta_max"} and changed != {"format_weight"}:
        return "other"
    return next((arm for arm, keys in _SWEEPS.items() if changed and changed <= keys), "other")


def infer_arms(runs: Sequence[Run], named: frozenset[str]) -> tuple[list[Run], list[str]]:
    """Find the arm of each run that does not say it.

    Of the runs of a method on a task, the settings with most seeds are the main arm, unless runs that say so are. A run that differs from
    the main arm in the weight of the KL, of the format reward, or in the schedule alone belongs to that sweep.

    Args:
        runs: all runs, the base among them.
        named: names of the runs whose arm is known.

    Returns:
        The runs in the same order, and what is wrong: groups of equally many seeds, of which any could be the main arm (`other` then).
    """
    arms: dict[str, Arm] = {}
    problems = []
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.method, run.task), []).append(run)
    for (method, task), members in groups.items():
        unnamed = [run for run in members if run.name not in named]
        if method == "base" or not unnamed:
            continue
        main = next((run for run in members if run.name in named and run.arm == "main"), None)
        if main is None:
            by_settings: dict[str, list[Run]] = {}
            # An evaluation alone does not tell the settings: beside runs that do, it stays out of the means.
            for run in [run for run in unnamed if run.config] or unnamed:
                by_settings.setdefault(_key(run), []).append(run)
            counts = {key: len({run.seed for run in same}) for key, same in by_settings.items()}
            most = [key for key, count in counts.items() if count == max(counts.values())]
            if len(most) > 1:
                first, second = (by_settings[key][0] for key in most[:2])
                problems.append(_tie(method, task, first, second, counts[most[0]]))
                arms |= {run.name: "other" for run in unnamed}
                continue
            main = by_settings[most[0]][0]
        for run in unnamed:
            arms[run.name] = "main" if _key(run) == _key(main) else _sweep_of(main, run)
    return [replace(run, arm=arms[run.name]) if run.name in arms else run for run in runs], problems


def _tie(method: str, task: str, first: Run, second: Run, seeds: int) -> str:
    return (
        f"{method} on {task}: {first.folder} and {second.folder} differ in {_list(differing(settings(first), settings(second)))}, with "
        f"{seeds} seed{'s' * (seeds != 1)} each, so which is the main arm cannot be told. Name it: write "
        f'{{"arm": "main"}} into {first.folder / "cell.json"}, or beta, format, schedule or other'
    )


def _list(changed: Mapping[str, tuple[Any, Any]]) -> str:
    shown = [f"{key} ({str(first)[:40]} and {str(second)[:40]})" for key, (first, second) in list(changed.items())[:4]]
    return ", ".join(shown) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")


def check_runs(runs: Sequence[Run]) -> list[str]:
    """Return what forbids averaging: runs without a seed, the same run twice, a main arm of several settings or several starts."""
    trained = [run for run in runs if run.method != "base"]
    problems = [
        f"{run.folder}: {run.method} on {run.task} without a training seed, so it can be no member of a mean over seeds; add "
        '"seed": N to what records its training, or leave the run out'
        for run in trained
        if run.seed is None
    ]
    seen: dict[tuple[Any, ...], Run] = {}
    for run in trained:
        key = (run.method, run.task, run.seed, _key(run))
        other = seen.setdefault(key, run)
        if other is not run and run.seed is not None:
            same = "the same settings" if run.config else "no settings recorded"
            problems.append(
                f"{other.folder} and {run.folder} are the same run twice: {run.method} on {run.task}, seed {run.seed}, {same}; name one of "
                "them, or tell them apart by another seed"
            )
    known = {(run.method, run.task, run.seed): run for run in trained if run.config}
    for run in (run for run in trained if not run.config):
        made = known.get((run.method, run.task, run.seed))
        if made is not None and run.seed is not None:
            problems.append(
                f"{run.folder} evaluates a checkpoint of {run.method} on {run.task}, seed {run.seed}, and {made.folder} trained one: "
                f"if they belong together, move the evaluation to {made.folder / 'eval'}, else leave one out"
            )
    problems += [*_check_weights(trained), *_check_arms(trained)]
    starts: dict[str, Run] = {}
    for run in (run for run in trained if run.arm == "main" and run.start):
        starts.setdefault(run.start, run)
    if len(starts) > 1:
        first, second = list(starts.values())[:2]
        problems.append(
            f"{first.folder} started from weights {first.start[:12]} ({first.config.get('model')}) and {second.folder} from "
            f'{second.start[:12]} ({second.config.get("model")}): give them reports of their own, or the "arm" other in cell.json'
        )
    return problems


def _check_arms(trained: Sequence[Run]) -> list[str]:
    """The main arm of a method on a task has one kind of settings; every arm is trained by one code, with one kind of prompts."""
    firsts: dict[tuple[Arm, str, str], Run] = {}
    problems = []
    for run in (run for run in trained if run.arm != "other" and run.config):
        first = firsts.setdefault((run.arm, run.method, run.task), run)
        here, there = ((made_with(one) | (settings(one) if run.arm == "main" else {})) for one in (first, run))
        changed = differing(here, there)
        if changed:
            mend = 'give one of them another "arm" in its cell.json'
            if not changed.keys().isdisjoint(made_with(run)):
                mend = "train one of them again, leave one out, or " + mend
            problems.append(
                f"{first.folder} and {run.folder} are both in the {run.arm} arm of {run.method} on {run.task}, but differ in "
                f"{_list(changed)}; their mean would mean nothing: {mend}"
            )
        if run.arm != "main" and "beta_max" not in run.config:
            problems.append(f'{run.folder} is {run.method}, which has no {run.arm} to sweep: write {{"arm": "other"}} into its cell.json')
    return problems


def _check_weights(trained: Sequence[Run]) -> list[str]:
    """One checkpoint under several seeds would count as several. Trainings may end alike, so only results without one are judged by it."""
    seen: dict[tuple[str, str, str], Run] = {}
    problems = []
    for run in (run for run in trained if not run.config and run.weights != run.model):
        other = seen.setdefault((run.weights, run.method, run.task), run)
        if other is not run:
            problems.append(
                f"{other.folder} and {run.folder} are evaluations of the same weights ({run.weights[:12]}), as seeds {other.seed} and "
                f"{run.seed} of {run.method} on {run.task}; name one of them"
            )
    return problems
