"""Writes a table as Markdown, CSV and LaTeX (booktabs). It must not know what a table is about.

Cells of Markdown and LaTeX are texts for people; the CSV holds the same results as plain numbers, one record a line.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mr1_bench.records import write_atomic

_LONG = 30
"""Rows beyond which a LaTeX table may break over pages."""
_WIDE = 40
"""Characters beyond which a column of texts is broken into lines in LaTeX."""
_LATEX_CHARS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_\allowbreak{}",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "β": r"$\beta$",
    "ε": r"$\varepsilon$",
    "π": r"$\pi$",
    "√": r"$\surd$",
    "−": r"$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "°": r"$^{\circ}$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "’": r"\textquoteright{}",
}
_MARKDOWN_CHARS = {"\\": "\\\\", "|": "\\|", "&": "&amp;", "<": "&lt;", ">": "&gt;", "`": "\\`", "*": "\\*", "](": "]\\("}


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        name: of its files, without ending.
        title: one line.
        note: what to know when reading it.
        header: column titles.
        rows: texts, as many a row as there are titles.
        records: the results as plain values, for CSV; all with the same keys.
    """

    name: str
    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    records: tuple[Mapping[str, object], ...]


def write_tables(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Write every table as NAME.md, NAME.csv and NAME.tex, and `all.tex`, a document of them all; each file whole or not at all.

    Returns:
        The paths, in the order of the tables.
    """
    paths = []
    for table in tables:
        for ending, text in (("md", markdown(table)), ("csv", csv_text(table)), ("tex", latex(table))):
            path = folder / f"{table.name}.{ending}"
            write_atomic(path, text)
            paths.append(path)
    write_atomic(folder / "all.tex", latex_document([table.name for table in tables]))
    return [*paths, folder / "all.tex"]


def markdown(table: Table) -> str:
    """The table as GitHub's Markdown, with title and note."""
    aligned = ["---:" if numeric else "---" for numeric in _numeric(table)]
    lines = [_markdown_row(table.header), f"| {' | '.join(aligned)} |", *map(_markdown_row, table.rows)]
    return f"# {_markdown_text(table.title)}\n\n{_markdown_text(table.note)}\n\n" + "\n".join(lines) + "\n"


def csv_text(table: Table) -> str:
    """The records as CSV (RFC 4180) with a header; None is an empty field."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(table.records[0]) if table.records else list(table.header), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.records)
    return out.getvalue()


def latex(table: Table) -> str:
    r"""The table in LaTeX for `\input`; needs the packages booktabs, longtable and textcomp, and T1 fonts."""
    columns = "".join(_column(table, index, numeric) for index, numeric in enumerate(_numeric(table)))
    head = _latex_row(table.header)
    body = "\n".join(map(_latex_row, table.rows))
    caption = f"\\caption{{{latex_text(table.title)} {latex_text(table.note)}}}\\label{{tab:{table.name.replace('_', '-')}}}"
    if len(table.rows) > _LONG:
        return (
            f"{{\\footnotesize\n\\begin{{longtable}}{{{columns}}}\n{caption}\\\\\n\\toprule\n{head}\n\\midrule\n\\endfirsthead\n\\toprule\n{head}\n"
            f"\\midrule\n\\endhead\n\\bottomrule\n\\endfoot\n{body}\n\\end{{longtable}}\n}}\n"
        )
    return (
        f"\\begin{{table}}[htbp]\n\\centering\\footnotesize\n{caption}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head}\n\\midrule\n{body}\n"
        "\\bottomrule\n\\end{tabular}\n\\end{table}\n"
    )


def latex_document(names: Sequence[str]) -> str:
    """A document that shows the tables of these names, which lie beside it."""
    packages = "\\usepackage[utf8]{inputenc}\n\\usepackage[T1]{fontenc}\n\\usepackage{textcomp,booktabs,longtable}\n"
    page = "\\usepackage[a3paper,landscape,margin=15mm]{geometry}\n\\begin{document}\n"
    inputs = "".join(f"\\input{{{name}}}\n\\clearpage\n" for name in names)
    return f"% pdflatex all.tex\n\\documentclass{{article}}\n{packages}{page}{inputs}\\end{{document}}\n"


def latex_text(text: str) -> str:
    """Escape text for LaTeX; a character that pdflatex may not know is written as its code point."""
    return "".join(_LATEX_CHARS.get(char) or _latex_char(char) for char in text)


def _latex_char(char: str) -> str:
    if char.isspace():
        return " "
    return char if char.isascii() and char.isprintable() else f"{{[}}U+{ord(char):04X}{{]}}"


def _latex_row(cells: Sequence[str]) -> str:
    # A bracket at the start of a row would be taken for the option of the line break before it.
    return " & ".join(f"{{{latex_text(cell)}}}" for cell in cells) + r" \\"


def _column(table: Table, index: int, numeric: bool) -> str:
    if numeric:
        return "r"
    return "p{60mm}" if any(len(row[index]) > _WIDE for row in table.rows) else "l"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_markdown_text, cells))} |"


def _markdown_text(text: str) -> str:
    return re.sub(r"]\(|.", lambda match: _MARKDOWN_CHARS.get(match[0], match[0]), " ".join(text.split()))


def _numeric(table: Table) -> list[bool]:
    """Columns of numbers, which are aligned to the right: every cell is empty or begins with a number and holds no words."""
    number = re.compile(r"[<>+\-−]?\s?\d[^A-Za-z]*|")
    return [bool(table.rows) and all(number.fullmatch(row[index]) for row in table.rows) for index in range(len(table.header))]
