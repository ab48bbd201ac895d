"""The benchmark of single steps: that both sides compute the same, and that it measures what it says."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.settings import StudentSettings
from compress.pipeline.students import plan_student
from compress.pipeline.synthesis.augment import Augmentation, random_crop_and_flip
from compress.pipeline.synthesis.pool import as_bytes
from loops import naive, ours
from loops.peak import ConvolutionsOf, convolution_peak, fastest_convolution, matrix_product_peak
from loops.setup import Setup
from tests.tiny import CPU, blobs, copied, tiny_embeddings, tiny_settings, tiny_teacher

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "steps.py"


def setup(folder: Path, channels: int = 3) -> Setup:
    """A teacher of its own for every call, since each side lays it out as it likes."""
    teacher = tiny_teacher(channels=channels)
    torch.manual_seed(0)
    return Setup(
        teacher=teacher,
        embeddings=tiny_embeddings(),
        plan=plan_student(teacher.record, StudentSettings(name="inherit-1-1")),
        settings=tiny_settings(distill={"stage_weight": 0.0, "optimiser": "sgd", "inherited_learning_rate": 0.05}),
        compute=CPU,
        images=as_bytes(blobs(24, teacher.record)),
        folder=folder,
    )


# Both sides compute the same


class Shown(nn.Module):
    """Stands for a generator: the images are its weights."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = nn.Parameter(images.clone())

    def forward(self, targets: Tensor) -> Tensor:
        return self.images


@pytest.mark.parametrize("batches_before", [False, True])
def test_both_sides_have_the_same_synthesis_loss_and_gradient(tmp_path: Path, batches_before: bool) -> None:
    our_side, naive_side = ours.Synthesis(setup(tmp_path)), naive.Synthesis(setup(tmp_path))
    naive_side.student.load_state_dict(our_side.student.state_dict())
    with torch.no_grad():  # An inherited student agrees with its teacher too well for the adversarial term to count.
        for student in (our_side.student, naive_side.student):
            student.get_parameter("network.fc.weight").mul_(0.3)
    images, targets = blobs(24, tiny_teacher().record), torch.arange(24) % 4
    if batches_before:
        our_side.run()
        naive_side.running = list(our_side.synthesiser.running or [])
        assert naive_side.running
    shown, plainly_shown = Shown(images), Shown(images)
    our_side.synthesiser.generator = shown  # type: ignore[assignment]
    torch.manual_seed(7)
    _, loss, *_ = our_side.synthesiser._step(targets, our_side.student.eval())
    torch.manual_seed(7)
    plain_loss = naive_side.loss(naive.cropped_and_mirrored(plainly_shown(targets), naive_side.augmentation), targets)
    torch.testing.assert_close(loss, plain_loss)
    gradients = torch.autograd.grad(loss, shown.images) + torch.autograd.grad(plain_loss, plainly_shown.images)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_both_sides_teach_the_student_the_same(tmp_path: Path) -> None:
    our_side, naive_side = ours.Distillation(setup(tmp_path)).learner, naive.Distillation(setup(tmp_path))
    naive_side.student.load_state_dict(our_side.student.state_dict())
    for _ in range(3):
        images = blobs(16, tiny_teacher().record)
        loss = our_side.step(images, our_side.first_rate)
        assert naive_side.step(naive_side.teacher.normalise(images)) == pytest.approx(loss.item(), rel=1e-4)
    for name, value in copied(our_side.student).items():
        torch.testing.assert_close(value, copied(naive_side.student)[name], rtol=1e-3, atol=1e-5, msg=name)


def test_both_generators_have_as_many_parameters_and_make_images_of_one_size(tmp_path: Path) -> None:
    plain, our_own = naive.Synthesis(setup(tmp_path)).generator, ours.Synthesis(setup(tmp_path)).synthesiser.generator
    targets = torch.arange(20) % 4
    assert plain(targets).shape == our_own(targets).shape == (20, 3, 8, 8)
    assert _parameters(plain) == _parameters(our_own)


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_both_sides_crop_and_mirror_alike() -> None:
    images = torch.rand(16, 3, 8, 6)
    torch.manual_seed(3)
    expected = random_crop_and_flip(images, 2, True)
    torch.manual_seed(3)
    assert torch.equal(naive.cropped_and_mirrored(images, Augmentation(2, True)), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_pool_of_files_gives_back_its_images_normalised(tmp_path: Path, channels: int) -> None:
    images = torch.randint(0, 256, (4, channels, 6, 5), dtype=torch.uint8)
    naive.write_pool(images, tmp_path / "pool")
    network = Normalised(nn.Identity(), (0.4,) * channels, (0.2,) * channels)
    read = naive.PngFolder(tmp_path / "pool", Augmentation(0, False), network)
    torch.testing.assert_close(torch.stack([read[index] for index in range(len(read))]), network(images / 255))


def test_images_of_files_are_shifted_over_a_black_border(tmp_path: Path) -> None:
    naive.write_pool(torch.full((1, 1, 3, 3), 255, dtype=torch.uint8), tmp_path / "pool")
    read = naive.PngFolder(tmp_path / "pool", Augmentation(1, True), Normalised(nn.Identity(), (0.0,), (1.0,)))
    # Shifted by one pixel one way, the other or not at all: 3, 2 or 2 of the three rows are left, and so of the columns.
    assert {int(read[0].sum()) for _ in range(60)} == {4, 6, 9}


# The peak


def test_the_convolutions_of_a_pass_are_counted_with_what_their_time_depends_on() -> None:
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, bias=False))
    with ConvolutionsOf() as seen:
        for _ in range(2):
            convolutions(torch.rand(2, 3, 8, 8)).sum().backward()
    first, second = sorted((call for call in seen.calls if not call.backward), key=lambda call: call.weight)
    assert (second.weight, second.stride, second.padding, second.bias) == ((4, 4, 3, 3), (2, 2), (0, 0), False)
    assert (first.images, first.weight, first.stride, first.bias) == ((2, 3, 8, 8), (4, 3, 3, 3), (1, 1), True)
    assert str(first) == "3x3 forward 3->4 on [2, 3, 8, 8]"
    assert sorted(call.wanted for call in seen.calls if call.backward) == [(False, True, True), (True, True, False)]
    assert set(seen.calls.values()) == {2}


def test_the_peak_of_a_loop_weighs_its_convolutions_by_how_often_they_run() -> None:
    with ConvolutionsOf() as seen:
        nn.Conv2d(3, 4, 3, padding=1, bias=False)(torch.rand(2, 3, 8, 8)).sum().backward()
    forward = next(call for call in seen.calls if not call.backward)
    # 2 operations for each of 2 * 8 * 8 pixels, 4 * 3 channels and 3 * 3 weights
    assert fastest_convolution(forward, CPU).flops == 2 * 2 * 64 * 12 * 9 == 27648
    peak, single = convolution_peak(dict.fromkeys(seen.calls, 3), CPU)
    # Backward, the gradient of the weight alone is as much again.
    assert peak.flops == 3 * 2 * 27648
    assert peak.rate <= single.rate
    assert single.flops == 27648


def test_a_product_of_square_matrices_has_two_operations_for_each_of_n_cubed_pairs() -> None:
    best = matrix_product_peak(torch.float32, CPU, 8)
    assert (best.flops, best.way) == (1024, "float32 8x8")
    assert best.rate == best.flops / best.seconds


# The script


def run(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
    with pytest.raises(SystemExit) as ending:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return int(ending.value.code or 0)


@pytest.fixture
def measured(
    teacher_file: Path, labels_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """Runs the script on very little; gives back what it printed as JSON."""

    def measure(*words: str) -> Any:
        small = ("--synthesis-batch", "8", "--generator-steps", "2", "--distillation-batch", "16", "--pool", "20")
        usual = ("--labels", labels_file, "--recipe", "smoke", "--matrix-side", "16", "--repeats", "3", "--json")
        assert run(monkeypatch, teacher_file, *usual, *small, *words) == 0
        return json.loads(capsys.readouterr().out)

    return measure


def test_a_distillation_step_is_measured_against_the_naive_one(measured: Callable[..., Any]) -> None:
    facts = measured("--step", "distillation")
    assert facts["machine"]["threads"] == torch.get_num_threads()
    assert [best["way"] for best in facts["matrix_products"]] == ["float32 16x16", "bfloat16 16x16"]
    (step,) = facts["steps"]
    assert (step["step"], step["images"]) == ("distillation", 16)
    assert step["ratio"] == sorted(step["ratios"])[1]
    assert min(step[side]["seconds"] for side in ("ours", "naive")) > 0
    assert step["fraction_of_convolution_peak"] == pytest.approx(
        step["ours"]["gflop_per_second"] / step["convolution_peak_gflop_per_second"]
    )
    # The classifier's product and all convolutions are the same on both sides.
    assert step["naive"]["gflop"] == pytest.approx(step["ours"]["gflop"])


@pytest.mark.slow
def test_the_naive_synthesis_step_also_computes_gradients_of_weights(measured: Callable[..., Any]) -> None:
    (step,) = measured("--step", "synthesis")["steps"]
    assert (step["step"], step["images"]) == ("synthesis", 8)
    assert step["naive"]["gflop"] > step["ours"]["gflop"]


def test_labels_that_are_not_there_end_in_a_sentence(
    teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, teacher_file, "--labels", tmp_path / "none.txt") == 2
    assert "none.txt" in capsys.readouterr().err
