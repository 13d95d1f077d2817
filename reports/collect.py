"""Reads folders of runs and evaluations, ours and those of plain lmms-eval, into a `Study`, and refuses what may not be compared.

What is failed, unfinished or half-written is listed with the reason, never read. Weights are not needed. `folders` finds the records,
`evaluations` and `foreign` read one evaluation, `arms` decides what a run is for. This module must not know statistics or how anything is
shown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from mr1_bench.records import RecordError, read_json
from mr1_bench.reports import arms
from mr1_bench.reports.evaluations import IDENTITY, Evaluation, Pool, is_sampled, read_course, read_own
from mr1_bench.reports.folders import Found, find
from mr1_bench.reports.foreign import DECLARATION, is_sampled_plain, read_foreign
from mr1_bench.reports.study import METHODS, Arm, Missing, Result, Run, Study
from mr1_bench.specs import SPECS, UnknownTaskError, get_spec

_ARMS: tuple[Arm, ...] = get_args(Arm)
_SHOWN_PROBLEMS = 8
_SAMPLED = "not comparable: its answers were sampled, the others are greedy"
_Known = TypeVar("_Known")


def sort_runs(runs: Sequence[Run]) -> list[Run]:
    """Order runs: the base first, then by method, task, arm, seed and name."""

    def key(run: Run) -> tuple[object, ...]:
        method = METHODS.index(run.method) if run.method in METHODS else len(METHODS)
        return method, run.method, run.task, _ARMS.index(run.arm), -1 if run.seed is None else run.seed, run.name

    return sorted(runs, key=key)


def read_study(folders: Sequence[Path]) -> Study:
    """Read every finished run and evaluation under some folders.

    Args:
        folders: searched to any depth; a folder reached twice is read once.

    Raises:
        RecordError: a folder holds nothing finished, a file is damaged, or results may not stand in one study (see `survey`).
    """
    study, problems = survey(folders)
    if problems:
        more = f"\n… and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise RecordError("\n".join(problems[:_SHOWN_PROBLEMS]) + more)
    if not study.runs:
        reasons = "".join(f"\n{one.folder}: {one.why}" for one in study.missing[:_SHOWN_PROBLEMS])
        raise RecordError(f"{', '.join(map(str, folders))}: no finished run or evaluation{reasons}")
    return study


def survey(folders: Sequence[Path]) -> tuple[Study, list[str]]:
    """Read what there is, and say what forbids to compare it.

    Returns:
        The study, and its problems, one line each: other versions of a task's data, the same run twice, no seed, several base models, a
        main arm that cannot be told or is no unity. Empty where all is well; tables may be made only then.

    Raises:
        RecordError: a folder does not exist or holds nothing of ours, or a file is damaged.
    """
    found = find(folders)
    pool = Pool()
    evaluations, missing = _read_evaluations(found, pool)
    drafts, unfinished, problems = _join(found, evaluations)
    runs, clashes = _finish(drafts)
    problems += clashes
    named = frozenset(draft.name for draft in drafts if draft.arm is not None)
    runs, ties = arms.infer_arms(runs, named)
    problems += [*ties, *arms.check_runs(runs), *_check_identities(runs), *_check_bases(runs)]
    parity = tuple(content for path in found.parity if isinstance(content := read_json(path), dict))
    missing = [*found.missing, *missing, *unfinished]
    known = {*(one.name for one in runs), *(one.name for one in missing)}
    missing += [Missing(name, folder, "planned, but not run yet") for name, (folder, _) in found.planned.items() if name not in known]
    everything = sorted(missing, key=lambda one: (str(one.folder), one.name))
    return Study(tuple(sort_runs(runs)), tuple(everything), parity), problems


def _above(folder: Path, known: Mapping[Path, _Known]) -> tuple[Path, _Known] | tuple[None, None]:
    """A folder, or the nearest one above it, of which something is known; and that."""
    return next(((one, known[one]) for one in (folder, *folder.parents) if one in known), (None, None))


def _read_evaluations(found: Found, pool: Pool) -> tuple[list[Evaluation], list[Missing]]:
    evaluations, missing = [], []
    for folder, run in found.own.items():
        if is_sampled(run):
            missing.append(Missing(folder.name, folder, _SAMPLED))
        else:
            evaluations.append(read_own(folder, run, pool))
    for path in found.foreign:
        if is_sampled_plain(path):
            missing.append(Missing(path.parent.name, path.parent, _SAMPLED))
        else:
            evaluations.append(read_foreign(path, _above(path.parent, found.declared)[1], pool))
    return [one for one in evaluations if one.results], missing


@dataclass(slots=True)
class _Draft:
    """A run while its evaluations are gathered."""

    folder: Path
    training: Mapping[str, Any] | None
    record: Mapping[str, Any]
    name: str = ""
    arm: Arm | None = None
    trained: bool = False
    evaluations: list[Evaluation] = field(default_factory=list)


def _join(found: Found, evaluations: Sequence[Evaluation]) -> tuple[list[_Draft], list[Missing], list[str]]:
    """Give each evaluation to the run whose checkpoint it evaluated; those without such a run are runs of their own."""
    drafts: dict[Path, _Draft] = {}
    missing: list[Missing] = []
    for folder, run in found.trainings.items():
        training = {key: run[key] for key in ("method", "task", "seed")} | {"level": run["config"].get("level", 1)}
        try:
            _task_names(training["task"], training["level"])
        except UnknownTaskError as error:
            raise RecordError(f"{folder / 'run.json'}: {error}") from None
        why = _unfinished(run)
        if why:
            missing.append(Missing(folder.name, folder, why))
        drafts[folder] = _Draft(folder, training, run, trained=True)
    by_weights: dict[tuple[str, str], _Draft] = {}
    alone: list[Evaluation] = []
    places = {folder.resolve(): draft for folder, draft in drafts.items()}
    for one in evaluations:
        home = _home(one, drafts, places)
        if home is None:
            alone.append(one)
        else:
            home.evaluations.append(one)
            by_weights[one.weights, repr(_asked(one.training))] = home
    hashes: dict[str, set[str]] = {}
    for one in evaluations:
        if one.weights != one.model:
            hashes.setdefault(one.model, set()).add(one.weights)
    for one in alone:
        # Of a model of the hub plain lmms-eval records the name alone; an evaluation of ours under that name tells the hash.
        if one.weights == one.model and len(hashes.get(one.model, ())) == 1:
            one = replace(one, weights=next(iter(hashes[one.model])))
        key = (one.weights, repr(_asked(one.training)))
        if key not in by_weights:
            by_weights[key] = _Draft(one.folder, one.training, one.record)
        by_weights[key].evaluations.append(one)
    unfinished = {one.folder for one in missing}
    strays = {repr(_asked(one.training)) for one in alone}  # may be evaluations of a cell: which, is asked below
    for draft in drafts.values():
        lacking = not draft.evaluations and repr(_asked(draft.training)) not in strays
        if lacking and draft.folder.parent in found.grids and draft.folder not in unfinished:
            missing.append(Missing(draft.folder.name, draft.folder, "trained, but not evaluated yet: run the same command again to go on"))
            unfinished.add(draft.folder)
    kept = [draft for draft in drafts.values() if draft.folder not in unfinished]
    kept += [draft for draft in by_weights.values() if not draft.trained]
    problems = []
    for draft in kept:
        place, cell = _above(draft.folder, found.cells)
        if place is not None and cell is not None and (place == draft.folder or place not in found.trainings):
            draft.name, draft.arm = str(cell.get("name") or ""), cell.get("arm")
            draft.folder = draft.folder if draft.trained else place
        problems += _check_one(draft)
    return kept, missing, problems


def _unfinished(run: Mapping[str, Any]) -> str:
    status = run.get("status")
    if status == "finished":
        return ""
    if status == "stopped":
        return f"stopped before its last step: {(run.get('results') or {}).get('stopped', 'no reason recorded')}"
    return "unfinished: training is under way or was killed; run the same command again to go on"


def _asked(training: Mapping[str, Any] | None) -> tuple[Any, ...] | None:
    return None if training is None else (training["method"], _task_names(training["task"]), training.get("seed"))


def _home(one: Evaluation, drafts: Mapping[Path, _Draft], places: Mapping[Path, _Draft]) -> _Draft | None:
    """The training run that made an evaluated checkpoint: by place, else by the checkpoint's path; what both say of training must agree."""
    if one.training is None:
        return None
    asked = _asked(one.training)
    model = Path(one.model)
    written = [draft for draft in drafts.values() if Path(str(draft.record["config"].get("out", ""))) in model.parents]
    candidates = [_above(one.folder, drafts)[1], _above(model.resolve(), places)[1], written[0] if len(written) == 1 else None]
    return next((draft for draft in candidates if draft is not None and _asked(draft.training) == asked), None)


def _check_one(draft: _Draft) -> list[str]:
    """Evaluations of one run must be of one checkpoint, one a task."""
    by_task: dict[str, Evaluation] = {}
    twice: dict[tuple[Path, Path], tuple[list[str], bool]] = {}
    for one in draft.evaluations:
        for task in one.results:
            other = by_task.setdefault(task, one)
            if other is not one:
                twice.setdefault((other.folder, one.folder), ([], other.weights == one.weights))[0].append(task)
    problems = [
        f"{first} and {second} both evaluate {', '.join(tasks)}, with {'the same weights' if same else 'two checkpoints of one run'}; "
        "name one of them, or move the other away"
        for (first, second), (tasks, same) in twice.items()
    ]
    weights = {one.weights: one for one in draft.evaluations}
    if len(weights) > 1 and not problems:
        first, second = list(weights.values())[:2]
        problems.append(
            f"{first.folder} and {second.folder} evaluate different checkpoints of the run {draft.folder}; evaluate one on all tasks"
        )
    return problems


def _task_names(task: str, level: int = 1) -> str:
    """Full names of the tasks trained on, once each: `gr-synth` at level 3 is `mr1_gr_synth_l3`."""
    specs = [get_spec(name) for name in task.split(",")]
    if level != 1:
        specs = [get_spec(f"{spec.data}_l{level}") if spec.synthetic else spec for spec in specs]
    return ",".join(dict.fromkeys(spec.name for spec in specs))


def _finish(drafts: Sequence[_Draft]) -> tuple[list[Run], list[str]]:
    """Make the runs, each with a name of its own."""
    runs = [_run(draft) for draft in drafts]
    labels = Counter(_label(run) for draft, run in zip(drafts, runs, strict=True) if not draft.name)
    taken: dict[str, Path] = {}
    problems = []
    for position, (draft, run) in enumerate(zip(drafts, runs, strict=True)):
        name = _slug(draft.name)
        if name and name in taken:
            problems.append(f"{taken[name]} and {draft.folder} are cells of the same name, {name}; leave one out")
        if not name:
            label = _label(run)
            name = label if labels[label] == 1 else f"{label}-{_slug(draft.folder.name)}"
        stem, number = name, 2
        while name in taken:
            name, number = f"{stem}-{number}", number + 1
        taken[name] = draft.folder
        draft.name = name
        runs[position] = replace(run, name=name)
    return runs, problems


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-.")


def _label(run: Run) -> str:
    if run.method == "base":
        return "base"
    seed = "" if run.seed is None else f"-s{run.seed}"
    return f"{_slug(run.method)}-{run.task.replace('mr1_', '').replace('_', '-').replace(',', '+')}{seed}"


def _run(draft: _Draft) -> Run:
    first = draft.evaluations[0] if draft.evaluations else None
    results: dict[str, Result] = {}
    for one in draft.evaluations:
        for task, result in one.results.items():
            results.setdefault(task, result)
    ordered = {spec.name: results[spec.name] for spec in SPECS if spec.name in results}
    weights = first.weights if first else ""
    if draft.training is None:
        return Run("", draft.folder, first.model if first else "", weights, "base", "", None, "main", {}, "", draft.record, results=ordered)
    training = draft.training
    trained = draft.record if draft.trained else {}
    return Run(
        name="",
        folder=draft.folder,
        model=first.model if first else str(draft.folder / (trained.get("last") or "last")),
        weights=weights,
        method=str(training["method"]),
        task=_task_names(training["task"], training.get("level", 1)),
        seed=training.get("seed"),
        arm=draft.arm or "main",
        config=trained.get("config", {}),
        start=str((trained.get("identity") or {}).get("weights_sha256") or ""),
        record=draft.record,
        metrics=read_course(draft.folder / "metrics.jsonl") if draft.trained else (),
        evals=read_course(draft.folder / "evals.jsonl") if draft.trained else (),
        results=ordered,
    )


def _check_bases(runs: Sequence[Run]) -> list[str]:
    bases = [run for run in runs if run.method == "base"]
    if len(bases) < 2:
        return []
    shown = ", ".join(f"{run.model} in {run.folder}" for run in bases[:4])
    return [
        f"{len(bases)} models without a training record: {shown}. A study has one base: give each model its report, or say what was "
        f'trained in a {DECLARATION} beside the results: {{"method": "grpo", "task": "gr", "seed": 0}}'
    ]


def _check_identities(runs: Sequence[Run]) -> list[str]:
    """Results of a task must be answers to the same questions, asked in the same way."""
    problems = []
    for task in dict.fromkeys(task for run in runs for task in run.results):
        results = [run.results[task] for run in runs if task in run.results]
        for key in IDENTITY:
            values: dict[str, list[Result]] = {}
            for result in (one for one in results if key in one.identity):
                values.setdefault(str(result.identity[key]), []).append(result)
            problems += _mixed(task, key, values)
        if any(problem.startswith(f"{task} ") for problem in problems):
            continue
        problems += _check_items(task, [one for one in results if one.answers])
    return problems


def _check_items(task: str, results: Sequence[Result]) -> list[str]:
    """Where nothing is recorded of the data, its golds tell whether it is the same."""
    groups: dict[tuple[tuple[int, str], ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple((answer.doc_id, answer.gold) for answer in result.answers), []).append(result)
    (most, *others) = sorted(groups.items(), key=lambda pair: -len(pair[1])) if groups else [((), [])]
    problems = []
    for items, group in others:
        if len(items) != len(most[0]):
            what = f"has {len(most[0])} items in {most[1][0].folder} and {len(items)} in {group[0].folder}: use the same --limit"
        else:
            here, there = next((a, b) for a, b in zip(most[0], items, strict=True) if a != b)
            what = (
                f"has other items in {most[1][0].folder} (item {here[0]}, gold {here[1]!r}) than in {group[0].folder} (item {there[0]}, "
                f"gold {there[1]!r}): they are other versions of the data"
            )
        problems.append(f"{task} {what}; evaluate one of them again, or leave it out")
    return problems


def _mixed(task: str, key: str, values: Mapping[str, Sequence[Result]]) -> list[str]:
    if len(values) < 2:
        return []
    (first, most), *others = sorted(values.items(), key=lambda pair: -len(pair[1]))
    return [
        f"{task} was evaluated differently in {most[0].folder} ({key} {first}; {len(most)} so) and {group[0].folder} ({key} {value}; "
        f"{len(group)} so): they may not stand in one table; evaluate one of them again, or leave it out"
        for value, group in others
    ]
