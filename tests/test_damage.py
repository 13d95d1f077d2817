"""Whatever is changed in a file that a study is read from, the reader succeeds or says what is wrong; it never breaks down."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mr1_bench.errors import UserError
from mr1_bench.reports.analysis import analyse
from mr1_bench.reports.collect import read_study
from tests.studies import make_run, write_run
from tests.test_collect import edit, one_run
from tests.test_records import write_evaluation as write_plain

_GARBAGE = st.sampled_from(
    [None, True, 0, -1, 10**40, 0.5, float("nan"), "", "x", "\0", "a" * 300, "\ud800", [], [[]], [1], {}, {"a": {}}, {"x?": 3}]
)
_RECORDS = ("run.json", "cell.json", "metrics.jsonl", "evals.jsonl", "eval/main/run.json", "eval/main/journal.jsonl")
_RECORDS += (
    "eval/main/*samples_mr1_gr_synth.jsonl",
    "reproduce.json",
    "training.json",
    "parity.json",
    "*_results.json",
    "*_samples_mr1_gr.jsonl",
)


def _places(value, path=()):
    """Every place in a JSON value, from the outside inwards."""
    found = [path]
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        found += [place for key, inner in items for place in _places(inner, (*path, key))]
    return found


def _mutated(value, path, change):
    """The value with one place deleted (`...`), or put in its stead."""
    if not path:
        return change
    value = value.copy()
    if len(path) == 1 and change is ...:
        del value[path[0]]
    else:
        value[path[0]] = _mutated(value[path[0]], path[1:], change)
    return value


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with every kind of file that is read."""
    folder = tmp_path_factory.mktemp("whole")
    for seed in (0, 1):
        one_run(folder, seed=seed)
    one_run(folder, "sft")
    write_run(make_run("base", n=6, root=folder), folder)
    (folder / "cells/sft-gr-synth-s0/parity.json").write_text('{"differing": 2}')
    (folder / "reproduce.json").write_text('{"cells": {"grpo-gr-synth-s0": "main", "x": "beta"}}')
    write_plain(folder / "theirs", model_args="pretrained=/their/checkpoint,max_pixels=9")
    config = {"mr1_gr": {"generation_kwargs": {"max_new_tokens": 9, "temperature": 0.0}, "repeats": 1}}
    more = {"configs": config, "n-samples": {"mr1_gr": {"effective": 4}}}
    edit(next(folder.glob("theirs/*_results.json")), lambda content: content.update(more))
    (folder / "theirs/training.json").write_text('{"method": "grpo", "task": "gr", "seed": 0}')
    assert len(read_study([folder]).runs) == 5
    return folder


@pytest.mark.parametrize("name", _RECORDS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_record_whatsoever_brings_the_reader_down(whole, name, data):
    path = sorted(whole.rglob(name) if "/" not in name else whole.glob(f"cells/grpo-gr-synth-s0/{name}"))[0]
    text = path.read_text()
    rows = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
    number = data.draw(st.integers(0, len(rows) - 1))
    place = data.draw(st.sampled_from(_places(rows[number])))
    rows[number] = _mutated(rows[number], place, data.draw(_GARBAGE | st.just(...)) if place else data.draw(_GARBAGE))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        analyse(read_study([whole]))
    except UserError as error:
        assert str(error)
    finally:
        path.write_text(text)
