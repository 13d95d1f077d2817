"""The plugin that vLLM finds in an environment with mr1-bench: it makes known the transfer of weights over gloo (`vllm_gloo`).

vLLM calls it in each of its processes, with or without training, so it imports next to nothing and must never fail.
"""

from __future__ import annotations

import contextlib

BACKEND = "mr1_gloo"
"""The transfer's name in `--weight-transfer-config`."""


def register() -> None:
    """Make the gloo transfer known to vLLM, where its version has such an interface; more than once is no harm."""
    try:
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory
    except ImportError:
        return
    module = "mr1_bench.trainers.vllm_gloo"
    for kind, engine in (
        (WeightTransferEngineFactory, "GlooWeightTransferEngine"),
        (WeightTransferTrainerFactory, "GlooTrainerWeightTransferEngine"),
    ):
        with contextlib.suppress(ValueError):  # it is known already
            kind.register_engine(BACKEND, module, engine)
