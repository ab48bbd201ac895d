import pytest
import torch
from torch import Tensor, fx, nn

from compress.exporters.calibration import BINS, Histogram, observe, squared_error
from compress.exporters.qdq import Levels, activation_quantizers, insert_fake_quantization
from compress.pipeline.errors import CompressError

SIGNED = Levels(-128, 127, symmetric=True)
UNSIGNED = Levels(0, 255, symmetric=False)


def histogram(values: Tensor) -> Histogram:
    low, high = float(values.min()), float(values.max())
    return Histogram(low, high, torch.histc(values.double(), BINS, low, high))


def one_convolution() -> fx.GraphModule:
    """A network whose quantized tensor is its input."""
    return insert_fake_quantization(nn.Sequential(nn.Conv2d(1, 16, 1)), "s8s8")


def test_the_percentile_range_leaves_out_as_many_values_below_as_above() -> None:
    # 0 ... 9999 once each: 0.05 % of 10,000 values on either side are 5 values.
    low, high = histogram(torch.arange(10_000)).percentile_range(0.999)
    assert low == pytest.approx(5, abs=10_000 / BINS)
    assert high == pytest.approx(9994, abs=10_000 / BINS)


def test_a_lone_outlier_is_clipped_by_the_range_of_least_squares() -> None:
    # 100,000 values around 0 with deviation 1, one at 60. Full range: step 60/127, error step^2/12 = 0.0186 a value,
    # 1,860 in all. Clipped at 15: step 15/127, 116 in all, and (60 - 15)^2 = 2,025 for the outlier.
    values = torch.cat([torch.randn(100_000, generator=torch.Generator().manual_seed(0)), torch.tensor([60.0])])
    _, high = histogram(values).least_squares_range(SIGNED)
    assert 15 < high < 45


def test_squared_error_is_that_of_fake_quantization() -> None:
    values = torch.linspace(-3, 3, 101)
    scale, zero_point = UNSIGNED.parameters(-1, 2)
    rounded = torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, 255)
    torch.testing.assert_close(squared_error(values, scale, zero_point, UNSIGNED), (values - rounded) ** 2)


def test_a_range_seen_on_images_is_the_scale_of_their_quantizer() -> None:
    # Uniform values have no outlier worth clipping: scale = 1 / 127.
    module = one_convolution()
    generator = torch.Generator().manual_seed(0)
    observe(module, [torch.rand(4, 1, 16, 16, generator=generator) for _ in range(2)])
    assert float(activation_quantizers(module)["input_1"].scale) == pytest.approx(1 / 127, rel=0.02)


def test_the_range_is_chosen_on_held_out_images() -> None:
    # The fitting batch is full of 8s, the held-out one knows none: the narrow candidate wins although it clips the 8s.
    generator = torch.Generator().manual_seed(0)
    fitting = torch.rand(1, 1, 200, 200, generator=generator)
    fitting[0, 0, 0, :10] = 8.0
    module = one_convolution()
    observe(module, [fitting, torch.rand(1, 1, 200, 200, generator=generator)])
    assert float(activation_quantizers(module)["input_1"].scale) < 2 / 127


def test_a_tensor_that_is_always_zero_gets_a_scale_above_zero() -> None:
    module = one_convolution()
    observe(module, [torch.zeros(1, 1, 4, 4)] * 2)
    assert float(activation_quantizers(module)["input_1"].scale) > 0
    assert torch.isfinite(module(torch.zeros(1, 1, 4, 4))).all()


def test_calibration_leaves_no_hook_behind() -> None:
    module = one_convolution()
    observe(module, [torch.rand(1, 1, 4, 4)] * 2)
    images = torch.full((1, 1, 1, 1), 5.0)
    assert float(activation_quantizers(module)["input_1"](images)) < 5.0  # clipped: it quantizes again


def test_a_single_batch_is_refused() -> None:
    with pytest.raises(CompressError, match="at least two batches"):
        observe(one_convolution(), [torch.rand(1, 1, 4, 4)])


def test_a_tensor_that_is_not_finite_is_refused_by_name() -> None:
    with pytest.raises(CompressError, match="'input_1' is not finite"):
        observe(one_convolution(), [torch.full((1, 1, 4, 4), torch.inf)] * 2)
