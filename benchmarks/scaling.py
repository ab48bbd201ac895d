"""Time the steps of distillation in one process, or in several that torchrun started, and print them as JSON.

    python benchmarks/scaling.py TEACHER --threads 1
    torchrun --nproc-per-node 2 benchmarks/scaling.py TEACHER --threads 2

Threads are those of all processes on the machine. The times are those of whole steps: several processes share each.
"""

import argparse
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from compress.pipeline.device import choose_compute
from compress.pipeline.distillation.stage import speed_here
from compress.pipeline.parallel.launch import joined
from compress.pipeline.parallel.world import World
from compress.pipeline.settings import resolve_settings
from compress.pipeline.students import plan_student
from compress.pipeline.teacher import open_teacher

EMBEDDING = 384
"""Values of a label-text embedding, as the default encoder gives; what they are does not change the time."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--input-size", type=int, default=32)
    options = parser.parse_args()
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    with nullcontext(World()) if alone else joined(lambda _: None, otherwise=lambda: None) as world:
        settings = resolve_settings(
            {"threads": options.threads, "teacher": {"input_size": options.input_size}}, environment={}
        )
        compute = choose_compute(settings)
        teacher = open_teacher(options.teacher, **dict(settings.teacher))
        plan = plan_student(teacher.record, settings.student)
        torch.manual_seed(0)
        embeddings = torch.randn(teacher.record.num_classes, EMBEDDING)
        teacher.to(compute.device, torch.channels_last)
        speed = speed_here(teacher, embeddings, plan, settings, compute)
        if world.leads:
            print(speed.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
