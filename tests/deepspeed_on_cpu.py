"""`mr1_bench` with DeepSpeed on a CPU, where its processes talk by gloo alone: what it would compile to be faster is left out."""

import sys

import deepspeed

from mr1_bench.cli import main

if __name__ == "__main__":
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    sys.exit(main())
