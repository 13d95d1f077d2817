"""Plain tables on a terminal: aligned columns that never wrap, the same when piped into a file."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def percent(value: float, low: float, high: float, sign: str = "") -> str:
    """Return a share and its interval in per cent, as `63.0 [55.5, 70.1]`; `sign="+"` marks positive numbers too."""
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def p_value(p: float) -> str:
    """Return a p-value as it is printed: `0.034`, `0.0042`, `< 0.0001`."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def p_text(p: float) -> str:
    """Return a p-value in a sentence: `p = 0.034`, `p < 0.0001`."""
    return f"p {p_value(p)}" if p < 0.0001 else f"p = {p_value(p)}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Return the table as text, one line a row.

    Args:
        header: column titles.
        rows: cells, as many a row as there are titles.
        right: indices of the columns aligned to the right.
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(_width, column)) for column in columns]

    def line(cells: Sequence[str]) -> str:
        padded = []
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            gap = " " * (width - _width(cell))
            padded.append(gap + cell if index in right else cell + gap)
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), line(["─" * width for width in widths]), *map(line, rows)])


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> None:
    """Print `format_table` to standard output."""
    print(format_table(header, rows, right))
