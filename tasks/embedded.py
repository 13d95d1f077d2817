"""The embedded tasks' items as parquet, the form in which lmms-eval loads data.

Files lie in the data directory and are named by what they hold, so that another version of the generator or of Pillow never reads them.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

from mr1_bench import data, synth
from mr1_bench.specs import TaskSpec


def pixels_version() -> str:
    """Return a hash of what draws the pictures: the generator's source and Pillow's version."""
    digest = hashlib.sha256(version("pillow").encode())
    for path in sorted(Path(synth.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _is_whole(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError):
        return False
    return True


def parquet_path(spec: TaskSpec) -> Path:
    """Return the file with an embedded task's items; generate it (seconds) where it is not there yet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mr1_bench.data_build import schema

    content = data.dataset_hash(spec.data, spec.split, level=spec.level or 1, n=spec.size)
    key = hashlib.sha256(f"{content}{pixels_version()}".encode()).hexdigest()[:16]
    path = data.data_dir() / "embedded" / f"{spec.name}-{spec.split}-{key}.parquet"
    if path.is_file() and _is_whole(path):
        return path
    examples = data.load(spec.data, spec.split, level=spec.level or 1, n=spec.size)
    rows = [
        {"id": one.id, "question": one.question, "gold": one.gold, "solution": one.solution}
        | {"image": {"bytes": one.image_bytes, "path": f"{one.id}.png"}, "meta": json.dumps(one.meta)}
        for one in examples
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(prefix=".", suffix=".partial", dir=path.parent)
    os.close(descriptor)
    try:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema()), partial)
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)
    return path
