"""All settings, and where they come from.

Command line > environment (`COMPRESS_...`) > `--config file.yaml` > target preset > recipe preset > the defaults below.
Only values that somebody set take part; an unknown key is an error that names the nearest known one.
"""

import difflib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

import compress
from compress.exporters.targets import Gates, Target, load_target
from compress.pipeline.errors import UsageError
from compress.pipeline.records import InputForm
from compress.pipeline.setting_errors import refusal

ENVIRONMENT_PREFIX = "COMPRESS_"
DEFAULT_RECIPE = "default"

LatentSource = Literal["noisy_layer", "direct"]
Synonyms = Literal["fewest", "all"]
Selection = Literal["batch", "image"]
Mixing = Literal["none", "cutmix", "mixup", "both"]
Beta = Annotated[float, Field(ge=0, lt=1)]
Annealed = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """A group of settings: immutable, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class TeacherSettings(Section):
    """What the checkpoint does not say about itself."""

    input_size: int | None = Field(default=None, ge=1, le=1024)
    """Height and width of the teacher's input in pixels; by default as the checkpoint or its architecture says."""
    mean: tuple[float, ...] | None = None
    """Per-channel mean that the teacher's training subtracted, for pixels in [0, 1]."""
    std: tuple[float, ...] | None = None
    """Per-channel standard deviation that it divided by."""
    arch: str | None = None
    """What builds the network, where it is not to be inferred: `package.module:function`, or `timm:NAME`."""
    allow_pickle: bool = False
    """Execute what a pickled module says; never for a file that is not trusted."""


class EmbedSettings(Section):
    """Class names to label-text embeddings."""

    text_encoder: str | None = None
    """A local folder, or a name in the local Hugging Face cache; by default the encoder of the extra `encoder`."""
    prompt: str = Field(default="a photo of a {label}", pattern=r"\{label\}")
    """The text that is embedded for each class; `{label}` stands for its name."""
    synonyms: Synonyms = "fewest"
    """Of names such as `tench, Tinca tinca`: as few as tell the classes apart, or all."""
    allow_download: bool = False
    """Let a model hub be asked for the encoder; otherwise nothing ever goes to the network."""


class StudentSettings(Section):
    """Which student."""

    name: str = "auto"
    """`auto`, `inherit-3-3-3` (that many of the teacher's blocks a stage), `inherit-3-3-3-w0.5` (and half of the width inside
    them), or a name of the zoo such as `resnet20`."""
    inherit: bool = True
    """Whether `auto` may take a student that starts from the teacher's blocks; otherwise its weights are random."""
    max_parameter_ratio: float = Field(default=1 / 3, gt=0, le=1)
    """`auto` takes the largest student with at most this share of the teacher's parameters."""


class SynthesisSettings(Section):
    """How images are made. Source: NAYER, CVPR 2024, section 3; symbols as there."""

    batch_size: int = Field(default=100, ge=2)
    """Images a synthetic batch; every class appears in it equally often, or a random share of them where not all fit."""
    steps: int = Field(default=30, ge=1)
    """Optimiser steps on the generator for each batch of images."""
    learning_rate: float = Field(default=4e-3, gt=0)
    """Of the generator's optimiser."""
    batch_norm_weight: float = Field(default=10.0, ge=0)
    """Weight of matching the teacher's batch-norm statistics."""
    prior_weight: float = Field(default=10.0, ge=0)
    """Weight of the image prior, which takes their place where the teacher has no batch norm."""
    dead_leaves: float = Field(default=1.0, ge=0)
    """Images of dead leaves for each synthesised one in the pool of such a teacher."""
    one_hot_weight: float = Field(default=0.5, ge=0)
    """Weight of the teacher naming the class that an image was made for."""
    adversarial_weight: float = Field(default=1.33, ge=0)
    """Weight of student and teacher disagreeing."""
    statistics_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Share of the running average in the batch statistics that are matched."""
    generator_life: int = Field(default=10, ge=1)
    """Rounds after which the generator is replaced by a fresh one."""
    latent: int = Field(default=1000, ge=1)
    """Outputs of the noisy layer."""
    latent_source: LatentSource = "noisy_layer"
    """What they come from: a random linear layer, or drawn directly with the same covariance, to tell what it is good for."""
    generator_width: int = Field(default=64, ge=8)
    """Channels of the generator's last stage; the earlier ones have twice as many."""
    max_noisy_layers: int | None = Field(default=64, ge=1)
    """Bound on noisy layers, which otherwise grow with batch size over number of classes; null sets none."""
    selection: Selection = "batch"
    """What the images of a batch are: those of the generator's best step, or each image from the step best for it."""
    crop_padding: int | None = Field(default=None, ge=0)
    """Pixels that random crops may shift by; by default an eighth of the image."""
    flip: bool | None = None
    """Mirror images at random; by default colour images only, since digits and documents do not survive it."""


class DistillSettings(Section):
    """How the student learns."""

    warmup_rounds: int = Field(default=4, ge=1)
    """Rounds of synthesis before the student learns anything."""
    warmup_batches: int = Field(default=4, ge=1)
    """Synthetic batches in each of them."""
    rounds: int = Field(default=10, ge=1)
    """Rounds of synthesis and learning in turn."""
    annealed: tuple[Annealed, ...] | None = None
    """How far the learning rate's cosine is after each round, from 0 to 1, if it does not come down evenly; how a run that
    was planned for its budget, again after each round, is repeated."""

    @field_validator("annealed")
    @classmethod
    def _one_a_round(cls, annealed: tuple[float, ...] | None, others: ValidationInfo) -> tuple[float, ...] | None:
        rounds = others.data.get("rounds", 0)
        if annealed and (len(annealed) != rounds or any(after <= before for before, after in pairwise(annealed))):
            raise PydanticCustomError(
                "annealing", "a list of distill.rounds numbers, each above the one before, or null"
            )
        return annealed

    batches: int = Field(default=1, ge=1)
    """Synthetic batches a round."""
    kd_steps: int = Field(default=120, ge=1)
    """Student steps a round."""
    batch_size: int = Field(default=64, ge=2)
    """Images a student step."""
    optimiser: Literal["adamw", "sgd"] = "adamw"
    """Of the student. The rates below are for AdamW; stochastic gradient descent wants some ten times as much."""
    learning_rate: float = Field(default=5e-3, gt=0)
    """Where the cosine begins, for a student of random weights."""
    inherited_learning_rate: float = Field(default=5e-3, gt=0)
    """For a student that starts from the teacher's own blocks."""
    final_learning_rate: float = Field(default=1e-5, ge=0)
    """Where the cosine ends."""
    anneal: Literal["step", "round"] = "step"
    """How often the learning rate follows the cosine: with every student step, or with every round."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of stochastic gradient descent."""
    adam_betas: tuple[Beta, Beta] = (0.9, 0.99)
    """How long AdamW remembers gradients and their squares."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Decoupled from the gradient in AdamW, a part of it in stochastic gradient descent."""
    temperature: float = Field(default=4.0, gt=0)
    """What logits are divided by before they are compared."""
    mixing: Mixing = "both"
    """How images are mixed in pairs before the student and the teacher see them: `cutmix`, `mixup`, either, or `none`."""
    mixed_share: float = Field(default=0.5, ge=0, le=1)
    """Of the student's batches, that are mixed."""
    stage_weight: float = Field(default=100.0, ge=0)
    """Weight of matching the teacher's stage outputs; those of other shapes are matched through learned adapters."""
    average_decay: float = Field(default=0.98, ge=0, lt=1)
    """Decay per step of the running average of the student's weights, which is what is shipped; 0 ships the last."""
    replay_priority: float = Field(default=0.0, ge=0, le=1)
    """How much oftener the student sees images again on which it was far from the teacher; 0 draws all alike."""
    selection: Literal["best", "last"] = "best"
    """Which moment is shipped: the round with the best agreement on held-out synthetic images, or the last."""
    pool_limit: int | None = Field(default=50_000, ge=4)
    """Images the pool holds; beyond it the oldest leave. With null none ever does."""
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    """Time between two checkpoints within a round; there is one after every round, too. 0: after each batch and step."""


class ProbeSettings(Section):
    """Held-out synthetic images that nothing was trained on."""

    batches: int = Field(default=12, ge=1)
    """Synthetic batches that the probes of the verdict are made from: two and a half views of each image, on average."""
    generators: int = Field(default=4, ge=1)
    """Freshly initialised generators that share the work: what one makes is more alike than what several make."""
    warmup_batches: int = Field(default=4, ge=0)
    """Batches that each of them makes and throws away first, since an untrained one makes images no class claims."""
    least: int = Field(default=0, ge=0)
    """How many probes there must be; those that the batches do not give are made for the verdict alone, after learning."""
    monitor_batches: int = Field(default=1, ge=1)
    """Synthetic batches that the best moment of the student is chosen on; the verdict never sees them."""


class QuantizeSettings(Section):
    """Fake quantization: calibration and the quantization-aware tail."""

    calibration_images: int = Field(default=512, ge=1)
    """Images that the ranges of activations are chosen on."""
    tail_steps: int = Field(default=100, ge=0)
    """Steps that the fake-quantized student is trained for against the teacher, on the pool."""
    batch_size: int = Field(default=64, ge=2)
    """Images a step of the tail."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Where the cosine of the tail begins: low, for the student has learned, and is only to get used to its rounding."""
    temperature: float = Field(default=4.0, gt=0)
    """What logits are divided by before they are compared."""
    exclude: tuple[str, ...] = ()
    """Layers that stay in floating point."""
    max_loss: float = Field(default=0.003, ge=0, le=1)
    """Agreement with the teacher that rounding may cost, as a share of images. Beyond it, and below the target's gate, the
    costliest layers stay in floating point, too."""
    max_left_float: int = Field(default=3, ge=0)
    """How many of them at most."""


class Settings(Section):
    """Everything that a run depends on beside the checkpoint and the labels."""

    target: str = "jetson"
    """The device; `compress targets` lists them."""
    recipe: str = DEFAULT_RECIPE
    """How to distil and quantize: a name of the presets that ship with the package."""
    seed: int = Field(default=0, ge=0)
    """What all random numbers are derived from."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """Where synthesis and distillation run: `auto`, `cpu`, `cuda` or, for one GPU of several, `cuda:1`."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of synthesis and distillation; `auto` takes bf16 where the hardware multiplies it."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads, of all processes on a machine together; results are reproducible for a given number of them."""
    budget_seconds: float | None = Field(default=None, gt=0)
    """Time the whole command may take; rounds are planned to fit. None runs the recipe's rounds."""
    tensorboard: bool = False
    """Write the curves of distillation for TensorBoard, too, into `work/tensorboard`; needs the extra `tensorboard`."""
    dynamic_batch: bool = True
    """Whether the exported graphs take any batch size or images one by one."""
    input_form: InputForm = "float32-nchw"
    """What the exported graphs take: numbers in [0, 1] with the channels first, or bytes as a camera delivers them, with
    the channels last."""
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
        UsageError: an unknown key, a value out of range, an unknown target or recipe, an unreadable file, or a form of
            input that the target does not take.
    """
    asked = merge(merge(_read_yaml(config) if config else {}, environment_values(environment)), command_line)
    recipe = asked.get("recipe", DEFAULT_RECIPE)
    if recipe not in recipe_names():
        raise UsageError(
            f"There is no recipe '{recipe}'.",
            f"{nearest(str(recipe), recipe_names())}Recipes: {_list(recipe_names())}.",
        )
    target = load_target(str(asked.get("target", Settings.model_fields["target"].default)))
    layers = merge(_recipe(recipe), dict(target.settings))
    layers = merge(merge(layers, {"gates": target.gates.model_dump(exclude_unset=True)}), asked)
    try:
        settings = Settings.model_validate(layers)
    except ValidationError as error:
        path = [str(part) for part in error.errors()[0]["loc"]]
        raise refusal(error, Settings, _origin(path, command_line, environment, config)) from error
    _require_taken(settings.input_form, target, _origin(["input_form"], command_line, environment, config))
    return settings


def _require_taken(form: InputForm, target: Target, origin: str) -> None:
    if form == "uint8-nhwc" and not target.takes_bytes:
        raise UsageError(
            f"The target '{target.name}' cannot take input_form={form}{origin}: its TensorRT may be {target.tensorrt[0]}, "
            "and images of bytes came with 8.5.",
            "Leave input_form at float32-nchw, or choose a target whose TensorRT is 8.5 or later.",
        )


def _recipe(name: str) -> dict[str, Any]:
    """The YAML of a recipe; one with `based_on` takes what it does not say itself from the recipe that it names."""
    settings = _read_yaml(presets_folder() / "recipes" / f"{name}.yaml")
    based_on = settings.pop("based_on", None)
    return merge(_recipe(based_on), settings) if based_on else settings


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, the upper one winning key by key."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def environment_values(environment: Mapping[str, str]) -> dict[str, Any]:
    """`COMPRESS_DISTILL__ROUNDS=3` as `{"distill": {"rounds": 3}}`, the value read as YAML.

    Raises:
        UsageError: a value is not YAML.
    """
    values: dict[str, Any] = {}
    for name, text in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX):
            values = merge(values, nested(_path_of(name), _value(text, f"{name}={text}")))
    return values


def assignment(text: str) -> dict[str, Any]:
    """`distill.rounds=3` as `{"distill": {"rounds": 3}}`, the value read as YAML.

    Raises:
        UsageError: there is no `=`, or the value is not YAML.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageError(f"'{text}' sets nothing.", "Write --set section.key=value, such as --set distill.rounds=50.")
    return nested(key.split("."), _value(value, text))


def nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    """A value under a path of keys."""
    for key in reversed(path):
        value = {key: value}
    return dict(value)


def nearest(word: str, choices: Sequence[str]) -> str:
    """`Did you mean ...? ` or nothing."""
    matches = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"Did you mean '{matches[0]}'? " if matches else ""


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)


def _path_of(variable: str) -> list[str]:
    return variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")


def _value(text: str, whole: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a date that does not exist is a ValueError
        raise UsageError(
            f"The value of '{whole}' cannot be read.", "Values are YAML: numbers, words, [lists]."
        ) from error


def _origin(
    path: Sequence[str], command_line: Mapping[str, Any], environment: Mapping[str, str], config: Path | None
) -> str:
    """Where a refused value comes from, in words; nothing for what the user has just typed."""
    if _holds(command_line, path):
        return ""
    variables = [name for name in environment if name.startswith(ENVIRONMENT_PREFIX)]
    same = [name for name in variables if all(a == b for a, b in zip(path, _path_of(name), strict=False))]
    source = same[0] if same else config
    return f" (from {source})" if source else ""


def _holds(values: Any, path: Sequence[str]) -> bool:
    """Whether these values say anything about the setting at that path."""
    if not path or not isinstance(values, Mapping):
        return True
    return path[0] in values and _holds(values[path[0]], path[1:])


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"Cannot read '{path}': {error.strerror}.", "Give --config a YAML file of settings."
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"'{path}' is not YAML.", "Give --config a YAML file of settings.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"'{path}' holds no settings.", "Write them as key: value, sections indented.")
    return content
