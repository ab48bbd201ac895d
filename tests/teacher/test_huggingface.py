import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPVisionConfig,
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from compress.pipeline.errors import InputError, UnsafeInputError
from compress.pipeline.teacher import Teacher, open_teacher
from tests.teacher.small_resnet import small_resnet

SMALL = {"model_type": "convnext", "hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2}
SMALL_TRANSFORMER: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": 32,
    "patch_size": 8,
    "id2label": dict(enumerate("abc")),
}
VIT = ViTConfig(**SMALL_TRANSFORMER)
LABELS = {"id2label": {"0": "cat", "1": "dog", "2": "cow"}}


def model_folder(folder: Path, config: dict[str, Any] | None = None, processor: dict[str, Any] | None = None) -> Path:
    """A model as `save_pretrained` writes it, the config changed where a test wants it."""
    torch.manual_seed(0)
    settings = ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, id2label=dict(enumerate("abc")))
    save_file(dict(ConvNextForImageClassification(settings).state_dict()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(SMALL | LABELS | (config or {})))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def opened(folder: Path) -> Teacher:
    return open_teacher(folder)


def test_a_folder_becomes_a_teacher_that_answers_as_transformers_does(tmp_path: Path) -> None:
    processor = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "crop_size": {"height": 32, "width": 32}}
    teacher = opened(model_folder(tmp_path, processor=processor))
    images = torch.rand(2, 3, 32, 32)
    model = ConvNextForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(teacher.logits(images), model((images - 0.5) / 0.25).logits.detach())
    record = teacher.record
    assert record.format.startswith("Hugging Face folder, safetensors file")
    assert (record.input.height, record.input.mean, record.input.std) == (32, (0.5,) * 3, (0.25,) * 3)
    assert record.labels == ("cat", "dog", "cow")
    assert record.num_classes == 3


def test_every_file_of_the_folder_counts_in_its_digest(tmp_path: Path) -> None:
    before = opened(model_folder(tmp_path, processor={"size": 32})).record.sha256
    assert opened(model_folder(tmp_path, processor={"size": 33})).record.sha256 != before
    assert opened(model_folder(tmp_path, {"layer_norm_eps": 1e-5}, {"size": 32})).record.sha256 != before


@pytest.mark.parametrize(
    ("processor", "size", "mean"),
    [
        ({"size": 40}, 40, 0.485),
        ({"size": {"shortest_edge": 48}}, 48, 0.485),
        ({"size": {"height": 48, "width": 48}, "crop_size": 40, "image_mean": [0.1] * 3}, 40, 0.1),
        ({"size": 40, "do_normalize": False, "image_mean": [0.1] * 3}, 40, 0.0),
    ],
)
def test_size_and_normalisation_are_the_image_processors(
    processor: dict[str, Any], size: int, mean: float, tmp_path: Path
) -> None:
    image = opened(model_folder(tmp_path, processor=processor)).record.input
    assert (image.height, image.width, image.mean[0]) == (size, size, mean)


def test_placeholder_names_are_no_labels(tmp_path: Path) -> None:
    placeholders = {"id2label": {str(index): f"LABEL_{index}" for index in range(3)}}
    assert opened(model_folder(tmp_path, placeholders, {"size": 32})).record.labels == ()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "nonsense"}, "is no image classifier that transformers can build"),
        ({"model_type": None}, "is no image classifier"),
        ({"model_type": "bert"}, "is no image classifier"),
        ({"hidden_sizes": [4]}, "is no image classifier|do not fit the network"),
        ({"hidden_sizes": [4, 16]}, "do not fit the network"),
        ({"depths": [1, 10**9]}, "claims 1,000,000,001 for 'depths' but holds"),
        ({"depths": [1] * 31}, "claims 31 for 'depths' but holds 30 tensors"),
        ({"num_labels": 2**20 + 1}, "claims 1,048,577 for 'num_labels', which is too many"),
        ({"num_labels": 2**20 + 1, "id2label": None}, "claims 1,048,577 for 'num_labels', which is too many"),
        ({"image_size": 1025}, "claims 1,025 for 'image_size', which is too many"),
        ({"num_stages": 10**9}, "claims 1,000,000,000 for 'num_stages'"),
        ({"hidden_sizes": "many"}, "is no image classifier"),
        ({"hidden_sizes": [2**40, 2**41]}, "claims 2,199,023,255,552 for 'hidden_sizes', which is too many"),
        ({"hidden_sizes": [2**19, 2**20]}, "do not fit the network: it has [0-9,]{15,} numbers and the file"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        opened(model_folder(tmp_path, config))


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    config = {"auto_map": {"AutoModelForImageClassification": "own.Model", "AutoConfig": "own.Config"}}
    with pytest.raises(UnsafeInputError, match="needs Python code of its own, which is not run"):
        opened(model_folder(tmp_path, config))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", ["timm_wrapper", "shieldgemma2"])
def test_models_that_fetch_their_parts_are_refused(kind: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, {"model_type": kind, "architecture": "hf-hub:someone/something"})
    with pytest.raises(UnsafeInputError, match=f"is '{kind}', which may fetch its parts from elsewhere"):
        opened(folder)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "quantization_config", "return_dict"])
def test_settings_of_how_a_model_runs_are_left_out(key: str, tmp_path: Path) -> None:
    """An attention's name that is a hub's repository would have the library fetch code from there."""
    config = VIT.to_dict() | {key: False if key == "return_dict" else "someone/kernel"}
    ViTForImageClassification(VIT).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert opened(tmp_path).record.num_classes == 3


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(ViTForImageClassification(VIT), id="vit"),
        pytest.param(DeiTForImageClassification(DeiTConfig(**SMALL_TRANSFORMER)), id="deit"),
        pytest.param(
            SwinForImageClassification(
                SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
            ),
            id="swin",
        ),
    ],
)
def test_tensors_may_have_the_names_that_transformers_writes_and_not_those_of_its_modules(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) != set(model.state_dict())
    teacher, images = opened(tmp_path), torch.rand(2, 3, 32, 32)
    image = teacher.record.input
    normalised = (images - torch.tensor(image.mean)[:, None, None]) / torch.tensor(image.std)[:, None, None]
    torch.testing.assert_close(teacher.logits(images), model.eval()(normalised).logits.detach())


def test_tables_that_a_small_file_asks_for_are_not_computed(tmp_path: Path) -> None:
    """A window of w x w has a table of (2w - 1)^2 weights and an index of w^4 numbers."""
    settings: dict[str, Any] = {"image_size": 1024, "patch_size": 4, "embed_dim": 8, "depths": [1], "num_heads": [1]}
    weights = SwinForImageClassification(SwinConfig(**settings, window_size=2)).state_dict()
    table = next(key for key in weights if "relative_position_bias_table" in key)
    save_file(weights | {table: torch.zeros(511**2, 1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**settings, "window_size": 256, "model_type": "swin"}))
    with pytest.raises(InputError, match=r"do not fit the network: it has 4,[0-9,]{11} numbers and the file"):
        opened(tmp_path)


def test_channels_that_no_model_of_the_kind_has_count_for_nothing(tmp_path: Path) -> None:
    vision = CLIPVisionConfig(**{key: value for key, value in SMALL_TRANSFORMER.items() if key != "id2label"})
    config = CLIPConfig(vision_config=vision, id2label=SMALL_TRANSFORMER["id2label"])
    CLIPForImageClassification(config).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | {"num_channels": "three"}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 32, "do_normalize": False}))
    assert opened(tmp_path).record.input.mean == (0.0, 0.0, 0.0)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    model_folder(tmp_path).joinpath("model.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights"):
        opened(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_a_config_that_is_not_json_is_refused(content: str, tmp_path: Path) -> None:
    model_folder(tmp_path).joinpath("config.json").write_text(content)
    with pytest.raises(InputError, match=r"is not JSON|holds no settings"):
        opened(tmp_path)


def test_pickled_weights_are_read_without_executing_them(tmp_path: Path) -> None:
    model_folder(tmp_path, processor={"size": 32})
    tensors = ConvNextForImageClassification.from_pretrained(tmp_path).state_dict()
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert opened(tmp_path).record.format == "Hugging Face folder, PyTorch checkpoint, a bare state_dict"


def test_a_folder_of_timm_is_read_by_its_weights_with_the_size_and_normalisation_that_it_states(tmp_path: Path) -> None:
    network = small_resnet()
    stated = {"input_size": [3, 48, 48], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "label_names": list("abcde")}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet10t", "pretrained_cfg": stated}))
    save_file(dict(network.state_dict()), tmp_path / "model.safetensors")
    record = opened(tmp_path).record
    assert (record.input.height, record.input.mean, record.input.std) == (48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert record.labels == tuple("abcde")
    assert record.format == "timm folder, safetensors file, a bare state_dict"
    assert record.spec["family"] == "resnet"
