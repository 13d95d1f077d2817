"""Makes `lmms-eval --tasks mr1_gr` work after installation, with no flag.

lmms-eval (0.7.3) has an entry-point group for models only. Its callables run when `lmms_eval.models` is imported, which the command
line does before it indexes tasks. Ours returns no model and wraps `TaskManager.initialize_tasks`, so that our task folder is always part
of the index.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def task_folder() -> Path:
    """Return the folder with our lmms-eval YAML files (also an argument for `--include_path`)."""
    found = find_spec("mr1_bench.tasks")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("mr1_bench.tasks is missing: the installation is incomplete; reinstall mr1-bench")
    return Path(next(iter(found.submodule_search_locations)))


def register() -> list[Any]:
    """Add our task folder to lmms-eval's task index; return no models. Calling it twice changes nothing."""
    from lmms_eval.tasks import TaskManager

    original = TaskManager.initialize_tasks
    if getattr(original, "adds_mr1_tasks", False):
        return []

    @functools.wraps(original)
    def initialize_tasks(self: Any, include_path: str | list[str] | None = None, include_defaults: bool = True) -> Any:
        paths = [include_path] if isinstance(include_path, str) else list(include_path or [])
        return original(self, include_path=[*paths, str(task_folder())], include_defaults=include_defaults)

    initialize_tasks.adds_mr1_tasks = True  # type: ignore[attr-defined]
    TaskManager.initialize_tasks = initialize_tasks
    return []
