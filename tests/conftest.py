"""Fixtures shared by all tests: the folder of real data, and a data directory of their own."""

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("ours", deadline=None)  # a busy machine is no failure
settings.load_profile("ours")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two pytest workers on two cores; inherited by the processes that tests start
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of public data files (`MR1_REAL_DATA`); skips with the reason where it is absent."""
    value = os.environ.get("MR1_REAL_DATA")
    if not value:
        pytest.skip("MR1_REAL_DATA is not set: no real data to test against")
    folder = Path(value)
    if not folder.is_dir():
        pytest.skip(f"MR1_REAL_DATA={value} is not a folder")
    return folder.resolve()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny Qwen2-VL checkpoint."""
    from mr1_bench.trainers import tiny

    return tiny.build(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def without_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """statsmodels collects garbage at each Holm correction, which takes most of the time of tests that make many."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
