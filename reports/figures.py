"""The figures of a report: the paper's 1 and 4 to 7 from measured data, and the ones beyond it, each as PNG, SVG and PDF.

What each shows and how it is painted stands in `figures_training`, `figures_results` and `figures_items`; how all of them look in
`figure_style`. A figure whose data is absent is not drawn. Nothing is smoothed without the caption saying so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mr1_bench.reports import analysis, figures_items, figures_results, figures_training
from mr1_bench.reports.figure_style import Drawing, save
from mr1_bench.reports.study import Study


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure that was drawn.

    Attributes:
        name: of its files, such as `figure-6-kl-weight`.
        title: a few words.
        caption: what was measured and what to see in it, from the data; plain text.
        files: file names in the figures' folder by kind: `png`, `svg`, `pdf` (light), `svg-dark`.
        alt: alternative text: the data in words.
    """

    name: str
    title: str
    caption: str
    files: Mapping[str, str]
    alt: str


def drawings(study: Study) -> list[Drawing]:
    """Every figure that the study has data for, not yet drawn."""
    over_time = analysis.curves(study)
    cells = analysis.matrix(study)
    found = [
        figures_training.accuracy(over_time),
        figures_results.format_weight(analysis.sweep(study, "format"), cells),
        figures_training.rewards(over_time),
        figures_results.kl_weight(analysis.sweep(study, "beta"), cells),
        figures_results.cross_task(cells),
        figures_results.heat_map(cells),
        figures_training.schedules(study, analysis.sweep(study, "schedule"), over_time),
        figures_training.beta_and_kl(over_time),
        figures_items.confusion(study),
        *figures_items.breakdowns(analysis.by_difficulty(study)),
    ]
    return [drawing for drawing in found if drawing is not None]


def draw_all(study: Study, folder: Path) -> list[Figure]:
    """Draw every figure that the study has data for, in both themes.

    Args:
        study: the runs.
        folder: where the files go; made if need be.

    Returns:
        the figures in the order of the report. The same study gives the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [Figure(one.name, one.title, one.caption, save(one, folder), one.alt) for one in drawings(study)]
