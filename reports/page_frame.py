"""What every page of ours shares: templates that escape, the content security policy, style sheets with the methods' colours, scripts.

A page is a folder that opens from a file, without a server and without a network. This module must not know what a page says.
"""

from __future__ import annotations

import re
import shutil
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from mr1_bench.reports import page_text
from mr1_bench.reports.figure_style import DARK, LIGHT, METHOD_STYLES, Theme, method_name, task_name
from mr1_bench.tables import p_value

FILES = Path(__file__).parent / "page_files"
POLICY = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file:; img-src 'self' file: data:; base-uri 'none'; form-action 'none'"
)
"""Content security policy: nothing but the files of the page's own folder, and no connection at all. `file:` is for browsers in which
`'self'` does not cover a page opened from a file."""


_NAMES = re.compile(r"GRPO-D|\bacc(?:_r1v)?\b|\bmr1_\w+")


def _sentence(text: str) -> Markup:
    """Escape a sentence of ours and keep names of methods in one piece, metrics and tasks as code."""

    def dress(match: re.Match[str]) -> str:
        return f'<span class="method">{match[0]}</span>' if match[0] == "GRPO-D" else f"<code>{match[0]}</code>"

    return Markup(_NAMES.sub(dress, str(escape(text))))


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The templates; whatever is put into them is escaped."""
    made = Environment(loader=FileSystemLoader(FILES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {
        "pct": page_text.percent,
        "pct2": lambda share: f"{100 * share:.2f}",
        "relative": lambda share: f"{100 * share:+.2f}".replace("-", "−"),
        "points": page_text.points,
        "p": p_value,
        "sentence": _sentence,
        "method_name": method_name,
        "task_name": lambda task: page_text.join([task_name(one) for one in task.split(",")]),
    }
    return made


def _colours() -> str:
    """The style sheet of the methods' colours, from the figures' own."""

    def rules(theme: Theme, scope: str) -> str:
        known = "".join(f"{scope} .m-{method} {{ --method: {theme.colour(method)}; }}\n" for method in METHOD_STYLES)
        return known + f"{scope} .m-other {{ --method: {theme.colour('other')}; }}\n"

    dark = rules(DARK, ':root:not([data-theme="light"])')
    tone = ".track { color: var(--method); }\n"
    return (
        f"/* Written from figure_style.py: one colour a method, everywhere. */\n{tone}{rules(LIGHT, ':root')}"
        f"@media screen and (prefers-color-scheme: dark) {{\n{dark}}}\n"
        f"@media screen {{\n{rules(DARK, ':root[data-theme=dark]')}}}\n"
    )


def write_assets(out: Path) -> None:
    """Write the style sheets and scripts that every page of ours shares, into `out`/assets."""
    target = out / "assets"
    target.mkdir(parents=True, exist_ok=True)
    for name in ("page.css", "page.js", "gallery.js"):
        shutil.copyfile(FILES / name, target / name)
    (target / "colours.css").write_text(_colours(), encoding="utf-8")
