"""The command line of training: flags, files, recipes, and what is refused before any time is spent."""

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mr1_bench import cli
from mr1_bench.data import DataAbsentError
from mr1_bench.errors import UserError
from mr1_bench.trainers import checks, flags, train
from mr1_bench.trainers.config import GRPOConfig, Method, SFTConfig, TrainConfig

REQUIRED = ["--task", "vc-synth", "--model", "tiny", "--out", "runs/x"]


def resolved(*arguments: str) -> TrainConfig:
    return train.resolve(cli.build_parser("train").parse_args(["train", *arguments]))


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        resolved(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def written(folder: Path, text: str) -> str:
    path = folder / "my.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# --- flags from fields ---


@pytest.mark.parametrize("method", flags.METHODS)
def test_each_field_is_one_flag_in_one_group(method: Method) -> None:
    names = [name for group in flags.GROUPS.values() for name in group]
    assert len(names) == len(set(names))
    own = {one.name for one in fields(flags.CONFIGS[method])} - {"method"}
    assert own == set(flags.options(method))
    assert own <= set(names)


def test_help_of_a_method_shows_its_flags_alone(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for method in flags.METHODS:
        with pytest.raises(SystemExit) as stop:
            cli.main(["train", method, "--help"])
        assert stop.value.code == 0
        shown[method] = capsys.readouterr().out
    for method, text in shown.items():
        for option in flags.options(method).values():
            assert option.flag in text
    assert "--num-generations" not in shown["sft"]
    assert "--target" not in shown["grpo"]
    assert "(default: 2e-05)" in shown["sft"]
    assert "(default: linear)" in shown["grpo-d"].partition("--kl-schedule")[2].partition("--beta-min")[0]
    assert "(default: constant)" in shown["grpo"].partition("--kl-schedule")[2].partition("--beta-min")[0]


def test_help_loads_no_torch() -> None:
    code = (
        "import sys\nfrom mr1_bench import cli\n"
        "try: cli.main(['train', 'grpo-d', '--help'])\n"
        "except SystemExit: print('heavy:', [m for m in ('torch', 'transformers', 'numpy', 'datasets', 'lmms_eval') if m in sys.modules])"
    )
    root = str(Path(__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env={**os.environ, "PYTHONPATH": root})
    assert done.stdout.rstrip().endswith("heavy: []"), done.stdout[-300:] + done.stderr


def test_without_a_method_the_methods_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train"]) == 2
    shown = capsys.readouterr().out
    assert "grpo-d" in shown and "paper-2b-vc" in shown


def test_a_mistyped_flag_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "grpo", "--num-generation", "4"])
    assert stop.value.code == 2
    assert "no flag is called --num-generation; did you mean --num-generations?" in capsys.readouterr().err


def test_flags_carry_their_types() -> None:
    config = resolved("grpo", *REQUIRED, "--lr", "1", "--steps", "7", "--no-scale-advantages", "--freeze-vision", "--data", "a/b.jsonl")
    assert isinstance(config, GRPOConfig)
    assert (config.lr, config.steps, config.scale_advantages, config.freeze_vision) == (1.0, 7, False, True)
    assert isinstance(config.lr, float)
    assert config.data == Path("a/b.jsonl") and config.out == Path("runs/x")


def test_grpo_d_starts_from_a_linear_schedule_from_zero() -> None:
    config = resolved("grpo-d", *REQUIRED)
    assert isinstance(config, GRPOConfig)
    assert (config.kl_schedule, config.beta_min, config.beta_max) == ("linear", 0.0, 0.04)
    plain = resolved("grpo", *REQUIRED)
    assert isinstance(plain, GRPOConfig) and plain.kl_schedule == "constant"


def test_a_task_is_written_in_one_way() -> None:
    assert resolved("sft", "--task", "mr1_vc_synth, gr", "--model", "tiny", "--out", "x").task == "vc-synth,gr"


# --- files ---


def test_flags_win_over_the_method_table_over_shared_keys_over_defaults(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        'task = "gr"\nmodel = "tiny"\nsteps = 11\nlr = 1\nkeep = 5\nnum_generations = 4\n'
        "[sft]\nlr = 3e-3\n[grpo-d]\nsteps = 12\nlr = 2e-3\nnum_generations = 6\n",
    )
    config = resolved("grpo-d", "--config", path, "--out", "x", "--num-generations", "3")
    assert isinstance(config, GRPOConfig)
    assert (config.num_generations, config.steps, config.lr, config.keep, config.eval_items) == (3, 12, 2e-3, 5, 200)
    config = resolved("grpo", "--config", path, "--out", "x")
    assert isinstance(config, GRPOConfig)
    assert (config.num_generations, config.steps, config.lr, config.kl_schedule) == (4, 11, 1.0, "constant")
    assert isinstance(config.lr, float)
    config = resolved("sft", "--config", path, "--out", "x")
    assert isinstance(config, SFTConfig)
    assert (config.steps, config.lr) == (11, 3e-3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prompt_per_step = 3", "no setting is called 'prompt_per_step'; did you mean prompts_per_step?"),
        ("prompts-per-step = 3", "did you mean prompts_per_step?"),
        ("[grpod]\nlr = 1.0", "no setting is called 'grpod'; did you mean grpo-d?"),
        ("[sft]\nnum_generations = 3", "[sft]: no setting is called 'num_generations'"),
        ("[grpo]\nlearning = 3", "[grpo]: no setting is called 'learning'"),
        ("grpo = 3", "grpo = 3; expected a table, [grpo]"),
        ('method = "sft"', "the method is named on the command line"),
        ('steps = "10"', "steps = '10'; expected a whole number"),
        ("steps = 10.0", "steps = 10.0; expected a whole number"),
        ("steps = true", "steps = True; expected a whole number"),
        ("lr = true", "lr = True; expected a number"),
        ("stop_on_alarm = 1", "stop_on_alarm = 1; expected true or false"),
        ("data = 3", "data = 3; expected a path in quotes"),
        ("device = [0]", "device = [0]; expected a text in quotes"),
        ('[grpo-d]\nkl_schedule = "cosin"', "kl_schedule = 'cosin'; expected one of constant, linear, exponential, cosine, adaptive"),
        ('[sft]\ntarget = "answers"', "target = 'answers'; expected one of solution, answer; did you mean answer?"),
        ("steps = ", "is not readable as TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_name_whichever_method_runs(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text)
    for method in flags.METHODS:
        message = refusal(method, *REQUIRED, "--config", path)
        assert says in message and path in message


def test_config_names_a_recipe_or_a_file() -> None:
    assert "did you mean paper-2b-vc?" in refusal("grpo", *REQUIRED, "--config", "paper-2b-cv")
    assert "neither a file nor a recipe" in refusal("grpo", *REQUIRED, "--config", "no/such.toml")


def test_what_is_missing_is_named() -> None:
    assert "train sft needs --task, --out" in refusal("sft", "--model", "tiny")


@pytest.mark.parametrize("method", flags.METHODS)
@pytest.mark.parametrize("recipe", sorted(set(flags.recipes()) - {"tiny-model"}))
def test_each_recipe_serves_each_method(method: Method, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", method, "--config", recipe, "--out", "runs/x", "--dry-run"]) == 0
    printed = tomllib.loads(capsys.readouterr().out)
    stem = recipe.rpartition("-")[2]
    assert printed["task"] == (f"{stem}-synth" if recipe.startswith("tiny") else stem)


def test_there_are_the_recipes_that_the_documentation_names() -> None:
    assert set(flags.recipes()) == {f"paper-{size}-{task}" for size in ("2b", "7b") for task in ("vc", "gr")} | {
        "tiny-vc",
        "tiny-gr",
        "tiny-model",
    }


@pytest.mark.parametrize("task", ["vc", "gr"])
def test_paper_recipes_are_r1vs_settings(task: str) -> None:
    """The values of R1-V's README and of the defaults it runs with; written here a second time on purpose."""
    for method, lr in (("grpo", 1e-6), ("grpo-d", 1e-6)):
        config = resolved(method, "--config", f"paper-2b-{task}", "--out", "x")
        assert isinstance(config, GRPOConfig)
        assert (config.prompts_per_step, config.num_generations, config.max_new_tokens, config.max_pixels) == (16, 8, 512, 401408)
        assert (config.lr, config.beta_max, config.inner_updates, config.temperature) == (lr, 0.04, 1, 1.0)
        assert (config.dtype, config.kl_estimator, config.scale_advantages, config.loss_mean) == ("bfloat16", "k3", True, "sequence")
    assert resolved("sft", "--config", f"paper-2b-{task}", "--out", "x").lr == 2e-5


@pytest.mark.parametrize("path", [path for name, path in flags.recipes().items() if name.startswith("paper")], ids=lambda path: path.stem)
def test_what_the_paper_does_not_say_is_marked_an_assumption(path: Path) -> None:
    unpublished = {"steps", "format_weight", "beta_min", "beta_max", "kl_schedule", "eval_every", "lora_rank", "target"}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.partition(" = ")[0] in unpublished:
            assert "assumption: " in line, line


# --- round trips ---


def _values(option: flags.Option) -> st.SearchStrategy[Any]:
    # No line breaks in paths and names; else any text that TOML can hold.
    text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
    base: dict[type, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(-(2**40), 2**40),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.sampled_from(option.choices) if option.choices else text,
        Path: text.filter(lambda name: "\0" not in name).map(Path),
    }
    return base[option.kind] | st.none() if option.optional else base[option.kind]


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    method = draw(st.sampled_from(flags.METHODS))
    values = {name: draw(_values(option)) for name, option in flags.options(method).items()}
    return flags.CONFIGS[method](method=method, **values)


@given(configs())
def test_json_gives_back_the_configuration(config: TrainConfig) -> None:
    assert flags.from_dict(json.loads(json.dumps(config.asdict())), "run.json") == config


@given(configs())
def test_toml_gives_back_the_configuration(config: TrainConfig) -> None:
    content = tomllib.loads(flags.to_toml(config))
    assert flags.from_dict({**content, "method": config.method}, "file") == config


def test_a_record_of_another_version_is_read_or_refused_by_name() -> None:
    record = resolved("grpo", *REQUIRED).asdict()
    del record["keep"]
    assert flags.from_dict(record, "run.json").keep == 2
    with pytest.raises(UserError, match=r"run\.json: no setting is called 'keeps'; did you mean keep\?"):
        flags.from_dict({**record, "keeps": 3}, "run.json")
    with pytest.raises(UserError, match=r"run\.json: method = None; expected one of sft, grpo, grpo-d"):
        flags.from_dict({}, "run.json")


@pytest.mark.parametrize("method", flags.METHODS)
def test_a_dry_run_prints_a_file_that_says_the_same(method: Method, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [method, *REQUIRED, "--lr", "3.5e-5", "--eval-items", "17", "--freeze-vision"]
    assert cli.main(["train", *arguments, "--dry-run"]) == 0
    path = written(tmp_path, capsys.readouterr().out)
    assert resolved(method, "--config", path) == resolved(*arguments)
    assert not Path("runs/x").exists()


# --- what is refused ---

BAD = [
    ("--steps 0", "--steps 0: expected at least 1"),
    ("--num-generations 1", "--num-generations 1: expected at least 2"),
    ("--temperature 0", "--temperature 0.0: expected a number above 0"),
    ("--temperature nan", "--temperature nan: expected"),
    ("--prompts-per-step 0", "--prompts-per-step 0: expected at least 1"),
    ("--micro-prompts 9", "--micro-prompts 9: more than --prompts-per-step 8"),
    ("--max-new-tokens 0", "--max-new-tokens 0"),
    ("--max-pixels 10", "--max-pixels 10: expected at least 784"),
    ("--seed -1", "--seed -1: expected a whole number from 0"),
    ("--lr inf", "--lr inf: expected a number above 0"),
    ("--lr 0", "--lr 0.0: expected a number above 0"),
    ("--warmup-steps 100", "never reach its peak"),
    ("--adam-beta2 1", "--adam-beta2 1.0: expected a number from 0 to below 1"),
    ("--level 6", "--level 6: expected a level from 1 to 5"),
    ("--level 2 --task gr", "only the synthetic tasks have levels"),
    ("--lora-alpha 8", "give --lora-rank too"),
    ("--device gpu", "--device gpu: expected auto, cpu, cuda or cuda:N"),
    ("--images pics", "--images pics without --data"),
    ("--data my.jsonl --task vc,gr", "name the one task"),
    ("--save-every 0", "--save-every 0: expected at least 1"),
    ("--keep 0", "--keep 0: expected at least 1"),
    ("--kl-horizon 0", "--kl-horizon 0.0: expected a share"),
    ("--clip 1", "--clip 1.0: expected a number between 0 and 1"),
    ("--format-weight -1", "--format-weight -1.0: expected 0 or a number above it"),
    ("--beta-min 0.1 --beta-max 0.05", "expected 0 <= beta_min <= beta_max"),
    ("--beta-min 0.01", "leave out --beta-min 0.01"),
    ("--kl-schedule cosine", "mr1-bench train grpo-d --kl-schedule cosine"),
    ("--task vx", "--task 'vx': no such task"),
    ("--task vc-sinth", "did you mean vc-synth?"),
    ("--task vc-direct", "it asks for the bare answer"),
    ("--task gr-synth-l3", "give --task gr-synth --level 3"),
    ("--out runs --model runs", "the starting checkpoint's own folder"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=[case[0] for case in BAD])
def test_what_cannot_be_meant_is_refused_in_one_line(arguments: str, says: str) -> None:
    assert says in refusal("grpo", *REQUIRED, *arguments.split())


def test_grpo_d_refuses_bounds_in_the_wrong_order_and_an_adaptive_weight_from_zero() -> None:
    assert "expected 0 <= beta_min <= beta_max" in refusal("grpo-d", *REQUIRED, "--beta-min", "0.1")
    assert "beta_min > 0" in refusal("grpo-d", *REQUIRED, "--kl-schedule", "adaptive")
    assert resolved("grpo-d", *REQUIRED, "--kl-schedule", "adaptive", "--beta-min", "0.001").method == "grpo-d"


def test_the_rules_are_about_settings_there_are_and_hold_for_the_defaults() -> None:
    known = {name: option for method in flags.METHODS for name, option in flags.options(method).items()}
    for name, (holds, _) in checks._RULES.items():
        assert name in known
        assert known[name].default is not MISSING and holds(known[name].default), name
    numbers = {name for name, option in known.items() if option.kind in (int, float)}
    assert numbers - set(checks._RULES) == {"beta_min", "beta_max", "kl_target"}, "each number has its range; those of KL in KLWeight"


def _here(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        checks.check_here(resolved(*arguments))
    return str(caught.value)


def test_what_this_machine_lacks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MR1_DATA_DIR", str(tmp_path / "none"))
    base = ["grpo", "--model", "tiny", "--out", str(tmp_path / "run")]
    with pytest.raises(DataAbsentError, match="train split of the data set 'vc' is not built"):
        checks.check_here(resolved(*base, "--task", "vc-synth,vc"))
    synthetic = [*base, "--task", "vc-synth"]
    assert "no such file" in _here(*synthetic, "--data", str(tmp_path / "my.jsonl"))
    (tmp_path / "my.jsonl").write_text("{}\n")
    data = ["--data", str(tmp_path / "my.jsonl")]
    assert "no such folder" in _here(*synthetic, *data, "--images", str(tmp_path / "pics"))
    assert "is a file" in _here("grpo", "--task", "vc-synth", "--model", "tiny", "--out", str(tmp_path / "my.jsonl"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert 'pip install "mr1-bench[lora]"' in _here(*synthetic, "--lora-rank", "4")
    assert 'pip install "mr1-bench[trackio]"' in _here(*synthetic, "--log-to", "trackio")
    checks.check_here(resolved("grpo", "--task", "gr", *base[1:], *data))  # your own set needs no built data


def test_errors_of_the_command_are_one_line_and_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "grpo", *REQUIRED, "--num-generations", "1"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("mr1-bench: --num-generations 1") and shown.count("\n") == 1
