import hashlib
import pathlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compress.pipeline.errors import CompressError, InputError, UnsafeInputError, UsageError
from compress.pipeline.teacher.reading import read_checkpoint
from tests.teacher.checkpoints import Weights, saved, tiny_weights
from tests.teacher.hostile.making import Canary


def refusal(content: bytes | bytearray, folder: Path) -> InputError:
    """How a file of that content, named as a checkpoint whatever it is, is refused."""
    path = folder / "teacher.pt"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    assert caught.value.exit_code == 3
    return caught.value


def assert_equal(read: Weights, expected: Weights) -> None:
    expected = {name: tensor for name, tensor in expected.items() if not name.endswith("num_batches_tracked")}
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("legacy", [False, True])
def test_both_formats_of_torch_give_back_the_weights(tmp_path: Path, legacy: bool) -> None:
    weights = tiny_weights()
    checkpoint = read_checkpoint(saved(weights, tmp_path / "any.suffix", legacy=legacy))
    assert_equal(checkpoint.tensors, weights)
    assert checkpoint.format.endswith("a bare state_dict")
    assert checkpoint.program is None


def test_safetensors_give_back_the_weights_and_the_metadata(tmp_path: Path) -> None:
    weights = tiny_weights()
    metadata = {"input_size": "[3, 8, 8]", "mean": "[0.1, 0.2, 0.3]", "std": "not JSON", "format": "pt"}
    save_file(weights, tmp_path / "teacher.bin", metadata | {"classes": '["cat", "dog", "eel"]'})
    checkpoint = read_checkpoint(tmp_path / "teacher.bin")
    assert_equal(checkpoint.tensors, weights)
    assert checkpoint.metadata == {"input_size": [3, 8, 8], "mean": [0.1, 0.2, 0.3], "std": "not JSON"}
    assert checkpoint.labels == ("cat", "dog", "eel")
    assert checkpoint.format == "safetensors file, a bare state_dict"


def test_what_training_noted_is_read(tmp_path: Path) -> None:
    weights = tiny_weights()
    weights["bn1.num_batches_tracked"] = torch.tensor(17)
    content = {"net": weights, "ema": weights, "classes": ["cat", "dog", "eel"], "mean": (0.5, 0.5, 0.5)}
    checkpoint = read_checkpoint(saved(content, tmp_path / "teacher.pt"))
    assert checkpoint.batches_tracked["bn1"] == 17
    assert checkpoint.labels == ("cat", "dog", "eel")
    assert checkpoint.metadata == {"mean": (0.5, 0.5, 0.5)}
    assert checkpoint.warnings == ("The checkpoint has weights under 'ema', too; they were not used.",)


def test_the_hash_is_the_one_of_the_file(tmp_path: Path) -> None:
    path = saved(tiny_weights(), tmp_path / "teacher.pt")
    assert read_checkpoint(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no file '.*nowhere\.pt'\.") as caught:
        read_checkpoint(tmp_path / "nowhere.pt")
    assert caught.value.exit_code == 2


def test_a_folder_with_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a folder\.\nIt has neither"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickled_module_is_refused_with_its_imports_and_a_recipe(tmp_path: Path, legacy: bool) -> None:
    path = saved(nn.Sequential(nn.ReLU()), tmp_path / "teacher.pt", legacy=legacy)
    error = refusal(path.read_bytes(), tmp_path)
    assert isinstance(error, UnsafeInputError)
    assert "would execute code when loaded" in error.message
    assert "torch.nn.modules.container.Sequential" in error.message
    assert "torch.save({'state_dict': model.state_dict()}, 'weights.pt')" in error.hint
    assert "--allow-pickle" in error.hint


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (nn.Sequential(nn.Linear(2, 2)), {"0.weight", "0.bias"}),
        ({"state_dict": nn.Linear(2, 2).state_dict(), "loss": nn.CrossEntropyLoss()}, {"weight", "bias"}),
    ],
)
@pytest.mark.parametrize("dump", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_the_recipe_leads_to_a_file_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dump: Callable[[Any, Path], Any], content: object, names: set[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    dump(content, tmp_path / "teacher.pt")
    hint = refusal((tmp_path / "teacher.pt").read_bytes(), tmp_path).hint
    recipe = "\n".join(line.strip() for line in hint.splitlines() if line.startswith("    "))
    exec(recipe, {"torch": torch, "pickle": pickle, "pathlib": pathlib})  # noqa: S102  the recipe is what is tested
    assert read_checkpoint(Path("weights.pt")).tensors.keys() == names


@pytest.mark.parametrize("form", ["torch zip", "torch legacy", "safetensors"])
def test_a_truncated_checkpoint_is_refused_with_its_reason(tmp_path: Path, form: str) -> None:
    path = tmp_path / "whole"
    if form == "safetensors":
        save_file(tiny_weights(), path)
    else:
        saved(tiny_weights(), path, legacy=form == "torch legacy")
    whole = path.read_bytes()
    for length in range(30, len(whole), len(whole) // 20):
        assert "truncated" in refusal(whole[:length], tmp_path).message


@pytest.mark.parametrize("form", ["torch zip", "torch legacy", "safetensors"])
def test_damaged_bytes_never_end_in_another_error(tmp_path: Path, form: str) -> None:
    path = tmp_path / "whole"
    if form == "safetensors":
        save_file(tiny_weights(), path)
    else:
        saved({"state_dict": tiny_weights()}, path, legacy=form == "torch legacy")
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole), len(whole) // 100):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x41]) + whole[position + 1 :])
        try:
            read_checkpoint(path)
        except CompressError as error:
            refused += error.exit_code == 3
    assert refused > 0


def test_a_flipped_bit_in_a_weight_of_an_archive_is_found(tmp_path: Path) -> None:
    # PyTorch itself takes the wrong number: its reader does not compare the archive's checksums.
    saved({"weight": torch.ones(64)}, tmp_path / "whole")
    content = bytearray((tmp_path / "whole").read_bytes())
    content[content.index(torch.ones(64).numpy().tobytes()) + 100] ^= 1
    assert refusal(content, tmp_path).message == "'teacher.pt' is damaged: a checksum in it is wrong."


def test_names_from_a_hostile_file_reach_the_terminal_without_control_characters(tmp_path: Path) -> None:
    saved({"\x1b[2Jweight" + "x" * 900: torch.tensor([float("nan")])}, tmp_path / "hostile")
    message = refusal((tmp_path / "hostile").read_bytes(), tmp_path).message
    assert message.isprintable() and "?[2Jweight" in message and len(message) < 300


def test_a_hostile_file_name_reaches_the_terminal_without_control_characters(tmp_path: Path) -> None:
    (tmp_path / "\x1b[2Jteacher.pt").write_bytes(b"text")
    with pytest.raises(InputError) as caught:
        read_checkpoint(tmp_path / "\x1b[2Jteacher.pt")
    assert caught.value.message == "'?[2Jteacher.pt' is a text file."


# With --allow-pickle.


class Own(nn.Module):
    """A network of the customer's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.norm(self.conv(images))
        return features.mean((2, 3))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrapped",
    [
        lambda net: net,
        nn.DataParallel,
        lambda net: {"net": net, "acc": 93.0},
        lambda net: {"model": nn.DataParallel(net)},
    ],
)
def test_an_allowed_module_is_weights_and_a_program(
    tmp_path: Path, wrapped: Callable[[Any], Any], legacy: bool
) -> None:
    network = Own().half()
    path = saved(wrapped(network), tmp_path / "teacher.pt", legacy=legacy)
    checkpoint = read_checkpoint(path, allow_pickle=True)
    expected = network.float().eval()
    assert_equal(checkpoint.tensors, expected.state_dict())
    assert checkpoint.batches_tracked == {"norm": 0}
    assert checkpoint.warnings[0] == "Code from the file was run to load it, as --allow-pickle asked."
    assert checkpoint.format.endswith(", a pickled module")
    assert checkpoint.program is not None
    assert checkpoint.program.title == f"pickled module of class {__name__}.Own"
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(checkpoint.program.network(images), expected(images))


def test_an_allowed_plain_pickle_of_a_module_is_read_likewise(tmp_path: Path) -> None:
    (tmp_path / "teacher.pkl").write_bytes(pickle.dumps(Own()))
    assert read_checkpoint(tmp_path / "teacher.pkl", allow_pickle=True).program is not None


def test_an_allowed_dictionary_with_weights_and_other_objects_is_weights(tmp_path: Path) -> None:
    weights = tiny_weights()
    path = saved({"state_dict": weights, "loss": nn.CrossEntropyLoss()}, tmp_path / "teacher.pt")
    checkpoint = read_checkpoint(path, allow_pickle=True)
    assert_equal(checkpoint.tensors, weights)
    assert checkpoint.program is None
    assert checkpoint.format == "PyTorch checkpoint, weights under 'state_dict'"
    assert checkpoint.warnings == ("Code from the file was run to load it, as --allow-pickle asked.",)


def test_what_needs_no_code_runs_none_even_where_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("torch.load was called")

    path = saved(tiny_weights(), tmp_path / "teacher.pt")
    monkeypatch.setattr(torch, "load", load)
    assert read_checkpoint(path, allow_pickle=True).warnings == ()


def test_allowing_pickles_runs_what_they_say(tmp_path: Path) -> None:
    content = {"net": tiny_weights(), "extra": Canary(tmp_path / "marker")}
    path = saved(content, tmp_path / "teacher.pt")
    with pytest.raises(UnsafeInputError):
        read_checkpoint(path)
    assert not (tmp_path / "marker").exists()
    with pytest.warns(ResourceWarning):
        read_checkpoint(path, allow_pickle=True)
    assert (tmp_path / "marker").exists()


def test_an_allowed_module_whose_class_is_missing_is_refused_in_a_sentence(tmp_path: Path) -> None:
    stream = b"\x80\x02cno_such_module\nNetwork\n)R."
    (tmp_path / "teacher.pkl").write_bytes(stream)
    with pytest.raises(
        InputError, match=r"'teacher\.pkl' cannot be unpickled: ModuleNotFoundError: No module named"
    ) as caught:
        read_checkpoint(tmp_path / "teacher.pkl", allow_pickle=True)
    assert caught.value.message.isprintable() and "modules can be imported" in caught.value.hint


def test_damage_is_damage_even_where_pickles_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "teacher.pkl").write_bytes(pickle.dumps([1, 2])[:-1])
    with pytest.raises(InputError, match="is damaged or truncated"):
        read_checkpoint(tmp_path / "teacher.pkl", allow_pickle=True)
