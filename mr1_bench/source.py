"""Which commit the running code is of, for run records. It must not know what is recorded."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
from pathlib import Path


def commit() -> str | None:
    """Return the commit that the code is of, with `+changes` where its source tree has been edited; None where nothing tells it.

    It is the HEAD of the git repository that this file is tracked in, else the commit that pip installed the package from.
    """
    package = Path(__file__).resolve().parent
    if _git(package, "ls-files", "--error-unmatch", Path(__file__).name):
        head = _git(package, "rev-parse", "HEAD")
        changed = _git(package.parent, "status", "--porcelain", "--", *(package.name, "tasks", "trainers", "reports"))
        return f"{head}+changes" if head and changed else head or None
    try:
        distribution = importlib.metadata.distribution("mr1-bench")
        source = json.loads(distribution.read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, OSError, ValueError):
        return None
    if Path(str(distribution.locate_file("mr1_bench"))).resolve() != package:
        return None  # another copy is the installed one
    return (source.get("vcs_info") or {}).get("commit_id")


def _git(folder: Path, *words: str) -> str:
    """What git says of a folder; empty where there is no git or no repository, or it does not answer."""
    # A hook's own variables would point git to another repository; without optional locks nothing is written.
    told = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(["git", *words], cwd=folder, env=told, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
