"""The processes of a run of `--engine trl`: who leads, and how the others are told what to do."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import torch.distributed as dist

from mr1_bench.errors import UserError

LIMIT = timedelta(minutes=30)
"""Longest wait for the first process's orders: it may be writing a checkpoint of a hundred gigabytes. Within a step torch's limit holds."""

_DONE, _ABORT = "done", "abort"


class Crew:
    """The processes of a run: the first leads, the others do what it orders.

    Attributes:
        rank, size: which process this is, of how many.
        actions: what can be ordered, by name; all processes do it at once, and it may be a collective operation.
    """

    def __init__(self, rank: int, size: int) -> None:
        """Begin with nothing that can be ordered."""
        self.rank, self.size = rank, size
        self.actions: dict[str, Callable[..., Any]] = {}
        self._ordered = False
        group = dist.new_group(backend="gloo", timeout=LIMIT) if size > 1 else None  # its sockets close when a process is gone
        self._group = cast("dist.ProcessGroup | None", group)

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """The first process's value, everywhere."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def everyone(self, value: Any) -> list[Any]:
        """All processes' values, in their order, everywhere."""
        found = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value, group=self._group)
        return found

    def order(self, name: str, *args: Any) -> Any:
        """Have all processes do an action; for the first process, in what `phase` was given."""
        self.share((name, args))
        self._ordered = True
        result = self.actions[name](*args)
        self._ordered = False
        return result

    def phase(self, lead: Callable[[], Any]) -> Any:
        """Run `lead` in the first process, in which it may give orders, and give what it returns everywhere.

        Raises:
            UserError: in the first process, what `lead` raised; the others end with exit code 2 and say nothing.
        """
        if self.leads:
            try:
                result = lead()
            except (UserError, OSError):
                if not self._ordered:  # else the others are at what was ordered, and hear from the launcher that this one is gone
                    self.share((_ABORT, ()))
                raise
            return self.share((_DONE, (result,)))[1][0]
        while True:
            name, args = self.share(None)
            if name == _ABORT:
                raise SystemExit(2)
            if name == _DONE:
                return args[0]
            self.actions[name](*args)
