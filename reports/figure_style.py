"""How every figure looks: one colour, marker and line style a method, two themes, sizes and fonts, and how a figure becomes files.

The colours are Okabe and Ito's, which stay apart in every common kind of colour blindness; markers and line styles say the same once
more, for print without colour. The page takes its colours from here too. This module must not know runs or statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mr1_bench.reports.study import METHOD_NAMES, METHODS
from mr1_bench.specs import SPECS, UnknownTaskError, get_spec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

WIDTH = 6.4
"""Width of every figure, inches."""
DPI = 200
"""Of the PNG: twice the pixels of a page that shows the figure at 640 px."""
FONT = 10.5
"""Points; no text is smaller than `SMALL`."""
SMALL = 9.5


@dataclass(frozen=True, slots=True)
class MethodStyle:
    """How one method is drawn, in every figure.

    Attributes:
        colour: on a light page.
        colour_dark: on a dark page; the same hue, lighter where the first would be hard to see.
        marker: matplotlib's code of the marker.
        line: matplotlib's line style.
    """

    colour: str
    colour_dark: str
    marker: str
    line: str | tuple[float, tuple[float, ...]]


METHOD_STYLES: dict[str, MethodStyle] = {
    "base": MethodStyle("#666666", "#A8A8A8", "o", (0, (1.2, 1.6))),
    "sft": MethodStyle("#0072B2", "#4AA5E0", "s", (0, (5, 1.8))),
    "grpo": MethodStyle("#E69F00", "#E69F00", "^", (0, (6, 1.6, 1.4, 1.6))),
    "grpo-d": MethodStyle("#D55E00", "#E8743B", "D", "solid"),
}
_OTHER_METHOD = MethodStyle("#8A5A9E", "#CC79A7", "P", (0, (3, 1.5)))


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure before it is drawn: what it says, and how to paint it onto an empty canvas in a theme.

    Attributes:
        name: of its files.
        title: a few words.
        caption: what was measured and what to see in it, from the data.
        alt: the same for somebody who does not see it.
        height: inches.
        paint: draws it; called once a theme, within `themed`.
    """

    name: str
    title: str
    caption: str
    alt: str
    height: float
    paint: Callable[[Canvas, Theme], None]


@dataclass(frozen=True, slots=True)
class Theme:
    """The neutral colours of a page.

    Attributes:
        name: `light` or `dark`.
        ink: text.
        muted: axes and secondary text.
        grid: grid lines.
        paper: what the figure lies on; figures are transparent, so this is used for gaps and edges only, and behind a PNG.
        ramp: from low to high, for heat maps: no colour of a method among them.
    """

    name: str
    ink: str
    muted: str
    grid: str
    paper: str
    ramp: tuple[str, ...]

    def colour(self, method: str) -> str:
        """The colour of a method."""
        style = method_style(method)
        return style.colour if self.name == "light" else style.colour_dark


LIGHT = Theme("light", "#1C1E21", "#5B6066", "#DDE0E4", "#FFFFFF", ("#F4F6F8", "#C9DDE0", "#86B8BD", "#3F8891", "#0B4F5A"))
DARK = Theme("dark", "#ECEEF1", "#A9AFB7", "#3A3F46", "#15171A", ("#22262B", "#1F454C", "#2C747E", "#5DAAB2", "#BFE6E6"))
THEMES = (LIGHT, DARK)


def method_style(method: str) -> MethodStyle:
    """The style of a method; results of others may name one that is none of ours, and get the style kept for them."""
    return METHOD_STYLES.get(method, _OTHER_METHOD)


def method_order(methods: Iterable[str]) -> list[str]:
    """Methods in the order in which tables and figures show them, each once, those of others last."""
    found = set(methods)
    return [one for one in METHODS if one in found] + sorted(found - set(METHODS))


def method_name(method: str) -> str:
    """How a person writes a method."""
    return METHOD_NAMES.get(method, shorten(method, 24))


def task_order(tasks: Iterable[str]) -> list[str]:
    """Tasks in the order of their table, each once, others last in the order given."""
    found = list(dict.fromkeys(tasks))
    ours = [spec.name for spec in SPECS]
    return sorted(found, key=lambda one: ours.index(one) if one in ours else len(ours))


def task_name(task: str) -> str:
    """How a person writes a task: `Geometry (synthetic)`; the name itself where it is none of ours."""
    if "," in task:
        return " + ".join(task_name(one) for one in task.split(","))
    try:
        spec = get_spec(task)
    except UnknownTaskError:
        return shorten(task, 28)
    kind = "Counting" if spec.family == "vc" else "Geometry"
    notes = [] if spec.level is None else ["synthetic" if spec.level == 1 else f"synthetic, level {spec.level}"]
    notes += [] if spec.tagged else ["direct answer"]
    return f"{kind} ({', '.join(notes)})" if notes else kind


def is_geometry(task: str) -> bool:
    """Whether a task is geometry reasoning."""
    try:
        return get_spec(task).family == "gr"
    except UnknownTaskError:
        return False


def shorten(text: str, most: int) -> str:
    """Make a recorded text fit a label: printable characters of one line, cut after `most` of them."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def _settings(theme: Theme) -> dict[str, Any]:
    return {
        "font.family": ["DejaVu Sans"],
        "font.size": FONT,
        "axes.titlesize": FONT,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": FONT,
        "xtick.labelsize": SMALL,
        "ytick.labelsize": SMALL,
        "legend.fontsize": SMALL,
        "legend.frameon": False,
        "legend.handlelength": 2.6,
        "legend.columnspacing": 1.4,
        "text.color": theme.ink,
        "axes.titlecolor": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.edgecolor": theme.muted,
        "axes.facecolor": "none",
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.7,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "xtick.major.size": 3.0,
        "ytick.major.size": 0.0,
        "lines.linewidth": 1.9,
        "lines.solid_capstyle": "butt",
        "lines.markersize": 5.5,
        "lines.markeredgewidth": 0.8,
        "figure.facecolor": "none",
        "figure.constrained_layout.w_pad": 0.07,
        "figure.constrained_layout.h_pad": 0.06,
        "savefig.facecolor": "none",
        "hatch.linewidth": 0.6,
        # Labels hold recorded text, in which a dollar sign is a dollar sign.
        "text.parse_math": False,
        # Widths of text then are the same in all three formats, and the layout fits all of them.
        "text.hinting": "none",
        "axes.unicode_minus": True,
        "svg.fonttype": "path",
        "svg.hashsalt": "mr1-bench",
        "pdf.fonttype": 42,
        "path.simplify": True,
    }


@contextmanager
def themed(theme: Theme) -> Iterator[None]:
    """Within this block, new figures have the theme's colours and our fonts; the caller's own matplotlib settings come back after it."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings: Any = _settings(theme)
        matplotlib.rcParams.update(settings)
        yield


def save(drawing: Drawing, folder: Path) -> dict[str, str]:
    """Draw a figure and write it: `NAME.png`, `NAME.svg` and `NAME.pdf` in the light theme, `NAME-dark.svg` in the dark one.

    The same figure gives the same bytes: no date, no version and no random id is written.

    Returns:
        the names of the files by kind: `png`, `svg`, `pdf`, `svg-dark`.
    """
    from matplotlib.figure import Figure

    files: dict[str, str] = {}
    places: list[Any] = []
    for theme in THEMES:
        with themed(theme):
            canvas = Figure(figsize=(WIDTH, drawing.height), dpi=DPI, layout="constrained")
            drawing.paint(canvas, theme)
            engine = canvas.get_layout_engine()
            if not places and engine is not None:
                engine.execute(canvas)
                places = [axes.get_position() for axes in canvas.axes]
            # The layout is computed once, not for every file and theme: it takes longer than drawing.
            canvas.set_layout_engine("none")
            for axes, place in zip(canvas.axes, places, strict=True):
                axes.set_position(place)
            files |= _write(canvas, theme, folder, drawing)
    return files


def _write(canvas: Canvas, theme: Theme, folder: Path, drawing: Drawing) -> dict[str, str]:
    # The backends' own methods: `Figure.savefig` draws everything twice.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    name, about = drawing.name, {"Title": drawing.title}
    files: dict[str, str] = {}
    if theme.name == "light":
        files = {kind: f"{name}.{kind}" for kind in ("png", "svg", "pdf")}
        # Opaque: a picture alone is pasted into mails and slides of any colour. First, since the other backends change the resolution.
        canvas.set_facecolor(theme.paper)
        png: Any = FigureCanvasAgg(canvas)
        png.print_png(folder / files["png"], metadata=about | {"Description": drawing.alt, "Software": None})
        canvas.set_facecolor("none")
        pdf: Any = FigureCanvasPdf(canvas)
        undated = {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None}
        pdf.print_pdf(folder / files["pdf"], metadata=about | {"Subject": drawing.alt} | undated)
    else:
        files = {"svg-dark": f"{name}-dark.svg"}
    svg: Any = FigureCanvasSVG(canvas)
    about |= {"Description": drawing.alt}
    svg.print_svg(folder / files.get("svg-dark", f"{name}.svg"), metadata={**about, "Date": None, "Creator": None})
    return files


def line_look(method: str, theme: Theme, *, markers: bool = True) -> Mapping[str, Any]:
    """Keyword arguments of `Axes.plot` for a method's line."""
    style = method_style(method)
    look: dict[str, Any] = {"color": theme.colour(method), "linestyle": style.line, "label": method_name(method)}
    return look | ({"marker": style.marker, "markeredgecolor": theme.paper} if markers else {})


def finish_percent(axes: Axes, label: str = "Accuracy (%)") -> None:
    """Label a y axis that shows shares in per cent, leaving room for marks at 0 and 100 but none beyond."""
    axes.set_ylabel(label)
    low, high = axes.get_ylim()
    margin = 0.02 * (min(high, 100.0) - max(low, 0.0))
    axes.set_ylim(max(low, -margin), min(high, 100 + margin))
    ticks = [tick for tick in axes.get_yticks() if max(low, 0.0) <= tick <= min(high, 100.0)]
    axes.set_yticks(ticks)


def grid_of_panels(canvas: Canvas, count: int, columns: int) -> list[Axes]:
    """Lay out panels row by row, at most `columns` in a row, all of one height and with one y scale a row."""
    columns = min(count, columns)
    rows = -(-count // columns)
    grid = canvas.subplots(rows, columns, squeeze=False)
    for spare in list(grid.flat)[count:]:
        spare.remove()
    return list(grid.flat)[:count]


def legend_above(canvas: Canvas, panels: Iterable[Axes]) -> None:
    """Put one legend of everything in the panels, each label once, above all of them: never over data."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    names = [name for name in map(method_name, METHODS) if name in entries]
    names += [name for name in entries if name not in names]
    canvas.legend([entries[name] for name in names], names, loc="outside upper left", ncols=4)


def mark_look(method: str, theme: Theme) -> dict[str, Any]:
    """Keyword arguments of `Axes.plot` for marks of a method, without a line between them."""
    return {**line_look(method, theme), "linestyle": "none"}


def error_bars(
    axes: Axes, xs: Sequence[float], ys: Sequence[float], ends: Sequence[tuple[float, float] | None], look: Mapping[str, Any]
) -> None:
    """Draw vertical error bars with caps, none where `ends` has none; apart from the marks, so that the legend shows these alone."""
    for x, y, end in zip(xs, ys, ends, strict=True):
        if end is not None:
            errors = [[max(0.0, y - end[0])], [max(0.0, end[1] - y)]]
            axes.errorbar([x], [y], yerr=errors, fmt="none", ecolor=look["color"], elinewidth=1.4, capsize=3.5, capthick=1.1)


def short_task(task: str, among: Iterable[str]) -> str:
    """`VC` or `GR`, joined by `+` where several were trained on; with what tells it from others of the same family `among`."""
    if not task:
        return ""
    try:
        specs = [get_spec(one) for one in task.split(",")]
    except UnknownTaskError:
        return shorten(task, 9)
    short = "+".join(spec.family.upper() for spec in specs)
    rivals = {one for one in among if one and one != task and short_task(one, ()) == short}
    return f"{short}\n{specs[0].data.removeprefix(specs[0].family).strip('_') or 'real'}" if rivals else short


def heat(axes: Axes, shares: list[list[float | None]], scale: tuple[float, float], theme: Theme) -> Callable[[float], str]:
    """Draw a heat map of shares; cells without a value stay empty.

    Returns:
        the colour in which text is readable on a share's cell.
    """
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.patches import Rectangle

    ramp = LinearSegmentedColormap.from_list("mr1", list(theme.ramp))
    low, high = scale
    norm = Normalize(low, high if high > low else low + 1e-9)
    for row, line in enumerate(shares):
        for column, share in enumerate(line):
            if share is not None:
                axes.add_patch(Rectangle((column - 0.48, row - 0.47), 0.96, 0.94, facecolor=ramp(norm(share)), linewidth=0))
    axes.set(xlim=(-0.5, len(shares[0]) - 0.5), ylim=(len(shares) - 0.5, -0.5), frame_on=False)
    axes.grid(visible=False)
    axes.tick_params(length=0)

    def text(share: float) -> str:
        red, green, blue, _ = ramp(norm(share))
        bright = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
        return "#000000" if bright > 0.18 else "#FFFFFF"

    return text
