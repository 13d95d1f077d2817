"""Which commit the running code says that it is of."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import mr1_bench
from mr1_bench import source

SHOW = "import importlib.util, sys; s = importlib.util.spec_from_file_location('s', sys.argv[1]); m = importlib.util.module_from_spec(s); "
SHOW += "s.loader.exec_module(m); print(m.commit())"


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def shown(path):
    return subprocess.run([sys.executable, "-c", SHOW, str(path)], check=True, capture_output=True, text=True).stdout.strip()


def test_a_source_tree_says_its_head_and_whether_it_was_edited(tmp_path):
    path = tmp_path / "mr1_bench" / "source.py"
    path.parent.mkdir()
    shutil.copy(Path(mr1_bench.__file__).with_name("source.py"), path)
    git(tmp_path, "init", "-q")
    assert shown(path) == "None", "a folder inside somebody's repository is not tracked in it"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "notes.txt").touch()  # no code
    assert shown(path) == head
    path.write_text(path.read_text() + "\n")
    assert shown(path) == f"{head}+changes"


def test_an_installed_package_says_what_it_was_installed_from(tmp_path, monkeypatch):
    class Installed:
        def __init__(self, text):
            self.text = text

        def read_text(self, name):
            return self.text

        def locate_file(self, name):
            return Path(source.__file__).parent

    monkeypatch.setattr(source, "_git", lambda *_: "")
    for said, commit in ((json.dumps({"url": "x", "vcs_info": {"commit_id": "abc"}}), "abc"), ('{"url": "x"}', None), (None, None)):
        monkeypatch.setattr(source.importlib.metadata, "distribution", lambda _, said=said: Installed(said))
        assert source.commit() == commit
