"""A task of one's own: one TaskSpec row, and the two values that the YAML beside it names."""

from mr1_bench.specs import TaskSpec
from mr1_bench.tasks.adapter import dataset_kwargs, processor

SPEC = TaskSpec(
    name="toy_squares",
    family="vc",
    data="toy_squares",  # built with: mr1-bench data build --task-name toy_squares --prompts FILE.jsonl --images DIR
    split="test",
    size=3,
    prompt="vc_think",
    answer="count",
    tagged=True,
    max_new_tokens=64,
    chance=1 / 3,
    source="three drawings",
)

dataset = dataset_kwargs(SPEC)
process_results = processor(SPEC)
