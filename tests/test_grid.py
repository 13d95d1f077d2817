"""The grid of the reproduction: which cells there are, that none is there twice, and that a cell's printed command is the cell."""

import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mr1_bench import cli
from mr1_bench.errors import UserError
from mr1_bench.records import sha256_json
from mr1_bench.reports.grid import longest_first, make_grid, settings_of
from mr1_bench.reports.grid_progress import in_words, time_left
from mr1_bench.reports.preset import Sweep, find_preset, read_preset, shipped
from mr1_bench.specs import SPECS
from mr1_bench.trainers import train
from mr1_bench.trainers.schedule import SCHEDULES

OUT = Path("a folder/with 'quotes'")
PRESETS = tuple(shipped())


def grid(name="tiny", **changes):
    return make_grid(replace(find_preset(name), **changes), OUT)


def parse(words):
    return cli.build_parser(words[0]).parse_args(words)


def commands(line):
    """The argument lists of a printed command, without `mr1-bench` and what stands before it."""
    words = shlex.split(line, comments=True)
    parts, start = [], 0
    *ends, last = [place for place, word in enumerate(words) if word == "&&"]
    assert words[last + 1] == "echo"
    for end in [*ends, last]:
        part = words[start:end]
        parts.append(part[part.index("mr1-bench") + 1 :])
        start = end + 1
    return parts


def test_shipped_presets():
    assert PRESETS == ("smoke", "tiny", "paper-2b", "paper-7b")


@pytest.mark.parametrize("name", PRESETS)
def test_grid_is_the_papers_and_ours(name):
    preset, cells = find_preset(name), grid(name)
    base, *trained = cells
    assert base.name == "base"
    assert base.train == ()
    main = [(cell.config.method, cell.config.task.split("-")[0], cell.config.seed) for cell in trained if cell.arm == "main"]
    wanted = [(method, family, seed) for method in ("sft", "grpo", "grpo-d") for family in ("vc", "gr") for seed in preset.seeds]
    assert sorted(main) == sorted(wanted)
    swept = [cell.config for cell in trained if cell.config.task.startswith("gr") and cell.config.seed == 0]
    betas = {config.beta_max for config in swept if config.method == "grpo"}
    assert 0.0 in betas
    assert betas == set(preset.beta.values)  # so the main GRPO run is one of its points
    first = next(config for config in swept if config.method == preset.format.method)
    weights = {config.format_weight for config in swept if config.method == first.method and config.kl_schedule == first.kl_schedule}
    assert weights == set(preset.format.values)
    assert {config.kl_schedule for config in swept if config.method != "sft"} == set(SCHEDULES)


@pytest.mark.parametrize("name", PRESETS)
def test_every_checkpoint_is_evaluated_on_both_tasks_and_the_base_on_direct_answers_too(name):
    tagged = {spec.name: spec.tagged for spec in SPECS}
    families = {spec.name: spec.family for spec in SPECS}
    base, *trained = grid(name)
    for cell in trained:
        assert all(tagged[task] for task in cell.items)
        assert {families[task] for task in cell.items} == {"vc", "gr"}
    assert {families[task] for task in base.items if not tagged[task]} == {"vc", "gr"}
    assert set(trained[0].items) < set(base.items)


@pytest.mark.parametrize(("name", "count"), [("smoke", 12), ("tiny", 30), ("paper-2b", 30), ("paper-7b", 30)])
def test_cells_are_unique_and_shared_points_run_once(name, count):
    cells = grid(name)
    assert len(cells) == count
    assert len({cell.name for cell in cells}) == len(cells)
    assert len({cell.folder for cell in cells}) == len(cells)
    assert len({sha256_json(settings_of(cell.config)) for cell in cells if cell.config}) == len(cells) - 1


@pytest.mark.parametrize("name", PRESETS)
def test_printed_commands_are_the_cells(name):
    for cell in grid(name):
        *training, evaluation = commands(cell.command + "  # a remark")
        if cell.config is None:
            assert training == []
        else:
            (words,) = training
            config = train.resolve(parse(words))
            assert config == cell.config
            assert sha256_json(settings_of(config)) == sha256_json(settings_of(cell.config))
        args = parse(evaluation)
        assert args.model == str(cell.checkpoint)
        assert (args.out, args.tasks, args.limit, args.batch_size) == (cell.folder, cell.tasks, cell.limit, cell.batch_size)
        assert args.temperature == 0
        assert args.repeats == 1
        assert "\n" not in cell.command


def test_a_printed_line_says_what_the_cell_is_for(tmp_path):
    """With one seed nothing else tells the main arm from a sweep."""
    for cell in make_grid(find_preset("smoke"), tmp_path / "a folder"):
        cell.folder.mkdir(parents=True)
        subprocess.run(["sh", "-c", cell.command.rpartition(" && ")[2]], check=True)
        assert json.loads((cell.folder / "cell.json").read_text()) == {"name": cell.name, "arm": cell.arm}


def test_another_model_reaches_every_cell():
    cells = make_grid(find_preset("smoke"), OUT, "some/model")
    assert {cell.model for cell in cells} == {"some/model"}
    assert all(cell.config.model == "some/model" for cell in cells if cell.config)
    assert "--model some/model" in cells[-1].command


def test_trained_checkpoints_are_the_last_ones_not_the_best():
    assert all(str(cell.checkpoint).endswith(f"{cell.name}/last") for cell in grid()[1:])


def test_estimates_keep_the_promises_of_the_small_presets():
    tiny, smoke = grid("tiny"), grid("smoke")
    assert max(cell.cost for cell in tiny) <= 75
    assert time_left([cell.cost for cell in tiny], 2) <= 25 * 60  # of 30 minutes: workers have to start, and the report to be written
    assert time_left([cell.cost for cell in smoke], 2) <= 100


def test_the_base_comes_first_and_then_the_longest():
    order = longest_first(grid())
    assert order[0].name == "base"
    costs = [cell.cost for cell in order[1:]]
    assert costs == sorted(costs, reverse=True)


def test_more_steps_cost_more():
    preset = find_preset("tiny")
    longer = {method: {**values, "steps": 600} for method, values in preset.settings.items()}
    for short, long in zip(grid(), grid(settings=longer), strict=True):
        assert short.name == "base" or long.cost > 4 * short.cost


def test_sweeps_may_be_left_out():
    assert [cell.arm for cell in grid(beta=None, format=None, schedules={})] == ["main"] * 19


@given(st.lists(st.floats(0, 2).map(lambda value: round(value, 4)), min_size=1, max_size=6, unique=True))
@settings(max_examples=20, deadline=None)
def test_a_sweep_has_a_cell_for_each_value_that_no_other_cell_is(values):
    cells = grid(beta=Sweep("grpo", tuple(values), (0,)), format=None, schedules={}, seeds=(0,))
    assert len(cells) == 7 + sum(value != 0.04 for value in values)


def test_values_that_would_share_a_name_are_refused():
    with pytest.raises(UserError, match=r"two cells would be called grpo-gr-beta0\.5-s0"):
        grid(beta=Sweep("grpo", (0.5, 0.5000000001), (0,)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 6", "step = 6", r"\[settings\]: no key is called 'step'; did you mean steps"),
        ("steps = 6", 'steps = "many"', "steps = 'many'; expected a whole number"),
        ("limit = 40", "limit = 0", "limit = 0; expected a whole number from 1"),
        ("limit = 40", "limits = 40", "no key is called 'limits'; did you mean limit"),
        ("seeds = [0]", "seeds = [0, 0]", "a seed stands there twice"),
        ("seeds = [0]", "seeds = []", r"seeds = \[\]; expected a list of whole numbers"),
        ("seeds = [0]", "seeds = 3", "seeds = 3; expected a list of whole numbers"),
        ('device = "cpu"', 'device = "tpu"', "device = 'tpu'; expected one of cpu, cuda"),
        ('device = "cpu"', "", "has no device"),
        ("mr1_matrix_synth", "mr1_matrx", "no task or group 'mr1_matrx'"),
        ('vc = "tiny-vc"', 'vc = "tiny-cv"', "neither a file nor a recipe"),
        ("values = [0.0, 0.04]", "values = []", "expected a list of numbers"),
        ("values = [0.0, 0.04]", "values = [-1.0]", "beta_min 0.0 and beta_max -1.0"),
        ("cosine = {}", "cosinus = {}", r"\[schedules\]: no key is called 'cosinus'; did you mean cosine"),
        ("kl_target = 0.05", "kl_targt = 0.05", "no key is called 'kl_targt'; did you mean kl_target"),
        ("cell = 3.0", 'cell = "long"', "cell = 'long'; expected a number of seconds"),
        ("[cost]", "[resources]\nmemory_gib = -1\n[cost]", "expected a number of GiB"),
        ("[beta]", "[beta", "not readable as TOML"),
    ],
)
def test_mistakes_in_a_preset_are_named(tmp_path, old, new, message):
    text = shipped()["smoke"].read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        make_grid(read_preset(path), OUT)


def test_one_base_for_all_recipes(tmp_path):
    recipe = tmp_path / "other.toml"
    recipe.write_text('task = "vc-synth"\nmodel = "other"\n')
    text = shipped()["smoke"].read_text().replace('"tiny-vc"', f'"{recipe}"')
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UserError, match=r"start from different models \(other, tiny\)"):
        make_grid(read_preset(tmp_path / "mine.toml"), OUT)


def test_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean smoke"):
        find_preset("smok")


@pytest.mark.parametrize(("seconds", "words"), [(4.2, "4 s"), (119, "2 min"), (5400, "1.5 h"), (86400 * 3, "3.0 days")])
def test_times_in_words(seconds, words):
    assert in_words(seconds) == words


def test_time_left_is_never_less_than_the_longest_cell():
    assert time_left([10, 10, 10, 10], 2) == 20
    assert time_left([100, 1, 1], 2) == 100
    assert time_left([], 2) == 0
