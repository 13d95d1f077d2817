"""What the paper's runs would cost on GPUs: the tables and the figure of docs/scaling.md, by the model of `cost_model`.

`python perf/scaling.py` prints the tables, `--write` puts them into the document, `--figure FILE` draws.
"""

from __future__ import annotations

import argparse
import heapq
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import cost_model as of
from cost_model import KINDS, MODELS, TASKS, Model, Seconds, evaluation, fits, recipe, step, training

from mr1_bench.specs import get_spec

GPUS = (1, 8, 64)
RUNS = {"sft": "SFT", "grpo-d": "GRPO, GRPO-D"}
DOCUMENT = Path(__file__).parent.parent / "docs" / "scaling.md"
_MARKS = ("<!-- printed by perf/scaling.py -->", "<!-- end -->")
ASSUMPTIONS = (
    (
        f"{of.PEAK / 1e12:.0f} TFLOP/s, {of.BANDWIDTH / 1e12:.2f} TB/s, {of.MEMORY / 1e9:.0f} GB a GPU",
        "H100 SXM, NVIDIA's data sheet (bf16, dense)",
    ),
    (
        f"{of.NVLINK / 1e9:.0f} GB/s each way between {of.NODE} GPUs of a node",
        "NVLink 4: 900 GB/s both ways together, same sheet",
    ),
    (f"{of.INFINIBAND / 1e9:.0f} GB/s a GPU between nodes", "InfiniBand NDR, 400 Gb/s, one port a GPU"),
    (f"{100 * of.MFU:.0f} % of the peak is reached in all matrix work", "assumed; not measured here, and small batches reach less"),
    (f"{100 * of.REACHED:.0f} % of memory and network bandwidth is reached", "assumed"),
    (f"{1000 * of.LAUNCH_S:.0f} ms a decoding step beside its work", "assumed: launches, sampling, scheduling of a vLLM engine"),
    (
        f"{of.START_S:.0f} s to start a process; {of.DISK / 1e9:.0f} GB/s to load and save",
        "assumed: imports, compiling, a fast shared disk",
    ),
    (f"{of.CHARS_PER_TOKEN:.0f} characters a token, {of.CHAT_TOKENS} tokens of chat form", "assumed, for lengths below"),
    ("answers of 51 tokens (counting) and 173 (geometry) on average", "154 and 519 characters in R1-V's published base logs"),
    ("a batch decodes until 380 and 1632 tokens, or the limit", "the longest of these logs: 1139 and 4896 characters"),
    ("images of 187 tokens (CLEVR), 391 (SuperCLEVR), 22 (GeoQA)", "480x320, 640x480, and the mean of 610 GeoQA test images"),
    ("prompts of 75 (counting) and 117 (geometry) tokens beside the image", "164 and 292 characters of question and instruction"),
    (f"targets of {of.TARGET_TOKENS} tokens in SFT", "the recipes teach the bare answer"),
    ("completions carry their own prompt in the update", "TRL's way; the compact trainer computes it once a group"),
    ("rollouts by vLLM in the trainer's process, all of a GPU's at once", "assumed; `generate` of transformers launches more"),
    ("2B and 7B with adapters: data-parallel; 7B, all weights: sharded (FSDP)", "what fits in memory"),
)


def _rows() -> Iterable[list[str]]:
    for model in MODELS.values():
        for family in TASKS:
            what: list[tuple[str, Callable[[int], Seconds]]] = []
            if model is not MODELS["7B-all"]:
                name = f"mr1_{family}"
                what.append(("evaluation", lambda gpus, model=model, name=name: evaluation(model, [(name, get_spec(name).size)], gpus)))
            for method in ("sft", "grpo-d"):
                config = recipe(model, method, family)
                what.append((RUNS[method], lambda gpus, model=model, config=config: training(model, config, gpus)))
            for label, cost in what:
                yield [model.name, family.upper(), label, *(_cell(model, cost, label, gpus) for gpus in GPUS)]


def _step_rows() -> Iterable[list[str]]:
    for model in MODELS.values():
        for method, label in RUNS.items():
            config = recipe(model, method, "gr")
            for gpus in GPUS:
                if fits(model, gpus):
                    found = step(model, config, TASKS["gr"], gpus)
                    yield [model.name, label, str(gpus), *(f"{found[kind]:.3f}" for kind in KINDS[1:]), f"{found.total:.3f}"]


def _cell(model: Model, cost: Callable[[int], Seconds], label: str, gpus: int) -> str:
    if label != "evaluation" and not fits(model, gpus):
        return "does not fit"
    found = cost(gpus)
    return f"{gpus * found.total / 3600:.2f} ({found.bottleneck})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def grid_hours(model: Model, seeds: int) -> list[float]:
    """Hours of each cell of the grid on a GPU of its own."""
    found = []
    for cell in of.cells(model, seeds):
        seconds = evaluation(model, cell.items.items(), 1)
        if cell.config is not None:
            seconds += training(model, cell.config, 1)
        found.append(seconds.total / 3600)
    return found


def _makespan(hours: Sequence[float], gpus: int) -> float:
    """Wall hours of cells on GPUs, one each, the longest first."""
    ends = [0.0] * gpus
    for one in sorted(hours, reverse=True):
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


def _grid_rows() -> Iterable[list[str]]:
    for model in (MODELS["2B"], MODELS["7B"]):
        hours = grid_hours(model, 5)
        own = sum(cell.cost for cell in of.cells(model, 5)) / 3600
        yield [model.name, str(len(hours)), f"{sum(hours):.0f}", *(f"{_makespan(hours, gpus):.1f}" for gpus in GPUS), f"{own:.0f}"]


def document() -> str:
    """All tables."""
    parts = [
        _table(("assumed", "source"), ASSUMPTIONS),
        "GPU hours of one run, and what most of them go to:",
        _table(("model", "task", "run", *(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS)), _rows()),
        "Seconds of one training step on geometry, by what a GPU waits for:",
        _table(("model", "run", "GPUs", *KINDS[1:], "all"), _step_rows()),
        "The paper's whole grid with 5 seeds in every arm (main grid, both sweeps, all KL schedules), one GPU a cell, rollouts by vLLM:",
        _table(("model", "cells", "GPU hours", *(f"wall hours on {gpus}" for gpus in GPUS), "GPU hours by the preset"), _grid_rows()),
    ]
    return "\n\n".join(parts)


def embedded(text: str) -> str:
    """What a document has between the marks."""
    begin, end = _MARKS
    return text[text.index(begin) + len(begin) : text.index(end)].strip()


def draw(path: Path) -> None:
    """Draw GPU hours against GPUs, the bottleneck at each point."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    counts = [1, 2, 4, 8, 16, 32, 64]
    colours = dict(zip(KINDS, ("#777777", "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7"), strict=True))
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, constrained_layout=True)
    for panel, family in zip(panels, TASKS, strict=True):
        lines = [(f"{model.name}, GRPO-D", model, recipe(model, "grpo-d", family)) for model in MODELS.values()]
        lines += [(f"{MODELS[name].name}, SFT", MODELS[name], recipe(MODELS[name], "sft", family)) for name in ("2B", "7B")]
        for label, model, config in lines:
            shown = [gpus for gpus in counts if fits(model, gpus)]
            found = [training(model, config, gpus) for gpus in shown]
            hours = [gpus * one.total / 3600 for gpus, one in zip(shown, found, strict=True)]
            panel.plot(shown, hours, color="#bbbbbb", zorder=1)
            panel.scatter(shown, hours, c=[colours[one.bottleneck] for one in found], s=36, zorder=2)
            panel.annotate(label, (shown[-1], hours[-1]), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
        panel.set(xscale="log", yscale="log", xlabel="GPUs", title={"vc": "visual counting", "gr": "geometry reasoning"}[family])
        panel.set_xticks(counts, [str(count) for count in counts])
        panel.minorticks_off()
        panel.set_xlim(0.85, 400)
        panel.grid(alpha=0.2)
    panels[0].set_ylabel("GPU hours of one training (model, not measured)")
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=colours[kind], label=kind) for kind in KINDS]
    panels[1].legend(handles=handles, title="most of the time", fontsize=8, loc="upper left")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> int:
    """Print, write or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCUMENT.name}")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw GPU hours against GPUs")
    args = parser.parse_args()
    text = document()
    if args.write:
        pattern = re.compile(f"{re.escape(_MARKS[0])}.*{re.escape(_MARKS[1])}", re.DOTALL)
        written = pattern.sub(lambda _: f"{_MARKS[0]}\n\n{text}\n\n{_MARKS[1]}", DOCUMENT.read_text(encoding="utf-8"))
        DOCUMENT.write_text(written, encoding="utf-8")
    if args.figure:
        draw(args.figure)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
