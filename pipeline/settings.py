"""All settings, and where they come from.

Command line > environment (`COMPRESS_...`) > `--config file.yaml` > target preset > recipe preset > the defaults below.
Only values that somebody set take part; an unknown key is an error that names the nearest known one.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import compress
from compress.exporters.targets import Gates, load_target
from compress.pipeline.errors import UsageError

ENVIRONMENT_PREFIX = "COMPRESS_"
DEFAULT_RECIPE = "default"


class Section(BaseModel):
    """A group of settings: immutable, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TeacherSettings(Section):
    """What the checkpoint does not say about itself."""

    input_size: int | None = Field(default=None, ge=8, le=1024)
    """Height and width of the teacher's input in pixels; by default as the checkpoint or its architecture says."""
    mean: tuple[float, ...] | None = None
    """Per-channel mean that the teacher's training subtracted, for pixels in [0, 1]."""
    std: tuple[float, ...] | None = None
    """Per-channel standard deviation that it divided by."""


class EmbedSettings(Section):
    """Class names to label-text embeddings."""

    text_encoder: str | None = None
    """A local folder, or a name in the local Hugging Face cache; by default the encoder of the extra `encoder`."""
    prompt: str = "a photo of a {label}"
    """The text that is embedded for each class."""
    allow_download: bool = False
    """Let a model hub be asked for the encoder; otherwise nothing ever goes to the network."""


class StudentSettings(Section):
    """Which student."""

    name: str = "auto"
    """`auto`, `inherit-3-3-3` (that many of the teacher's blocks a stage) or a name of the zoo such as `resnet20`."""
    max_parameter_ratio: float = Field(default=1 / 3, gt=0, le=1)
    """`auto` takes the largest student with at most this share of the teacher's parameters."""


class SynthesisSettings(Section):
    """How images are made. Source: NAYER, CVPR 2024, section 3; symbols as there."""

    batch_size: int = Field(default=100, ge=2)
    """Images a synthetic batch; every class appears in it equally often."""
    steps: int = Field(default=30, ge=1)
    """Optimiser steps on the generator for each batch of images."""
    learning_rate: float = Field(default=4e-3, gt=0)
    batch_norm_weight: float = Field(default=10.0, ge=0)
    one_hot_weight: float = Field(default=0.5, ge=0)
    adversarial_weight: float = Field(default=1.33, ge=0)
    statistics_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Share of the running average in the batch statistics that are matched."""
    generator_life: int = Field(default=10, ge=1)
    """Rounds after which the generator is replaced by a fresh one."""
    latent: int = Field(default=1000, ge=1)
    """Outputs of the noisy layer."""
    generator_width: int = Field(default=64, ge=8)
    """Channels of the generator's last stage; the earlier ones have twice as many."""
    max_noisy_layers: int = Field(default=64, ge=1)
    """Bound on noisy layers, which otherwise grow with batch size over number of classes."""
    crop_padding: int | None = Field(default=None, ge=0)
    """Pixels that random crops may shift by; by default an eighth of the image."""
    flip: bool | None = None
    """Mirror images at random; by default colour images only, since digits and documents do not survive it."""


class DistillSettings(Section):
    """How the student learns."""

    warmup_rounds: int = Field(default=4, ge=1)
    """Rounds of synthesis before the student learns anything."""
    warmup_batches: int = Field(default=2, ge=1)
    """Synthetic batches in each of them."""
    rounds: int = Field(default=30, ge=1)
    """Rounds of synthesis and learning in turn."""
    batches: int = Field(default=1, ge=1)
    """Synthetic batches a round."""
    kd_steps: int = Field(default=20, ge=1)
    """Student steps a round."""
    batch_size: int = Field(default=128, ge=2)
    learning_rate: float = Field(default=0.1, gt=0)
    inherited_learning_rate: float = Field(default=0.05, gt=0)
    """For a student that starts from the teacher's own blocks."""
    final_learning_rate: float = Field(default=2e-4, ge=0)
    """Where the cosine ends."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    temperature: float = Field(default=4.0, gt=0)
    stage_weight: float = Field(default=10.0, ge=0)
    """Weight of matching the teacher's stage outputs, where the student has stages of the same shapes."""
    average_decay: float = Field(default=0.98, ge=0, lt=1)
    """Decay per step of the running average of the student's weights, which is what is shipped; 0 ships the last."""
    pool_limit: int = Field(default=50_000, ge=1)
    """Images the pool holds; beyond it the oldest leave."""


class ProbeSettings(Section):
    """Held-out synthetic images that nothing was trained on."""

    batches: int = Field(default=4, ge=1)
    """Synthetic batches, each of its own seed, that the probes of the verdict are made from."""
    generators: int = Field(default=2, ge=1)
    """Freshly initialised generators that share the work."""
    monitor_batches: int = Field(default=1, ge=1)
    """Synthetic batches that the best moment of the student is chosen on; the verdict never sees them."""


class QuantizeSettings(Section):
    """Fake quantization: calibration and the quantization-aware tail."""

    calibration_images: int = Field(default=512, ge=1)
    tail_steps: int = Field(default=100, ge=0)
    """Steps that the fake-quantized student is trained for against the teacher, on the pool."""
    batch_size: int = Field(default=64, ge=2)
    learning_rate: float = Field(default=1e-3, gt=0)
    temperature: float = Field(default=4.0, gt=0)
    exclude: tuple[str, ...] = ()
    """Layers that stay in floating point."""


class Settings(Section):
    """Everything that a run depends on beside the checkpoint and the labels."""

    target: str = "jetson"
    recipe: str = DEFAULT_RECIPE
    seed: int = Field(default=0, ge=0)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of synthesis and distillation; `auto` takes bf16 where the hardware multiplies it."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; results are reproducible for a given number of them."""
    budget_seconds: float | None = Field(default=None, gt=0)
    """Time the whole command may take; rounds are planned to fit. None runs the recipe's rounds."""
    dynamic_batch: bool = True
    """Whether the exported graphs take any batch size or images one by one."""
    teacher: TeacherSettings = TeacherSettings()
    embed: EmbedSettings = EmbedSettings()
    student: StudentSettings = StudentSettings()
    synthesis: SynthesisSettings = SynthesisSettings()
    distill: DistillSettings = DistillSettings()
    probes: ProbeSettings = ProbeSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    gates: Gates = Gates()
    """Limits of the verdict; those that are not set here are the target's."""


def presets_folder() -> Path:
    return Path(compress.__file__).parent / "configs"


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package, sorted."""
    return sorted(path.stem for path in (presets_folder() / "recipes").glob("*.yaml"))


def resolve_settings(
    command_line: Mapping[str, Any],
    *,
    environment: Mapping[str, str],
    config: Path | None = None,
) -> Settings:
    """Merge all sources in their order of precedence.

    Raises:
        UsageError: an unknown key, a value out of range, an unknown target or recipe, an unreadable file.
    """
    asked = merge(merge(_read_yaml(config) if config else {}, environment_values(environment)), command_line)
    recipe = asked.get("recipe", DEFAULT_RECIPE)
    if recipe not in recipe_names():
        raise UsageError(
            f"There is no recipe '{recipe}'.",
            f"{nearest(str(recipe), recipe_names())}Recipes: {_list(recipe_names())}.",
        )
    target = load_target(str(asked.get("target", Settings.model_fields["target"].default)))
    layers = merge(_read_yaml(presets_folder() / "recipes" / f"{recipe}.yaml"), dict(target.settings))
    layers = merge(merge({"gates": target.gates.model_dump(exclude_none=True)}, layers), asked)
    return _validated(layers)


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, the upper one winning key by key."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def environment_values(environment: Mapping[str, str]) -> dict[str, Any]:
    """`COMPRESS_DISTILL__ROUNDS=3` as `{"distill": {"rounds": 3}}`."""
    values: dict[str, Any] = {}
    for name, text in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX):
            path = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
            values = merge(values, nested(path, yaml.safe_load(text)))
    return values


def assignment(text: str) -> dict[str, Any]:
    """`distill.rounds=3` as `{"distill": {"rounds": 3}}`, the value read as YAML.

    Raises:
        UsageError: there is no `=`, or the value is not YAML.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageError(f"'{text}' sets nothing.", "Write --set section.key=value, such as --set distill.rounds=50.")
    try:
        return nested(key.split("."), yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise UsageError(
            f"The value of '{text}' cannot be read.", "Values are YAML: numbers, words, [lists]."
        ) from error


def nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    """A value under a path of keys."""
    for key in reversed(path):
        value = {key: value}
    return dict(value)


def known_keys(section: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """Every setting's dotted name."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from known_keys(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def nearest(word: str, choices: Sequence[str]) -> str:
    """`Did you mean ...? ` or nothing."""
    matches = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"Did you mean '{matches[0]}'? " if matches else ""


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"Cannot read '{path}': {error.strerror}.", "Give --config a YAML file of settings."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"'{path}' is not YAML.", "Give --config a YAML file of settings.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"'{path}' holds no settings.", "Write them as key: value, sections indented.")
    return content


def _validated(values: Mapping[str, Any]) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UsageError(f"There is no setting '{key}'.", f"{nearest(key, list(known_keys()))}") from error
        raise UsageError(f"The setting '{key}' cannot be {first['input']!r}: {first['msg']}.") from error
