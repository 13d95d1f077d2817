"""Several processes that share one evaluation, as `accelerate launch` and `torchrun` start them.

They talk through the launcher's key-value store alone: no collective operation can hang, and no library finds a process group that it
could take for its own. Each process beats once a second; one that falls silent, fails or dies ends all of them with one line. This module
must not know what the work is.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from mr1_bench.errors import UserError
from mr1_bench.specs import UnknownTaskError

SILENCE_VARIABLE = "MR1_RANK_SILENCE_S"
_SILENCE_S = 45.0  # seconds without a sign of life after which a process counts as lost
_LONGEST_SILENCE_S = 86400.0
_BEAT_S = 1.0
_ANSWER_LIMIT_S = 3600.0  # longest wait for the next answer of another process, and for the first one to load
_TELL_S = 10.0  # longest wait for the first process to say why all end
_LEAVE_S = 3.0
_PIECE = 4 << 20  # bytes; the store takes no more than 8 MiB at once
# What a launcher sets: hidden from lmms-eval, accelerate and vLLM, each of which would divide the work once more.
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LAUNCHER_PREFIXES = ("ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_")

KEPT = "what was answered is kept: run the same command again, with any number of processes"
_GONE = f"the launcher or the first process is gone; {KEPT}"
_STOPPED = f"stopped by SIGTERM, which a launcher sends when another process has ended; {KEPT}"


class ShareDone(Exception):
    """Raised in a process that is not the first when its share of the answers is made: the first one does the rest."""


class Ranks:
    """The processes of an evaluation, seen from one of them; alone unless a store connects it with others.

    Attributes:
        rank, world: which process this is, of how many.
        local_rank, local_world: the same on this machine.
    """

    def __init__(
        self, rank: int = 0, world: int = 1, local_rank: int = 0, local_world: int = 1, store: Any = None, silence: float = 0.0
    ) -> None:
        """Begin to watch the others where there is a store."""
        self.rank, self.world, self.local_rank, self.local_world = rank, world, local_rank, local_world
        self._store, self._sent = store, 0
        self._receive: Callable[[int, Any], None] | None = None
        self._awaited: set[int] = set()
        self._collected = dict.fromkeys(range(1, world), 0)
        self._said = threading.Lock()
        self._stop, self._left = threading.Event(), threading.Event()
        self._answered = time.monotonic()
        self._silence = silence
        if store is not None:
            threading.Thread(target=self._watch, daemon=True).start()
            threading.Thread(target=self._guard, daemon=True).start()

    @property
    def first(self) -> bool:
        """Whether this process keeps the journal, grades and writes the record."""
        return self.rank == 0

    # What they tell each other

    def tell(self, key: str, value: str) -> str:
        """Return the first process's value in all of them."""
        if self._store is None:
            return value
        if self.first:
            self._store.set(key, value.encode())
            return value
        return self._wait_for(key, _ANSWER_LIMIT_S).decode()

    def agree(self, what: str, value: str) -> None:
        """Make sure that this process has the same value as the first.

        Raises:
            UserError: it has not.
        """
        if self.tell(what, value) != value:
            raise UserError(f"{what} here differ from the first process's; every machine needs the same")

    def divide(self, numbers: Sequence[int], receive: Callable[[int, Any], None]) -> Iterator[int]:
        """Yield those of some pieces of work that this process is to do; each goes to whoever is free first.

        The first process's iterator ends when the others have handed in all of theirs. Only the first call is shared: the others have left
        after it.

        Args:
            numbers: the pieces; the first process's list counts.
            receive: called in the first process with each piece's number and result as it comes, from another thread too.
        """
        again, self._receive = self._receive is not None, receive
        if self._store is None or again:
            yield from numbers
            return
        self._awaited = set(numbers if self.first else ())
        pieces = json.loads(self.tell("pieces", json.dumps(list(numbers))))
        while (place := self._store.add("next", 1) - 1) < len(pieces):
            yield pieces[place]
        last, left = time.monotonic(), len(self._awaited)
        while self.first and self._awaited:
            time.sleep(0.05)
            if len(self._awaited) < left:
                last, left = time.monotonic(), len(self._awaited)
            if time.monotonic() - last > _ANSWER_LIMIT_S:
                raise UserError(f"no answer of another process for {_ANSWER_LIMIT_S:g} s; {KEPT}")

    def hand_in(self, number: int, result: Any) -> None:
        """Give the result of a piece of work to the first process."""
        if self.first:
            assert self._receive is not None
            self._receive(number, result)
            self._awaited.discard(number)
            return
        data = zlib.compress(json.dumps([number, result]).encode())
        key = f"result{self.rank}/{self._sent}"
        pieces = range(0, len(data), _PIECE)
        for index, start in enumerate(pieces):
            self._store.set(f"{key}/{index}", data[start : start + _PIECE])
        self._store.set(key, str(len(pieces)).encode())
        self._sent += 1

    def _collect(self) -> None:
        """Take what the others have handed in."""
        for rank in self._collected if self._receive is not None else ():
            while self._store.check([key := f"result{rank}/{self._collected[rank]}"]):
                names = [f"{key}/{index}" for index in range(int(self._store.get(key)))]
                number, result = json.loads(zlib.decompress(b"".join(self._store.get(name) for name in names)))
                try:
                    self._receive(number, result)  # type: ignore[misc]
                except ValueError:  # the journal is closed: this process is leaving
                    return
                self._collected[rank] += 1
                self._awaited.discard(number)
                for name in (key, *names):
                    self._store.delete_key(name)

    def _wait_for(self, key: str, limit: float) -> bytes:
        deadline = time.monotonic() + limit
        while not self._store.check([key]):
            if time.monotonic() > deadline:
                raise UserError(f"the first process said nothing for {limit:g} s; {KEPT}")
            time.sleep(0.05)
        value: bytes = self._store.get(key)
        return value

    # Signs of life

    def _watch(self) -> None:
        heard = dict.fromkeys(range(1, self.world) if self.first else (0,), (b"", time.monotonic()))
        beats = 0
        while not self._stop.wait(_BEAT_S):
            try:
                beats, self._answered = beats + 1, time.monotonic()
                self._store.set(f"beat{self.rank}", str(beats).encode())
                if self.first:
                    self._collect()
                if self._store.check(["failed"]):
                    self._end(self._store.get("failed").decode())
                for rank, (last, when) in heard.items():
                    beat = self._store.get(f"beat{rank}") if self._store.check([f"beat{rank}"]) else b""
                    if beat != last:
                        heard[rank] = (beat, time.monotonic())
                    elif time.monotonic() - when > self._silence:
                        silent = f"process {rank} of {self.world} gave no sign of life for {self._silence:g} s"
                        self._end(f"{silent} (where it is only slow, raise {SILENCE_VARIABLE}); {KEPT}")
            except OSError as error:  # the journal cannot be written
                self._end(f"{error}; {KEPT}")
            except (ValueError, zlib.error) as error:
                self._end(f"what another process handed in cannot be read: {error}; {KEPT}")
            except RuntimeError:  # PyTorch's errors of the store
                self._end(_GONE)

    def _guard(self) -> None:
        """End this process where the store does not answer: a call of it may wait for ever."""
        while not self._left.wait(_BEAT_S):
            if time.monotonic() - self._answered > self._silence + _BEAT_S:
                if self.rank <= 1:
                    self._say(_GONE)
                os._exit(2)

    def _end(self, line: str) -> None:
        if not self._stop.is_set():
            self._report(line)
            os._exit(2)  # from a thread, as the main one may be in a kernel or in a wait

    def _report(self, line: str) -> None:
        """Let all know why they end: the first process says it, or another where that one cannot. What was reported first counts."""
        try:
            line = self._store.compare_set("failed", "", line).decode()
            if self.first:
                self._say(line)
                self._store.set("told", b"")
                self._see_off()
                return
            deadline = time.monotonic() + _TELL_S
            while not self._store.check(["told"]):
                if time.monotonic() > deadline:
                    if self._store.add("tellers", 1) == 1:
                        self._say(line)
                    return
                time.sleep(0.05)
            self._store.set(f"bye{self.rank}", b"")
        except RuntimeError:
            if self.rank <= 1:
                self._say(_GONE)

    def _say(self, line: str) -> None:
        if self._said.acquire(blocking=False):  # never released: one line is enough
            print(f"mr1-bench: {line}", file=sys.stderr, flush=True)

    # Beginning and end

    def run(self, work: Callable[[], int]) -> int:
        """Do the work in this process; return the exit code, the same in all of them unless one crashed."""
        if self._store is None:
            return work()
        from torch.distributed import DistError

        signal.signal(signal.SIGTERM, lambda *_: self._end(_STOPPED))
        code = 1
        try:
            try:
                code = work()
            except ShareDone:
                code = 0
            self._finish()
        except KeyboardInterrupt:
            code = 130
            if self.first:
                raise
        except DistError:
            code = 2
            self._report(_GONE)
        except (UserError, UnknownTaskError, OSError) as error:
            code = 2
            self._report(str(error) if self.first else f"process {self.rank} of {self.world}: {error}")
        finally:
            self._stop.set()
            if code == 1:  # a crash; Python writes its traceback after this
                self._report(f"process {self.rank} of {self.world} crashed; {KEPT}")
            self._left.set()
        return code

    def _finish(self) -> None:
        """Leave together."""
        if self.first:
            self._store.set("done", b"")
        else:
            self._wait_for("done", math.inf)  # its share and its grading may take hours; where it dies, its beats end
        self._stop.set()
        if self.first:
            self._see_off()
        else:
            self._store.set(f"bye{self.rank}", b"")

    def _see_off(self) -> None:
        """Wait until the others need the store no more, which may live in this process; not for those that are lost."""
        deadline = time.monotonic() + _LEAVE_S
        while time.monotonic() < deadline and not all(self._store.check([f"bye{rank}"]) for rank in range(1, self.world)):
            time.sleep(0.02)


def join() -> Ranks:
    """Join the processes that a launcher has started with this one, and hide the launcher from other libraries.

    Raises:
        UserError: the environment is no launcher's, or the others cannot be reached.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return Ranks()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a store that is gone is no reason for pages of C++ frames
    from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

    silence = _read_silence()
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives the processes that it starts again
    try:
        rank, world, local_rank, local_world = (int(os.environ[name]) for name in _LAUNCHER[:4])
        store = next(rendezvous("env://", timeout=timedelta(seconds=max(silence, _SILENCE_S))))[0]
    except KeyError as error:
        raise UserError(f"WORLD_SIZE is set but {error} is not: start this with torchrun or accelerate launch, or unset it") from None
    except (ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(f"WORLD_SIZE is set, but the launcher's store cannot be reached: {text}") from None
    for name in [name for name in os.environ if name in _LAUNCHER or name.startswith(_LAUNCHER_PREFIXES)]:
        del os.environ[name]
    return Ranks(rank, world, local_rank, local_world, PrefixStore(f"mr1-bench eval {attempt}", store), silence)


def _read_silence() -> float:
    text = os.environ.get(SILENCE_VARIABLE, f"{_SILENCE_S:g}")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _LONGEST_SILENCE_S:
        raise UserError(f"{SILENCE_VARIABLE}={text}: expected seconds, more than 0 and at most {_LONGEST_SILENCE_S:g}")
    return seconds


def own_gpus(ranks: Ranks, each: int, visible: Sequence[str]) -> list[str]:
    """Return which of a machine's GPUs are this process's.

    Args:
        ranks: where this process stands.
        each: GPUs a process.
        visible: the machine's GPUs.

    Raises:
        UserError: there are not enough.
    """
    needed = ranks.local_world * each
    if needed > len(visible):
        raise UserError(
            f"{needed} GPUs are needed on this machine (processes: {ranks.local_world}, GPUs for each: {each}) and PyTorch sees "
            f"{len(visible)}: start fewer processes, or lower tensor_parallel_size"
        )
    return list(visible[ranks.local_rank * each :][:each])


def take_gpus(ranks: Ranks, each: int) -> None:
    """Leave this process its own GPUs alone; must run before anything touches one. On a machine without any nothing is done.

    Raises:
        UserError: there are not enough, or CUDA has been used already.
    """
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # counting must not start CUDA, which would then see all of them for good
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        return
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    own = own_gpus(ranks, each, named.split(",")[:count] if named else [str(index) for index in range(count)])
    if ranks.world > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        if torch.cuda.device_count() != each:
            raise UserError(f"PyTorch still sees {torch.cuda.device_count()} GPUs where this process's are {', '.join(own)}")
