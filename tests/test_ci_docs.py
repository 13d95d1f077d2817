"""The CI examples and the page on CI: they are YAML of the right shape, our CLI takes every command in them, and their steps gate."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mr1_bench.cli import COMMANDS, build_parser
from mr1_bench.specs import expand
from tests import studies

ROOT = Path(__file__).parents[1]
GITHUB, GITLAB = (ROOT / "docs" / "examples" / "ci" / f"{name}.yml" for name in ("github", "gitlab"))
HOSTS = re.compile(r"https?://|pypi|npmjs|anaconda|ghcr|docker\.io|quay\.io|index-url", re.IGNORECASE)


def github() -> dict[str, Any]:
    """The only job."""
    return yaml.safe_load(GITHUB.read_text(encoding="utf-8"))["jobs"]["gate"]  # type: ignore[no-any-return]


def gitlab() -> dict[str, Any]:
    """The only job."""
    return yaml.safe_load(GITLAB.read_text(encoding="utf-8"))["model gate"]  # type: ignore[no-any-return]


def scripts() -> dict[str, tuple[list[str], dict[str, str]]]:
    """The shell lines and variables of each example."""
    one, two = github(), gitlab()
    return {"github": ([step["run"] for step in one["steps"] if "run" in step], one["env"]), "gitlab": (two["script"], two["variables"])}


def commands(line: str, variables: dict[str, str]) -> list[list[str]]:
    """Our commands in a line of shell, with variables put in."""
    found = []
    for part in re.split(r";|&&|\bthen\b", line):
        words = shlex.split(part, comments=True)
        if words and words[0] == "mr1-bench":
            found.append([re.sub(r"\$\{?(\w+)\}?", lambda match: variables[match[1]], word) for word in words[1:]])
    return found


def documented() -> list[list[str]]:
    """Our commands in the page's blocks."""
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "docs" / "ci.md").read_text(encoding="utf-8"), re.DOTALL)
    return [command for block in blocks for line in block.splitlines() for command in commands(line, {})]


ALL = [command for lines, variables in scripts().values() for line in lines for command in commands(line, variables)] + documented()


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_our_cli_takes_every_command(command: list[str]) -> None:
    assert command[0] in COMMANDS
    args = build_parser(command[0]).parse_args(command)
    if command[0] == "eval":
        assert expand(args.tasks) == ["mr1_vc_synth", "mr1_gr_synth"]


def test_each_example_evaluates_gates_and_saves() -> None:
    for lines, variables in scripts().values():
        found = [command[:2] if command[0] == "baseline" else command[:1] for line in lines for command in commands(line, variables)]
        assert found == [["eval"], ["regress"], ["baseline", "save"]]
    assert len(documented()) == 4


def test_commands_are_found_within_a_line_of_shell() -> None:
    line = 'if [ "$A" = b ]; then mr1-bench regress --baseline "$A"; fi'
    assert commands(line, {"A": "x"}) == [["regress", "--baseline", "x"]]


@pytest.mark.parametrize("path", [GITHUB, GITLAB, ROOT / "docs" / "ci.md"], ids=lambda path: path.name)
def test_no_host_is_named_and_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not HOSTS.search(text)
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (path.parent / link).is_file(), link


def test_the_github_workflow_has_the_shape_that_github_reads() -> None:
    whole = yaml.safe_load(GITHUB.read_text(encoding="utf-8"))
    assert set(whole) == {"name", True, "permissions", "jobs"}  # YAML 1.1 reads the key `on` as true
    assert set(whole[True]) == {"pull_request", "push"} and whole["permissions"] == {"contents": "read"}
    job = github()
    assert set(job) == {"runs-on", "timeout-minutes", "env", "steps"}
    for step in job["steps"]:
        assert ("uses" in step) != ("run" in step) and set(step) <= {"uses", "run", "with", "name", "if"}
        assert "uses" not in step or re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
        assert "${{" not in step.get("run", "")  # nothing that an outsider names becomes shell
    names = [step.get("name") for step in job["steps"]]
    assert names.index("Evaluate") < names.index("Gate") < names.index("Summary")
    late = [step for step in job["steps"] if step.get("if") == "always()"]
    assert len(late) == 2 and late[1]["with"]["path"].split()[:2] == ["runs/gate", "runs/candidate/eval"]


def test_the_gitlab_job_has_the_shape_that_gitlab_reads() -> None:
    job = gitlab()
    assert set(job) == {"image", "timeout", "variables", "rules", "script", "artifacts"}
    kept = job["artifacts"]
    assert kept["when"] == "always" and kept["reports"] == {"junit": "runs/gate/junit.xml"}
    assert kept["expose_as"] and not any("$" in path or "*" in path for path in kept["paths"])  # which GitLab asks of exposed paths
    assert all(set(rule) == {"if"} for rule in job["rules"]) and all(isinstance(line, str) for line in job["script"])


# --- the steps, run


@pytest.fixture
def team(tmp_path: Path) -> Path:
    """A team's checkout with an evaluated candidate and a committed baseline; `mr1-bench` and `python` stand on its path."""
    study = studies.make_study(n=60, seeds=1, sweeps=False)
    for name, run in {"trusted": study.runs[-1], "candidate": study.runs[-1], "worse": study.runs[0]}.items():
        folder = studies.write_run(run, tmp_path / "made" / name, cell=False)
        (tmp_path / "runs").mkdir(exist_ok=True)
        folder.rename(tmp_path / "runs" / name)
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "mr1-bench"
    shim.write_text(f'#!/bin/sh\n[ "$1" = eval ] || exec {shlex.quote(sys.executable)} -m mr1_bench "$@"\n', encoding="utf-8")
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\n", encoding="utf-8")  # installs nothing
    for path in (tmp_path / "bin").iterdir():
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    assert shell(tmp_path, ["mr1-bench baseline save runs/trusted --to baselines/main.jsonl.gz --label main"], {}) == 0
    return tmp_path


def shell(team: Path, lines: list[str], variables: dict[str, str]) -> int:
    """Run lines as a runner does, until one fails; returns the exit code."""
    path = f"{team / 'bin'}{os.pathsep}{os.environ['PATH']}"
    known = {
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "HOME": str(team),
        "GITHUB_STEP_SUMMARY": str(team / "summary.md"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(lines)], cwd=team, env=known | variables, capture_output=True, text=True, timeout=120
    )
    print(done.stdout, done.stderr)
    return done.returncode


def steps(*, main: bool) -> tuple[list[str], list[str], dict[str, str]]:
    """GitHub's steps in order, those that run even after a failure, and the variables."""
    job = github()
    runs = [step for step in job["steps"] if "run" in step]
    shown = [step for step in runs if main or "refs/heads/main" not in step.get("if", "")]
    return (
        [one["run"] for one in shown if one.get("if") != "always()"],
        [one["run"] for one in runs if one.get("if") == "always()"],
        job["env"],
    )


def test_the_steps_pass_where_nothing_got_worse_and_the_main_branch_saves(team: Path) -> None:
    lines, always, variables = steps(main=True)
    assert shell(team, lines, variables) == 0 and shell(team, always, variables) == 0
    assert "The gate is open" in (team / "summary.md").read_text(encoding="utf-8")
    assert shell(team, ["mr1-bench baseline show baselines/main.jsonl.gz"], {}) == 0


def test_the_steps_fail_where_the_model_got_worse_and_still_say_why(team: Path) -> None:
    (team / "runs" / "candidate").rename(team / "runs" / "better")
    (team / "runs" / "worse").rename(team / "runs" / "candidate")
    lines, always, variables = steps(main=False)
    assert shell(team, lines, variables) == 1 and shell(team, always, variables) == 0
    assert "▼ regressed" in (team / "summary.md").read_text(encoding="utf-8")
    assert shell(team, scripts()["gitlab"][0], variables | {"CI_COMMIT_BRANCH": "main", "CI_DEFAULT_BRANCH": "main"}) == 1
    assert (team / "runs" / "gate" / "junit.xml").is_file()


def test_the_steps_fail_without_a_baseline_and_say_what_to_do(team: Path) -> None:
    (team / "baselines" / "main.jsonl.gz").unlink()
    lines, always, variables = steps(main=True)
    assert shell(team, lines, variables) == 2 and shell(team, always, variables) == 0
    assert "baseline save" in (team / "summary.md").read_text(encoding="utf-8")
    assert not (team / "baselines" / "main.jsonl.gz").exists()  # a gate that is closed saves nothing
