"""The embedded tasks' items on disk: generated once, and again where the file is damaged."""

import os

from mr1_bench.specs import get_spec
from mr1_bench.tasks import embedded


def test_damaged_file_is_generated_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MR1_DATA_DIR", str(tmp_path))
    spec = get_spec("mr1_gr_synth")
    path = embedded.parquet_path(spec)
    whole, stamp = path.read_bytes(), path.stat().st_mtime_ns
    assert embedded.parquet_path(spec) == path
    assert path.stat().st_mtime_ns == stamp
    os.truncate(path, 1000)
    assert embedded.parquet_path(spec).read_bytes() == whole
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
