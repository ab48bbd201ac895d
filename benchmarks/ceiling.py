"""What a student agrees on after the same learning from real images: how much is lost to images that are synthetic.

    python benchmarks/ceiling.py TEACHER --train IMAGES.npz --data IMAGES.npz [--student inherit-3-3-3] [--images 10000]
        [--steps 3000] [--recipe balanced] [--set KEY=VALUE ...]

Steps, rate, mixing and stages are the recipe's; only the pool is made of `--train`. Nobody who needs this project can do
so: it is a bound to measure by, and no figure of the product.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from compress.exporters.runners import TorchRunner
from compress.pipeline.device import choose_compute, derived_seed
from compress.pipeline.distillation.learner import Learner
from compress.pipeline.distillation.schedule import learning_rate
from compress.pipeline.proportions import proportion
from compress.pipeline.report import text
from compress.pipeline.settings import Settings, assignment, merge, resolve_settings
from compress.pipeline.students import plan_student
from compress.pipeline.synthesis.augment import Augmentation
from compress.pipeline.synthesis.mixing import mixed
from compress.pipeline.synthesis.pool import NO_CLASS, ImagePool, as_bytes
from compress.pipeline.teacher import open_teacher
from real_agreement import Images, read_images


def learned(learner: Learner, pool: ImagePool, augmentation: Augmentation, steps: int, settings: Settings) -> float:
    """Learn `steps` steps from the pool, the rate along one cosine; returns the seconds."""
    started, distill = time.monotonic(), settings.distill.model_copy(update={"kd_steps": steps, "anneal": "step"})
    learner.recalibrate(pool.images[:2000])
    for index in range(steps):
        torch.manual_seed(derived_seed(settings.seed, "step", index))
        images = mixed(augmentation(pool.at(pool.draw(distill.batch_size))), distill.mixing, distill.mixed_share)
        rate = learning_rate(index, (0.0, 1.0), distill, learner.first_rate)
        learner.step(images.contiguous(memory_format=torch.channels_last), rate)
    return time.monotonic() - started


def pool_of(images: Tensor) -> ImagePool:
    """A pool of images `[N, C, H, W]` in [0, 1], of no class."""
    pool = ImagePool(len(images))
    pool.add(as_bytes(images), torch.full((len(images),), NO_CLASS))
    return pool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--train", type=Path, required=True, help="real images to learn from, as npz")
    parser.add_argument("--data", type=Path, required=True, help="other real images, to measure on")
    parser.add_argument("--student", default="auto", help="its name, as `compress inspect` lists them")
    parser.add_argument("--images", type=int, default=10_000, help="how many of --train")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--recipe", default="balanced")
    parser.add_argument("--set", action="append", default=[], help="a setting, such as threads=1")
    options = parser.parse_args()
    overrides: dict[str, object] = {"recipe": options.recipe, "student": {"name": options.student}}
    for words in options.set:
        overrides = merge(overrides, assignment(words))
    settings = resolve_settings(overrides, environment={})
    compute = choose_compute(settings)
    teacher = open_teacher(options.teacher, **dict(settings.teacher)).to(compute.device, torch.channels_last)
    learner = Learner(teacher, plan_student(teacher.record, settings.student), settings, compute)
    augmentation = Augmentation.for_input(teacher.record.input, settings.synthesis)
    pool = pool_of(torch.from_numpy(read_images(options.train, options.images)[0]))
    seconds = learned(learner, pool, augmentation, options.steps, settings)
    images, _ = read_images(options.data, None)
    wanted, found = (answered(network, images) for network in (teacher.network, learner.average))
    agreement = proportion(int((wanted == found).sum()), len(images))
    print(f"{learner.plan.name}: {text.share(agreement)} ({text.interval(agreement)}) after {seconds:.0f} s")
    return 0


@torch.inference_mode()
def answered(network: torch.nn.Module, images: Images) -> Tensor:
    """The classes `[N]` that a network names."""
    return torch.from_numpy(TorchRunner(network.eval())(images).argmax(1))


if __name__ == "__main__":
    sys.exit(main())
