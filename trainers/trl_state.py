"""Weights and moments that processes hold in pieces: collected whole for the first one to save, and dealt out again.

With DDP each process has them whole. FSDP2's are `DTensor`s. DeepSpeed keeps flat pieces of float32 weights and moments beside the weights
of the passes, and gives access to those of a parameter (its documentation: "Modifying partitioned states"). A checkpoint is the same
whichever made it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")

Named = Iterable[tuple[str, "nn.Parameter"]]


def gather(named: Named, optimizer: Any, *, keep: bool) -> dict[str, Tensor]:
    """Parameters, whole, and what the optimiser has of those that it moves; all processes call it.

    Args:
        named: parameters by name.
        optimizer: torch's, accelerate's around it, or DeepSpeed's.
        keep: whether this process wants them; the others get nothing.

    Returns:
        `param/NAME`, and where a step has been taken `exp_avg/NAME`, `exp_avg_sq/NAME` and `step/NAME` of what is trained, on the CPU.
    """
    zero, base = _parts(optimizer)
    begun = next(iter(base.state.values()), None)  # None: no step has been taken
    _link(zero if begun else None)
    found = {}
    for name, param in named:
        with _made_whole(zero, param):
            tensors = {"param": param.detach()}
            if zero and param.requires_grad:
                access = importlib.import_module("deepspeed.utils")
                tensors["param"] = access.safe_get_full_fp32_param(param)
                if begun:
                    tensors |= {key: access.safe_get_full_optimizer_state(param, key) for key in MOMENTS} | {"step": begun["step"]}
            elif param.requires_grad and begun:
                tensors |= {key: base.state[param][key] for key in (*MOMENTS, "step")}
            for key, value in tensors.items():
                whole = value.full_tensor() if isinstance(value, DTensor) else value
                if keep:
                    found[f"{key}/{name}"] = whole.to("cpu", copy=True)
    return found


@torch.no_grad()
def scatter(named: Named, optimizer: Any, tensors: Mapping[str, Tensor]) -> None:
    """Put what `gather` gave the first process, who alone has it, back into all processes; all call it."""
    zero, base = _parts(optimizer)
    named = list(named)
    leads = not dist.is_initialized() or dist.get_rank() == 0
    step = _everywhere(tensors[f"step/{named[0][0]}"] if leads else None, (), named[0][1].device)
    if zero:
        _begin_moments(zero, base, step)
    for name, param in named:
        shape = getattr(param, "ds_shape", param.shape)
        whole = {key: _everywhere(tensors[f"{key}/{name}"] if leads else None, shape, param.device) for key in ("param", *MOMENTS)}
        if zero:
            access = importlib.import_module("deepspeed.utils")
            with _made_whole(zero, param):
                param.data.copy_(whole["param"])
            access.safe_set_full_fp32_param(param, whole["param"])
            for key in MOMENTS:
                access.safe_set_full_optimizer_state(param, whole[key], key)
            continue
        if isinstance(param, DTensor):
            whole = {key: distribute_tensor(value, param.device_mesh, param.placements) for key, value in whole.items()}
        param.copy_(whole["param"])
        base.state[param] = {key: whole[key] for key in MOMENTS} | {"step": step.clone()}


def _parts(optimizer: Any) -> tuple[Any, Any]:
    """DeepSpeed's optimiser, None without it, and torch's within."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
    return (inner, inner.optimizer) if hasattr(inner, "optimizer") else (None, inner)


def _made_whole(zero: Any, param: nn.Parameter) -> AbstractContextManager[Any]:
    """While it lasts, a parameter that ZeRO-3 has divided is whole; what the first process writes to it then is dealt out."""
    return importlib.import_module("deepspeed").zero.GatheredParameters([param], modifier_rank=0) if zero else nullcontext()


def _begin_moments(zero: Any, base: Any, step: Tensor) -> None:
    """Moments of DeepSpeed's flat pieces, which it has only after a first step otherwise."""
    flat = getattr(zero, "fp32_partitioned_groups_flat", None)
    for piece in zero.single_partition_of_fp32_groups if flat is None else flat:  # ZeRO-2, ZeRO-3
        base.state[piece] = {key: torch.zeros_like(piece) for key in MOMENTS} | {"step": step.clone()}
    _link(zero)


def _link(zero: Any) -> None:
    """Have ZeRO-2 know each parameter's moments: by itself it looks once, when only the first of its groups has them."""
    if hasattr(zero, "_hp_optimizer_states_linked"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _everywhere(value: Tensor | None, shape: Any, device: torch.device) -> Tensor:
    """The first process's tensor in all processes, in float32."""
    whole = torch.empty(shape, dtype=torch.float32, device=device)
    if value is not None:
        whole.copy_(value)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast(whole, src=0)
    return whole
