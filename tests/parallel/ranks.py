"""What two processes do in the tests: one function a case, each run by both ranks, results in files of their own."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.pipeline.distillation.learner import Learner
from compress.pipeline.distillation.loop import Distillation
from compress.pipeline.distillation.stage import assist, distill
from compress.pipeline.networks.resnet import ResNetSpec
from compress.pipeline.parallel.batch_norm import joint_statistics, with_joint_batch_norms
from compress.pipeline.parallel.world import World
from compress.pipeline.progress import Silent
from compress.pipeline.settings import Settings, merge
from compress.pipeline.students import StudentPlan, inheriting_student
from compress.pipeline.synthesis.latents import NoisyLayers
from compress.pipeline.synthesis.losses import Statistics, batch_norm_matching, batch_statistics, image_prior
from compress.pipeline.synthesis.synthesiser import Synthesiser
from compress.pipeline.teacher import Teacher
from tests.tiny import CPU, tiny_embeddings, tiny_settings, tiny_teacher

RANKS = 2


def settings(**changes: Any) -> Settings:
    """A run of seconds: two rounds of warm-up, three of learning, no chance in the images of a step."""
    usual: dict[str, Any] = {
        "synthesis": {"batch_size": 16, "steps": 2, "generator_life": 2},
        "distill": {"warmup_rounds": 2, "warmup_batches": 2, "rounds": 3, "kd_steps": 2, "batch_size": 8},
        "probes": {"batches": 1, "generators": 1, "warmup_batches": 1},
    }
    return tiny_settings(**merge(usual, changes))


def plan(teacher: Teacher) -> StudentPlan:
    return inheriting_student(ResNetSpec.model_validate(teacher.record.spec), (1, 1))


def joint_images(count: int = 16) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def joint_features() -> Tensor:
    """`[8, 5, 3, 3]`, each channel of another mean, one of them far from zero for its variance."""
    features = torch.randn(8, 5, 3, 3, generator=torch.Generator().manual_seed(4))
    return features + torch.tensor([0.0, 1.0, -2.0, 3.0, 30.0]).view(-1, 1, 1)


WANTED = Statistics(torch.zeros(5), torch.ones(5))


# Each of these gives the same, up to rounding, for two ranks on half the rows each and for one on all of them.


def student_step(world: World) -> dict[str, Tensor]:
    """Student and average after two steps."""
    teacher = tiny_teacher()
    learner = Learner(teacher, plan(teacher), settings(), replace(CPU, world=world))
    images = world.mine(joint_images())
    losses = [learner.step(images, 0.05) for _ in range(2)]
    gradients = {f"gradient.{n}": p.grad for n, p in learner.student.named_parameters() if p.grad is not None}
    loss = world.average(torch.stack(losses))
    return {"loss": loss, **gradients, **prefixed("student", learner.student), **prefixed("average", learner.average)}


def recalibration(world: World) -> dict[str, Tensor]:
    """A student that has seen a pool before its first step, of a teacher whose batch norms were folded."""
    teacher = tiny_teacher()
    learner = Learner(teacher, plan(teacher), settings(), replace(CPU, world=world))
    learner.recalibrate((world.mine(joint_images(8)) * 255).round().to(torch.uint8))
    return prefixed("student", learner.student)


def synthesis(world: World) -> dict[str, Tensor]:
    """Images, loss and running statistics of a batch, the noise given and nothing shifted or mirrored."""
    noise = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(9))

    def redraw(self: NoisyLayers) -> None:
        with torch.no_grad():
            self.weight.copy_(world.mine(noise))
            self.bias.zero_()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NoisyLayers, "redraw", redraw)
        torch.manual_seed(1)
        asked = settings(synthesis={"crop_padding": 0, "flip": False, "steps": 3}).synthesis
        synthesiser = Synthesiser(tiny_teacher(), tiny_embeddings(), asked, replace(CPU, world=world))
        teacher = tiny_teacher()
        student = Learner(teacher, plan(teacher), settings(), replace(CPU, world=world)).student
        made = synthesiser.make(student)
    running = {f"running.{i}.{n}": t for i, s in enumerate(synthesiser.running or []) for n, t in s._asdict().items()}
    shared = {n: p for n, p in prefixed("generator", synthesiser.generator).items() if "noisy.weight" not in n}
    shared = {n: p for n, p in shared.items() if "noisy.bias" not in n}
    rows = {"rows.images": made.images, "rows.targets": made.targets, "rows.noise": synthesiser.generator.noisy.weight}
    return {"loss": torch.tensor(made.loss), **running, **shared, **rows}


def statistics(world: World) -> dict[str, Tensor]:
    """Statistics of features, and the gradient of matching them."""
    features = world.mine(joint_features()).clone().requires_grad_()
    (joint,) = joint_statistics([batch_statistics(features)], world)
    batch_norm_matching([joint], [WANTED]).backward()
    gradient = features.grad
    assert gradient is not None
    # The objective is the mean of the ranks' losses, so its gradient has 1 / N of what backward gives.
    return {"mean": joint.mean.detach(), "variance": joint.variance.detach(), "rows.gradient": gradient / world.size}


def prior(world: World) -> dict[str, Tensor]:
    """The image prior and its gradient."""
    images = world.mine(joint_images()).clone().requires_grad_()
    loss = image_prior(images, world.average)
    loss.backward()
    assert images.grad is not None
    return {"loss": loss.detach(), "rows.gradient": images.grad / world.size}


def batch_norm(world: World) -> dict[str, Tensor]:
    """A batch norm in training: output, gradients and running statistics."""
    norm = nn.BatchNorm2d(5)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 5))
        norm.bias.copy_(torch.linspace(-1, 1, 5))
    module = nn.Sequential(norm)
    with_joint_batch_norms(module, world)
    features = world.mine(joint_features()).clone().requires_grad_()
    output = module(features)
    (output.square() * world.mine(joint_images(8))[:, :1, :3, :3]).mean().backward()
    world.average_gradients(module.parameters())
    assert features.grad is not None
    gradients = {f"gradient.{name}": value.grad for name, value in module.named_parameters() if value.grad is not None}
    rows = {"rows.output": output.detach(), "rows.gradient": features.grad / world.size}
    return {**gradients, **prefixed("module", module), **rows}


CASES: dict[str, Callable[[World], dict[str, Tensor]]] = {
    case.__name__: case for case in (student_step, recalibration, synthesis, statistics, prior, batch_norm)
}


def prefixed(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value.detach().clone() for name, value in module.state_dict().items()}


# Whole runs


def whole_run(folder: Path, world: World, **changes: Any) -> None:
    """A distillation with what is left of it in `folder`; ranks above 0 leave their shard of the pool there."""
    folder.mkdir(parents=True, exist_ok=True)
    teacher, compute = tiny_teacher(), replace(CPU, world=world)
    common = (teacher, tiny_embeddings(), plan(teacher), settings(**changes), compute)
    if world.leads:
        record = distill(*common, folder, Silent())
        (folder / "record.json").write_text(record.model_dump_json())
    else:
        assist(*common, folder.with_name(folder.name + ".other"), None)


def interrupted_run(folder: Path, world: World, before: int) -> None:
    """A run that ends before a round."""
    run_round = Distillation.run_round

    def interrupted(self: Distillation, number: int, *arguments: Any) -> Any:
        if number == before:
            raise KeyboardInterrupt
        return run_round(self, number, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Distillation, "run_round", interrupted)
        whole_run(folder, world)


def both_ranks(rank: int, folder: Path) -> None:
    """What each of the two processes runs: all cases and runs, one after the other."""
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(RANKS))
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=RANKS)
    world = World.current()
    for name, case in CASES.items():
        save_file({key: value.contiguous() for key, value in case(world).items()}, folder / f"{name}.{rank}")
    whole_run(folder / "once", world)
    whole_run(folder / "twice", world)
    interrupted_run(folder / "interrupted", world, before=3)
    whole_run(folder / "interrupted", world)
    dist.destroy_process_group()
