"""mr1-bench: evaluation, training and reports for multimodal R1-style post-training (OThink-MR1, arXiv 2503.16081).

Importing this package is light by design: no torch, lmms_eval, pandas or matplotlib.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mr1_bench.grading import Score as Score
    from mr1_bench.grading import grade as grade

__version__ = "0.1.0"
__all__ = ["Score", "__version__", "grade"]

# In the source tree `tasks/`, `trainers/` and `reports/` lie beside this folder. Run from there, Python finds this folder before
# an installed copy, so the package's path is extended to keep `mr1_bench.tasks` importable.
_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "pyproject.toml").is_file() and (_ROOT / "tasks" / "__init__.py").is_file():
    __path__.append(str(_ROOT))

_LAZY = {"Score": "mr1_bench.grading", "grade": "mr1_bench.grading"}


def __getattr__(name: str) -> Any:
    """Resolve the public names on first use, so that the import stays light."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mr1_bench' has no attribute {name!r}")
