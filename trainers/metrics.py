"""What a run writes down while it goes: JSON lines on disk, a progress bar, and, where asked for, TensorBoard or trackio.

    OUT/metrics.jsonl   one row a step          OUT/evals.jsonl     one row an evaluation
    OUT/samples.jsonl   one row a shown completion

Each row has the key `step`: how many steps were done when it was written, so the first step's row has 1, and a run restored from a
checkpoint of 50 steps keeps the rows up to 50. A line is on the disk when the call returns; a process killed in the middle of one leaves
a part of a line, which is dropped. It must not know how a number is computed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Protocol

from tqdm import tqdm

from mr1_bench.errors import UserError
from mr1_bench.records import write_atomic

Stream = Literal["metrics", "evals", "samples"]
LogTo = Literal["none", "tensorboard", "trackio"]
Row = dict[str, Any]

STREAMS: tuple[Stream, ...] = ("metrics", "evals", "samples")
_SHARE = 0.1  # of the steps, after which a line is written where no bar can be drawn
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # JSON has no such numbers
_SHOWN = (  # key, label and form in the progress bar
    ("loss", "loss", "{:.3g}"),
    ("reward", "reward", "{:.3f}"),
    ("accuracy", "accuracy", "{:.3f}"),
    ("format", "format", "{:.3f}"),
    ("kl", "KL", "{:.2g}"),
    ("beta", "β", "{:.2g}"),
    ("tokens_per_s", "tokens/s", "{:.0f}"),
)


_BAR = "{percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class Sink(Protocol):
    """Where numbers go beside the files."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step."""

    def close(self) -> None:
        """Write what is pending."""


class MetricsLog:
    """The log of one run. `truncate_after` comes first, at the start of every process; then rows are appended in the order of their steps.

    Attributes:
        rows: all rows of metrics.jsonl so far.
    """

    def __init__(self, out: Path, log_to: LogTo = "none", *, steps: int = 0, stream: IO[str] | None = None) -> None:
        """Open the log of a run.

        Args:
            out: the run folder, which exists.
            log_to: where numbers go beside the files.
            steps: steps of the whole run, for the progress bar; 0: no bar.
            stream: where progress is shown; None: standard error. A bar where it is a terminal, else a line every tenth of the steps.

        Raises:
            UserError: `log_to` needs a package that is not installed.
        """
        self._out = out
        self._progress = _Progress(steps, sys.stderr if stream is None else stream)
        self._sink = _open_sink(out, log_to)
        self.rows: list[Row] = []

    def truncate_after(self, step: int) -> None:
        """Drop every row after a step, and a line that was cut off, from all files, each atomically; take over the rest.

        Args:
            step: steps done, as the restored checkpoint says; 0 for a fresh run.

        Raises:
            UserError: a file is damaged elsewhere than at its end.
        """
        for name in STREAMS:
            path = self._out / f"{name}.jsonl"
            kept = _truncate(path, step) if path.exists() else []
            if name == "metrics":
                self.rows = kept
        self._progress.begin(step)

    def append(self, row: Mapping[str, Any]) -> None:
        """Log the metrics of one step: to the file, to where else is asked for, and to the progress bar.

        Raises:
            UserError: the disk is full.
        """
        self._write("metrics", row)
        self.rows.append(dict(row))
        self._send(row, "")
        self._progress.show(row)

    def append_eval(self, row: Mapping[str, Any]) -> None:
        """Log one evaluation; its `split` and `task`, where it has them, become part of the names that TensorBoard and trackio show."""
        self._write("evals", row)
        self._send(row, "/".join(["eval", *(str(row[key]) for key in ("split", "task") if key in row), ""]))

    def append_sample(self, row: Mapping[str, Any]) -> None:
        """Keep one sampled completion."""
        self._write("samples", row)

    def note(self, text: str) -> None:
        """Print a text without disturbing the progress bar."""
        self._progress.note(text)

    def close(self) -> None:
        """End the progress bar, and write what is pending elsewhere."""
        self._progress.close()
        if self._sink is not None:
            self._sink.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _write(self, name: Stream, row: Mapping[str, Any]) -> None:
        line = json.dumps(_encode(row), ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass") + b"\n"
        path = self._out / f"{name}.jsonl"
        try:
            with path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}). Make room, then run the same command again: it goes on from its last "
                "checkpoint"
            ) from error

    def _send(self, row: Mapping[str, Any], prefix: str) -> None:
        if self._sink is not None:
            numbers = {f"{prefix}{key}": float(value) for key, value in row.items() if isinstance(value, int | float) and key != "step"}
            self._sink.write(int(row["step"]), numbers)


def _encode(value: Any) -> Any:
    """The value with its numbers that JSON does not know written as the texts `nan`, `inf` and `-inf`."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _encode(inner) for key, inner in value.items()}
    return [_encode(inner) for inner in value] if isinstance(value, list | tuple) else value


def _decode(row: Row) -> Row:
    return {key: _NOT_FINITE.get(value, value) if isinstance(value, str) else value for key, value in row.items()}


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a log, without a line that was cut off at its end.

    Raises:
        UserError: another line is damaged.
    """
    return [row for _, row in _parse(path)]


def _parse(path: Path) -> list[tuple[bytes, Row]]:
    """Whole lines and what they say."""
    pairs = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is empty, or was cut off
        try:
            row = json.loads(line)
            int(row["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}, is damaged ({error!r}): the disk or another program did that. Remove that line to go on without it"
            ) from None
        pairs.append((line + b"\n", _decode(row)))
    return pairs


def _truncate(path: Path, step: int) -> list[Row]:
    """Keep the rows up to a step, byte for byte, and give them."""
    kept = [(line, row) for line, row in _parse(path) if row["step"] <= step]
    content = b"".join(line for line, _ in kept)
    if len(content) != path.stat().st_size:
        write_atomic(path, content.decode("utf-8", "surrogatepass"))
    return [row for _, row in kept]


class _Progress:
    """A bar on a terminal; elsewhere a line every tenth of the steps, so that a log file stays short."""

    def __init__(self, steps: int, stream: IO[str]) -> None:
        self._steps, self._stream = steps, stream
        self._bar: tqdm[Any] | None = None
        self.begin(0)

    def begin(self, step: int) -> None:
        """Start the clock at a step."""
        self._first = self._shown = step
        self._started = time.monotonic()

    def show(self, row: Mapping[str, Any]) -> None:
        """Show a step's numbers."""
        step = int(row["step"])
        text = ", ".join(f"{label} {form.format(row[key])}" for key, label, form in _SHOWN if row.get(key) is not None)
        if self._steps and self._stream.isatty():
            self._draw(step, text)
        elif self._steps and (step == self._steps or step - self._shown >= self._steps * _SHARE):
            left = (time.monotonic() - self._started) / max(step - self._first, 1) * (self._steps - step)
            self.note(f"step {step}/{self._steps}: {text}, {tqdm.format_interval(left)} left")
            self._shown = step

    def _draw(self, step: int, text: str) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=self._steps, initial=self._first, unit="step", file=self._stream, dynamic_ncols=True, smoothing=0.1, bar_format=_BAR
            )
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(step - self._bar.n)

    def note(self, text: str) -> None:
        """Print a text, above the bar if there is one."""
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.write(text, file=self._stream)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _open_sink(out: Path, log_to: LogTo) -> Sink | None:
    if log_to == "tensorboard":
        return _TensorBoard(out)
    return _Trackio(out) if log_to == "trackio" else None


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise UserError(
            f'--log-to {package} needs the package {package}, which is not installed: pip install "mr1-bench[{package}]"'
        ) from None


class _TensorBoard:
    """Event files in OUT/tensorboard."""

    def __init__(self, out: Path) -> None:
        self._module = _import("torch.utils.tensorboard", "tensorboard")
        self._folder = str(out / "tensorboard")
        self._writer: Any = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step."""
        if self._writer is None:  # only now is it known from which step on an earlier process's numbers are to be hidden
            self._writer = self._module.SummaryWriter(self._folder, purge_step=step)
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        """Write what is pending."""
        if self._writer is not None:
            self._writer.close()


class _Trackio:
    """A run of the project `mr1-bench`, named after the run folder. Rows that a killed process logged after its last checkpoint stay."""

    def __init__(self, out: Path) -> None:
        self._module = _import("trackio", "trackio")
        place = out.resolve()
        name = f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:6]}"  # folders of the same name are different runs
        self._run = self._module.init(project="mr1-bench", name=name, resume="allow")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Write what is pending."""
        self._module.finish()
