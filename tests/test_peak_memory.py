"""The peak of an evaluation is that of the evaluation, not of what the process did before."""

from __future__ import annotations

import sys

import pytest

from mr1_bench.tasks import peak_memory

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="the resident peak begins anew on Linux only")
def test_the_peak_is_what_was_taken_since_the_beginning():
    earlier = bytearray(b"\1") * (300 * MIB)
    del earlier
    assert peak_memory.begin("cpu")
    before = peak_memory.peak("cpu")
    later = bytearray(b"\1") * (100 * MIB)
    grown = peak_memory.peak("cpu") - before
    assert len(later) * 0.9 < grown < 200 * MIB


def test_what_another_engine_holds_is_not_measured():
    assert not peak_memory.begin(None)
