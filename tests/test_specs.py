"""The table of tasks: names, lookups, groups, and the YAML files held to it both ways."""

from pathlib import Path

import pytest
import yaml

from mr1_bench import prompts, specs
from mr1_bench.specs import GROUPS, SPECS, UnknownTaskError, expand, get_spec

TASKS = Path(__file__).resolve().parent.parent / "tasks"


def load(path: Path) -> dict:
    """Read a YAML file with lmms-eval's `!function` tag kept as text, includes merged."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    config = yaml.load(path.read_text(), Loader)
    if "include" in config:
        config = load(path.parent / config.pop("include")) | config
    return config


YAMLS = {path.name: load(path) for path in TASKS.glob("*.yaml")}
TASK_YAMLS = {config["task"]: config for config in YAMLS.values() if isinstance(config["task"], str)}
GROUP_YAMLS = {config["group"]: config for config in YAMLS.values() if "group" in config}


def test_yaml_and_rows_name_the_same_tasks():
    assert sorted(TASK_YAMLS) == sorted(spec.name for spec in SPECS)
    assert sorted(GROUP_YAMLS) == sorted(GROUPS)
    assert len(TASK_YAMLS) + len(GROUP_YAMLS) == len(YAMLS)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_yaml_agrees_with_its_row(spec):
    config = TASK_YAMLS[spec.name]
    assert config["dataset_kwargs"] == f"mr1_bench.tasks.adapter.data_{spec.name}"
    assert config["process_results"] == f"mr1_bench.tasks.adapter.process_{spec.name}"
    assert config["test_split"] == spec.split
    assert config["lmms_eval_specific_kwargs"] == {"default": {"prompt": spec.prompt}}
    assert spec.prompt in prompts.TEMPLATES
    assert config["generation_kwargs"] == {
        "until": ["<|im_end|>"],
        "do_sample": False,
        "temperature": 0,
        "max_new_tokens": spec.max_new_tokens,
    }
    assert config["metric_list"] == [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in spec.metrics]
    assert config["reasoning_tags"] == "none"


@pytest.mark.parametrize("group", GROUPS)
def test_group_yaml_agrees(group):
    config = GROUP_YAMLS[group]
    assert tuple(config["task"]) == GROUPS[group]
    aggregated = [entry["metric"] for entry in config.get("aggregate_metric_list", [])]
    if group != "mr1_transfer":
        assert aggregated == list(get_spec(GROUPS[group][0]).metrics)
        assert all(entry["weight_by_size"] is False for entry in config["aggregate_metric_list"])


def test_every_name_of_ours_begins_with_mr1():
    assert all(name.startswith("mr1_") for name in TASK_YAMLS)
    assert all(name.startswith("mr1") for name in GROUP_YAMLS)


def test_protocol_facts():
    vc, gr = get_spec("mr1_vc"), get_spec("mr1_gr")
    assert (vc.size, vc.max_new_tokens, gr.size, gr.max_new_tokens) == (200, 256, 754, 1024)
    assert prompts.render("vc_think", "How many?") == (
        "How many? First output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags."
    )
    assert prompts.render("gr_think", "Q {question}") == (
        "Q {question} Output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags."
    )
    assert prompts.render("gr_think_train", "Q").startswith("Q  Output the")


def test_lookup_and_expansion():
    assert get_spec("gr-synth") is get_spec("mr1_gr_synth")
    assert expand("mr1, mr1_vc,blink_counting") == ["mr1_vc", "mr1_gr", "blink_counting"]
    with pytest.raises(UnknownTaskError, match=r"no task 'gsm8k'.*mr1_gr"):
        get_spec("gsm8k")
    with pytest.raises(UnknownTaskError, match="mr1_nothing"):
        expand("mr1_nothing")


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.synthetic], ids=lambda spec: spec.name)
def test_chance_level_of_embedded_tasks(spec):
    from collections import Counter

    from mr1_bench import data

    golds = Counter(example.gold for example in data.load(spec.data, spec.split, level=spec.level, n=spec.size))
    assert golds.total() == spec.size
    assert golds.most_common(1)[0][1] / spec.size == pytest.approx(spec.chance, abs=1e-9)
    assert spec.chance < 0.25


def test_chance_level_of_real_tasks(real_data):
    import json
    from collections import Counter

    for name, file in (("mr1_vc", "superclevr_test200_counting_problems"), ("mr1_gr", "geoqa_test_prompts")):
        golds = Counter(json.loads(line)["ground_truth"] for line in (real_data / f"r1v_prompts/{file}.jsonl").open(encoding="utf-8"))
        spec = specs.get_spec(name)
        assert golds.total() == spec.size
        assert golds.most_common(1)[0][1] / spec.size == spec.chance
