"""Where numbers come from: a run as the report shows it, with code, hashes, versions, seed and settings, and nothing of the machine.

Folders are named as they lie below the folders that a report is made of. This module must not know HTML.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from mr1_bench import published, stats
from mr1_bench.records import read_json
from mr1_bench.reports.study import Result, Run

_PATHS = re.compile(
    r"(?P<url>\b(?!file:)[a-z][a-z0-9+]*://\S*)"
    r"|(?P<quote>['\"`])(?:file://)?(?P<quoted>(?:/[^'\"`\n/]*){2,})(?P=quote)"  # with spaces in it, as errors of the system say it
    r"|(?<![\w./…])(?:file://)?(?P<plain>(?:/[^\s/:;,'\"`()]*){2,})"
)
_HOMES = ("home", "Users")


def _last_part(match: re.Match[str]) -> str:
    """What is left of a path, by its match."""
    if match["url"]:
        return match["url"]
    path = PurePath(match["quoted"] or match["plain"])
    last = "…" if len(path.parts) < 2 or path.parent.name in _HOMES else path.name  # a user's name is nothing of the study
    return f"{match['quote']}{last}{match['quote']}" if match["quote"] else last


class Places:
    """Names folders and cleans texts so that nothing of the machine is left in them."""

    def __init__(self, folders: Iterable[Path]) -> None:
        """Hold the folders that the report is made of."""
        self._roots = [(folder.resolve(), folder) for folder in folders]
        known = {place: root.name for root, given in self._roots for place in (root, given.absolute(), given)}
        # Their names may have spaces, with which a path in a text has no end.
        known = dict.fromkeys((Path.home(), Path.cwd(), Path(tempfile.gettempdir())), "/…") | known
        self._known = sorted(((str(one), name) for one, name in known.items() if len(one.parts) > 1), key=lambda pair: -len(pair[0]))

    def name(self, folder: Path) -> str:
        """A folder as it lies below the one that was given: `study/cells/base`; its last part where it lies below none."""
        place = folder.resolve()
        for root, _ in self._roots:
            if place.is_relative_to(root):
                return str(PurePath(root.name) / place.relative_to(root))
        return folder.name

    def clean(self, text: str) -> str:
        """A text with the given folders by name, and of any other absolute path the last part only; addresses of the network stay."""
        for known, name in self._known:
            text = re.sub(rf"(?<![\w./…]){re.escape(known)}(?![\w.-])", name, text)
        return _PATHS.sub(_last_part, text)

    def value(self, value: Any) -> Any:
        """Clean every text within a JSON value."""
        if isinstance(value, Mapping):
            return {str(key): self.value(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(inner) for inner in value]
        return self.clean(str(value)) if isinstance(value, str | Path) else value


def model_label(model: str) -> str:
    """A model as a person names it: the name on the hub, or the last part of a path."""
    known = published.model_name(model)
    return known or PurePath(model.replace("\\", "/")).name


def _made_by(record: Mapping[str, Any]) -> dict[str, Any]:
    """With which code and packages, and when, the work of a record was done."""
    identity = record.get("identity")
    code = identity.get("code_sha256") if isinstance(identity, Mapping) else None
    return {
        "commit": record.get("commit") or "",
        "code_sha256": code or record.get("code_sha256") or "",
        "packages": dict(record.get("packages") or {}),
        "when": " to ".join(str(record[key])[:16].replace("T", " ") for key in ("started", "ended") if record.get(key)),
    }


def _evaluation(folder: Path) -> dict[str, Any]:
    """The same of an evaluation of ours; empty where it is of others."""
    path = folder / "run.json"
    return _made_by(read_json(path)) if path.is_file() else {}


def provenance(run: Run, places: Places) -> dict[str, Any]:
    """Where a run's numbers come from, as JSON: folder, code, hashes, versions, seed, settings, and its results with theirs.

    Commit, code, packages and time at the top are those of the training; of a base, which has none, of its evaluation.
    """
    identity = run.record.get("identity")
    identity = identity if isinstance(identity, Mapping) else {}
    found = {
        "run": run.name,
        "folder": places.name(run.folder),
        "method": run.method,
        "task": run.task,
        "arm": run.arm,
        "seed": run.seed,
        "model": model_label(run.model) if run.method == "base" else places.clean(run.model),
        "weights_sha256": run.weights,
        "start_weights_sha256": run.start,
        "prompts_sha256": identity.get("prompts_sha256") or "",
        "data_sha256": identity.get("data_sha256") or {},
        **_made_by(run.record),
        "config": {key: value for key, value in run.config.items() if key != "out"},
        "evaluations": {places.name(folder): _evaluation(folder) for folder in {one.folder: None for one in run.results.values()}},
        "results": {task: _result(result, places) for task, result in run.results.items()},
    }
    if "model" in found["config"]:
        found["config"]["model"] = model_label(str(found["config"]["model"]))
    cleaned: dict[str, Any] = places.value(found)
    return cleaned


def _result(result: Result, places: Places) -> dict[str, Any]:
    metrics = {}
    for name, share in result.means.items():
        verdicts = result.correct(name)
        entry: dict[str, Any] = {"value": share}
        if verdicts:
            low, high = stats.wilson(sum(verdicts.values()), len(verdicts))
            entry |= {"k": sum(verdicts.values()), "n": len(verdicts), "low": low, "high": high}
        metrics[name] = entry
    known = {"folder": places.name(result.folder), "engine": result.engine, "tokens_per_s": result.tokens_per_s}
    return known | {"foreign": result.foreign, "n": result.n, "identity": dict(result.identity), "metrics": metrics}
