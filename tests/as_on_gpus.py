"""`mr1_bench` in processes on a CPU that accelerate takes for processes on GPUs: FSDP2, which it would leave out, is then done, by gloo."""

import functools
import sys

import torch
from accelerate import DistributedType, PartialState, accelerator
from torch.distributed.tensor import DTensor

from mr1_bench.cli import main


def as_on_gpus(begin):
    @functools.wraps(begin)
    def replaced(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    return replaced


def telling(prepare):
    @functools.wraps(prepare)
    def replaced(owner, model):
        policy = owner.state.fsdp_plugin.mixed_precision_policy
        divided = prepare(owner, model)
        assert all(isinstance(param, DTensor) for param in divided.parameters())
        rounded = policy and (policy.param_dtype, policy.reduce_dtype, policy.output_dtype)
        print(f"divided by FSDP2, passes, sums and outputs in {rounded or torch.float32}", file=sys.stderr)
        return divided

    return replaced


if __name__ == "__main__":
    PartialState.__init__ = as_on_gpus(PartialState.__init__)
    accelerator.fsdp2_prepare_model = telling(accelerator.fsdp2_prepare_model)
    sys.exit(main())
