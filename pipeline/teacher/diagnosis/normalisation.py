"""Whether a mean and std can be those of training: what they imply about its images must be possible.

A wrong normalisation is silent: the teacher still answers, and the student inherits the mistake.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from compress.pipeline.records import Finding, InputSpec, Severity
from compress.pipeline.teacher.diagnosis.image_estimate import ImageEstimate, estimate_images
from compress.pipeline.teacher.inputs import IMAGENET_MEAN, IMAGENET_STD
from compress.pipeline.teacher.model import Teacher

TOPIC = "normalisation"

MEAN_TOLERANCE = 0.03
"""How far outside [0, 1] an estimated mean may lie before it is impossible; measured errors are below 0.01."""

CONTRAST_TOLERANCE = 1.15
"""By what factor an estimated std may exceed the largest possible; measured errors are 10 % and less."""

FLATTEST = 0.01
"""Least std of images that show anything: two and a half of the 255 steps that pixels have."""

BLACK_AND_WHITE = 0.97
"""Share of the largest possible std that hardly anything but pure black and white reaches; MNIST has 0.91."""

CLEARLY_ODDER = 4.0
"""Difference of squared distances from typical images, in spreads, at which a fixed scaling suits clearly better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSets:
    """What mean and std whole data sets of images in [0, 1] have."""

    mean: tuple[float, float]
    std: tuple[float, float]
    """Least and most that is plausible."""
    typical_mean: float
    typical_std: float
    mean_spread: float
    std_spread: float = 0.3
    """Of the logarithm."""


PHOTOGRAPHS = DataSets(mean=(0.2, 0.8), std=(0.1, 0.4), typical_mean=0.45, typical_std=0.25, mean_spread=0.12)
"""ImageNet has mean 0.45 and std 0.23, CIFAR-10 0.47 and 0.25, SVHN 0.45 and 0.20."""

SCANS = DataSets(mean=(0.1, 0.95), std=(0.1, 0.45), typical_mean=0.3, typical_std=0.3, mean_spread=0.2)
"""Of one channel, or of any number but three. MNIST has mean 0.13 and std 0.31, Fashion-MNIST 0.29 and 0.35."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """What training code subtracts and divides by, one number a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    title: str = ""

    def __str__(self) -> str:
        return f"mean {_listed(self.mean)} and std {_listed(self.std)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImpliedImages:
    """What the images of training would have been, which for images in [0, 1] cannot be just anything."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    mean_error: float
    std_error: float
    """Relative."""

    @property
    def overall_mean(self) -> float:
        return sum(self.mean) / len(self.mean)

    @property
    def overall_std(self) -> float:
        """Root of the channels' mean variance."""
        return math.sqrt(sum(std**2 for std in self.std) / len(self.std))

    @property
    def contrast(self) -> float:
        """The std by the largest that images in [0, 1] of this mean can have, being all black and white.

        Source: Bhatia & Davis, "A better bound on the variance", American Mathematical Monthly 2000: the variance of
        numbers in [0, 1] with mean m is m (1 - m) at most.
        """
        largest = sum(max(mean * (1 - mean), 0.0) for mean in self.mean) / len(self.mean)
        return self.overall_std / math.sqrt(largest) if largest > 0 else math.inf

    @property
    def possible(self) -> bool:
        """Whether images in [0, 1] can be like this, two standard errors allowed for."""
        margin = MEAN_TOLERANCE + 2 * self.mean_error
        inside = all(-margin <= mean <= 1 + margin for mean in self.mean)
        not_too_stark = self.contrast <= CONTRAST_TOLERANCE * (1 + 2 * self.std_error)
        return inside and not_too_stark and self.overall_std >= FLATTEST

    @property
    def plausible(self) -> bool:
        """Whether data sets are like this."""
        (darkest, brightest), (flattest, starkest) = self._alike.mean, self._alike.std
        usual = darkest <= self.overall_mean <= brightest and flattest <= self.overall_std <= starkest
        return usual and self.possible and self.contrast <= BLACK_AND_WHITE

    @property
    def oddity(self) -> float:
        """Squared distance from typical data sets, in spreads."""
        brighter = (self.overall_mean - self._alike.typical_mean) / self._alike.mean_spread
        starker = math.log(self.overall_std / self._alike.typical_std) / self._alike.std_spread
        return brighter**2 + starker**2

    @property
    def _alike(self) -> DataSets:
        return PHOTOGRAPHS if len(self.mean) == 3 else SCANS


def implied_images(estimate: ImageEstimate, assumed: Normalisation) -> ImpliedImages:
    """The images that became those of the estimate through the assumed normalisation: raw = normalised std + mean."""
    means = zip(estimate.mean, assumed.mean, assumed.std, strict=True)
    return ImpliedImages(
        mean=tuple(own * std + mean for own, mean, std in means),
        std=tuple(estimate.std * std for std in assumed.std),
        mean_error=estimate.mean_error * max(assumed.std),
        std_error=estimate.std_error,
    )


def fixed_scalings(channels: int) -> tuple[Normalisation, ...]:
    """Normalisations that owe nothing to the data: from [0, 1] to itself, to [-1, 1], and to the bytes' range."""
    zero, half, one = (0.0,) * channels, (0.5,) * channels, (1.0,) * channels
    return (
        Normalisation(title="no normalisation", mean=zero, std=one),
        Normalisation(title="scaling to [-1, 1]", mean=half, std=half),
        Normalisation(title="scaling to [0, 255]", mean=zero, std=(1 / 255,) * channels),
    )


def usual_normalisations(channels: int) -> tuple[Normalisation, ...]:
    """What most training code does: ImageNet's mean and std, averaged over colours where there are none, or scaling."""
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.449,) * channels, (0.226,) * channels)
    return Normalisation(title="ImageNet's normalisation", mean=mean, std=std), *fixed_scalings(channels)


def likeliest(estimate: ImageEstimate, among: Sequence[Normalisation]) -> Normalisation | None:
    """The normalisation that makes the images of training most like typical ones; None where none is plausible.

    ImageNet's mean and std stand for those of any data set that was normalised by its own, such as CIFAR-10: after
    that, all data sets have mean 0 and std 1.
    """
    plausible = [one for one in among if implied_images(estimate, one).plausible]
    return min(plausible, key=lambda one: implied_images(estimate, one).oddity, default=None)


def with_plausible_normalisation(teacher: Teacher) -> InputSpec:
    """The teacher's input with the likeliest of the usual normalisations, or as it is where nothing can be told."""
    images, estimate = teacher.record.input, estimate_images(teacher)
    chosen = None if estimate is None else likeliest(estimate, usual_normalisations(images.channels))
    if chosen is None:
        return images
    size = images.source.partition(";")[0]
    source = f"{size}; mean and std from the first batch norm, which {chosen.title} suits best"
    return images.model_copy(update={"mean": chosen.mean, "std": chosen.std, "source": source})


def normalisation_finding(estimate: ImageEstimate | None, images: InputSpec) -> Finding:
    """Whether the mean and std of `images` agree with the estimate: a problem where no images in [0, 1] are as they
    imply, a warning where data sets hardly are, else a note.

    What implies much the same cannot be told apart: ImageNet's values from CIFAR-10's, or the order of the channels, as
    in some data sets blue is the brightest.
    """
    given = Normalisation(mean=images.mean, std=images.std)
    if estimate is None:
        message = f"Nothing in the weights shows whether {given} are those of training."
        return Finding(severity="note", topic=TOPIC, message=message, advice="Compare them with the training code.")
    raw, scaling = implied_images(estimate, given), likeliest(estimate, fixed_scalings(images.channels))
    severity, verdict = _judge(raw, None if scaling is None else implied_images(estimate, scaling))
    message = (
        f"By the first batch norm's statistics, the images of training had mean {_listed(raw.mean, 2)} and std "
        f"{_listed(raw.std, 2)} if {given} are right, {verdict}."
    )
    return Finding(
        severity=severity, topic=TOPIC, message=message, advice="" if severity == "note" else _advice(estimate)
    )


def assumption_finding(images: InputSpec, *, size: bool, normalisation: bool) -> Finding:
    """Of an input that nobody stated, or not all of it.

    Args:
        images: what is assumed.
        size: whether height and width are.
        normalisation: whether mean or std are.
    """
    pixels = f"{images.height}x{images.width} pixels"
    values = str(Normalisation(mean=images.mean, std=images.std))
    assumed = [part for part, is_assumed in ((pixels, size), (values, normalisation)) if is_assumed]
    options = (
        "--input-size, --mean and --std" if size and normalisation else "--input-size" if size else "--mean and --std"
    )
    return Finding(
        severity="warning",
        topic="input",
        message=f"Nothing says what images the network was trained on; {' and '.join(assumed)} are assumed.",
        advice=f"Give the {options} of the training code: the student is made for the same images.",
    )


def _judge(raw: ImpliedImages, scaled: ImpliedImages | None) -> tuple[Severity, str]:
    """How grave it is that training images were like `raw`, where a fixed scaling would make them `scaled`."""
    if not raw.possible:
        return "problem", "but no images in [0, 1] are like that"
    if not raw.plausible:
        return "warning", "but hardly any data set is like that"
    if scaled is not None and raw.oddity > scaled.oddity + CLEARLY_ODDER:
        return "warning", "but a plain scaling would make them more like most data sets"
    return "note", "which is plausible"


def _advice(estimate: ImageEstimate) -> str:
    advice = "Give the --mean and --std of the training code"
    better = likeliest(estimate, usual_normalisations(len(estimate.mean)))
    if better is None:
        return f"{advice}."
    options = f"--mean {_comma_separated(better.mean)} --std {_comma_separated(better.std)}"
    return f"{advice}; {options} would be plausible."


def _comma_separated(values: Sequence[float]) -> str:
    return ",".join(f"{value:.4g}" for value in values)


def _listed(values: Sequence[float], digits: int = 4) -> str:
    listed = ", ".join(f"{value:.{digits}g}" for value in values)
    return f"({listed})" if len(values) > 1 else listed
