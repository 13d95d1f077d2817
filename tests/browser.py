"""Real headless Chromium for tests: opens a page from its file, drives it with a script, and tells what it logged and asked the network.

The page under test stands in a frame of a page of ours, which may reach into it because file access between files is allowed for that
browser process alone; the page itself gets no help.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--disable-extensions",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
    "--v=0",
)
_WRAPPER = """<!doctype html><meta charset="utf-8"><body style="margin:0"><pre id="result">nothing</pre>
<iframe id="frame" src="%(page)s" style="border:0;width:%(width)dpx;height:%(height)dpx"></iframe>
<script>
const frame = document.getElementById("frame");
const until = async (test, what) => {
  const end = Date.now() + 20000;
  while (!test()) {
    if (Date.now() > end) throw new Error("waited in vain for " + what);
    await new Promise((go) => setTimeout(go, 20));
  }
};
frame.addEventListener("load", async () => {
  const page = frame.contentWindow, doc = frame.contentDocument;
  let result;
  try { result = {value: await (async () => { %(script)s })()}; } catch (error) { result = {error: String(error.stack || error)}; }
  document.getElementById("result").textContent = JSON.stringify(result);
});
</script>"""


@dataclass(frozen=True, slots=True)
class Visit:
    """What came of one visit.

    Attributes:
        value: what the script returned.
        console: messages of the console, as logged.
        requests: addresses asked of the network, those of files excluded.
    """

    value: Any
    console: list[str]
    requests: list[str]


def find_browser() -> str:
    """Path of the browser; skips the test where there is none."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(_NAMES)} is installed")
    return found


def _run(arguments: list[str], work: Path) -> subprocess.CompletedProcess[str]:
    work.mkdir(parents=True, exist_ok=True)
    command = [find_browser(), *_QUIET, f"--user-data-dir={work / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120, check=True)


def visit(page: Path, script: str, work: Path, *, width: int = 1280, height: int = 900) -> Visit:
    """Open a page and run a script against it.

    Args:
        page: the HTML file.
        script: body of an async function that sees `page` (its window), `doc` (its document) and `until(test, what)`; returns JSON.
        work: folder for the browser's files.
        width: of the page, CSS pixels.
        height: of the page, CSS pixels.
    """
    work.mkdir(parents=True, exist_ok=True)
    wrapper, log = work / "wrapper.html", work / "net.json"
    wrapper.write_text(_WRAPPER % {"page": page.as_uri(), "width": width, "height": height, "script": script}, encoding="utf-8")
    options = ["--allow-file-access-from-files", f"--log-net-log={log}", "--virtual-time-budget=60000", "--dump-dom", wrapper.as_uri()]
    done = _run(options, work)
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    result = json.loads(html.unescape(found[1]))
    assert "error" not in result, result["error"]
    return Visit(result.get("value"), console_of(done.stderr), requests_of(log))


def dump(page: Path, work: Path) -> tuple[str, list[str]]:
    """Open a page by itself, as a user does; returns its document after the scripts ran, and its console."""
    done = _run(["--virtual-time-budget=20000", "--dump-dom", page.as_uri()], work)
    return done.stdout, console_of(done.stderr)


def print_pdf(page: Path, out: Path, work: Path) -> None:
    """Print a page to a PDF."""
    _run(["--virtual-time-budget=20000", "--no-pdf-header-footer", f"--print-to-pdf={out}", page.as_uri()], work)


def console_of(log: str) -> list[str]:
    """Messages of the pages' consoles in a browser's log."""
    return [line for line in log.splitlines() if ":CONSOLE" in line]


def requests_of(log: Path) -> list[str]:
    """Network addresses that pages asked for, in a net log; what the browser asks for itself has no origin."""
    asked = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8", errors="replace"))["events"]]
    return [one["url"] for one in asked if one.get("initiator", "not an origin") != "not an origin" and not one["url"].startswith("file:")]
