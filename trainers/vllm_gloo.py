"""Weights to a vLLM server over gloo: vLLM's own transfer interface for machines without NCCL, a CPU above all.

vLLM finds it by `vllm_plugin` where mr1-bench is installed; the server is started with `--weight-transfer-config
'{"backend":"mr1_gloo"}'`. The handshake, the calls and the loading are vLLM's own; only the broadcast differs from its NCCL engine. It must
not know training.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, ClassVar, Self

import torch
from vllm.distributed.utils import stateless_init_torch_distributed_process_group
from vllm.distributed.weight_transfer.base import TrainerInitInfo, WeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerWeightTransferEngine,
    NCCLWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)

from mr1_bench.trainers.vllm_plugin import BACKEND

_REFUSAL_S = 3.0  # in which a server that was not started for this says so
_LIMIT = timedelta(seconds=120)  # of a rendezvous or of one tensor's broadcast


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """Where a worker meets the trainer, which is rank 0."""

    master_address: str
    master_port: int
    world_size: int


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """The same for the trainer."""

    backend: ClassVar[str] = BACKEND

    master_address: str
    master_port: int
    world_size: int


class GlooWeightTransferEngine(NCCLWeightTransferEngine):
    """The worker's side."""

    init_info_cls = GlooInitInfo

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Meet the trainer."""
        parallel = self.parallel_config
        rank = 1 + parallel.data_parallel_index * parallel.world_size + parallel.rank
        self._group = _meet(init_info, rank)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive weights and load them."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """Receive each tensor and load it."""
        for name, kind, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True):
            weight = torch.empty(shape, dtype=getattr(torch, kind))
            _broadcast(self._group, weight)
            self.model.load_weights([(name, weight.to(self.device))])

    def shutdown(self) -> None:
        """Leave the group."""
        self._group = None


class GlooTrainerWeightTransferEngine(NCCLTrainerWeightTransferEngine):
    """The trainer's side."""

    init_info_cls = GlooTrainerInitInfo

    @classmethod
    def trainer_init(cls, init_info: GlooTrainerInitInfo, *, client: Any, source: Any = None) -> Self:
        """Meet the workers, who wait inside their own initialisation."""
        engine = cls(client=client, source=source, is_sender=init_info.is_sender)
        worker = asdict(GlooInitInfo(init_info.master_address, init_info.master_port, init_info.world_size))
        waiting = ThreadPoolExecutor(max_workers=1)
        try:
            joined = waiting.submit(client.init_weight_transfer_engine, worker)
            wait([joined], timeout=_REFUSAL_S)
            if joined.done():  # the workers cannot have met us yet: it is a refusal, and nobody would come
                joined.result()
            engine._group = _meet(init_info, 0)
            joined.result()
        finally:
            waiting.shutdown(wait=False)
        return engine

    def _broadcast(self, source: Any, meta: list[Any]) -> None:
        for _, tensor in self._checked_iter(source, meta):
            _broadcast(self._group, tensor.detach().cpu().contiguous())

    def shutdown(self) -> None:
        """Leave the group."""
        self._group = None


def _meet(place: GlooInitInfo | GlooTrainerInitInfo, rank: int) -> Any:
    arguments = (place.master_address, place.master_port, rank, place.world_size, "gloo")
    return stateless_init_torch_distributed_process_group(*arguments, timeout=_LIMIT)


def _broadcast(group: Any, tensor: torch.Tensor) -> None:
    group.broadcast(tensor.view(-1).view(torch.uint8), 0).wait(_LIMIT)  # bytes: gloo does not know every number type
