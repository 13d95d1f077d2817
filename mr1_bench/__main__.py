"""`python -m mr1_bench` is the command `mr1-bench`."""

import sys

from mr1_bench.cli import main

sys.exit(main())
