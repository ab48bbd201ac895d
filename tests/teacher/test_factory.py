import sys
from pathlib import Path

import pytest
import torch

from compress.pipeline.errors import InputError, MissingResourceError, UsageError
from compress.pipeline.teacher import open_teacher
from tests.teacher.small_resnet import small_resnet

CODE = """
import torch

class Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.last = torch.nn.Linear(4, 3)

    def forward(self, images):
        return self.last(torch.tanh(self.stem(images)).mean((2, 3)))

def breaks():
    raise RuntimeError("no such option")

NUMBER = 7

class Detached(Own):
    def forward(self, images):
        return super().forward(images).detach()

def ends():
    raise SystemExit(2)
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("factory") / "weights.pt"
    torch.save(small_resnet().state_dict(), path)
    return path


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where the command runs, with code of the user's own in it."""
    (tmp_path / "own_network.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_network_of_the_users_own_goes_through_with_its_weights(own_code: Path) -> None:
    torch.manual_seed(1)
    weights = {
        "stem.weight": torch.randn(4, 3, 3, 3),
        "stem.bias": torch.randn(4),
        "last.weight": torch.randn(3, 4),
        "last.bias": torch.randn(3),
    }
    torch.save({"model": weights}, own_code / "t.pt")
    teacher = open_teacher(own_code / "t.pt", arch="own_network:Own", input_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    images = torch.rand(2, 3, 8, 8)
    stem = torch.nn.functional.conv2d((images - 0.5) / 0.5, weights["stem.weight"], weights["stem.bias"], padding=1)
    wanted = stem.tanh().mean((2, 3)) @ weights["last.weight"].T + weights["last.bias"]
    torch.testing.assert_close(teacher.logits(images), wanted)
    assert teacher.record.architecture == "Own of own_network:Own"
    assert teacher.record.spec["family"] == "program"
    assert any("No architecture known here answers as it does" in reason for reason in teacher.record.reasons)


@pytest.mark.usefixtures("own_code")
@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet18", "--arch 'resnet18' names no function"),
        (":function", "names no function"),
        ("no_such_module:f", "--arch no_such_module:f cannot be imported: ModuleNotFoundError"),
        ("own_network:missing", "There is no function 'missing' in the module 'own_network'"),
        ("own_network:NUMBER", "There is no function 'NUMBER'"),
        ("own_network:breaks", "--arch own_network:breaks failed: RuntimeError: no such option"),
        ("own_network:ends", "--arch own_network:ends failed: SystemExit: 2"),
        ("builtins:dict", "--arch builtins:dict returns dict, which is not a torch.nn.Module"),
    ],
)
def test_what_names_no_network_is_a_usage_error(weights: Path, arch: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_teacher(weights, arch=arch)


def test_a_network_that_lets_no_gradient_through_is_refused(own_code: Path, tmp_path: Path) -> None:
    state = {"stem.weight": torch.rand(4, 3, 3, 3), "stem.bias": torch.rand(4)}
    torch.save(state | {"last.weight": torch.rand(3, 4), "last.bias": torch.rand(3)}, tmp_path / "own.pt")
    with pytest.raises(InputError, match="lets no gradient through to its images, which distillation needs"):
        open_teacher(tmp_path / "own.pt", arch="own_network:Detached")


def test_weights_of_another_network_are_refused_by_name(own_code: Path, weights: Path) -> None:
    with pytest.raises(InputError, match=r"do not fit the network: 'conv1\.weight' has no place in it"):
        open_teacher(weights, arch="own_network:Own")


def test_timm_that_is_not_installed_is_a_missing_resource(weights: Path) -> None:
    with pytest.raises(MissingResourceError, match="timm cannot be imported") as caught:
        open_teacher(weights, arch="timm:resnet18")
    assert caught.value.hint == "Run `pip install timm`."


def test_another_function_or_other_code_is_another_teacher(own_code: Path) -> None:
    weights = {
        "stem.weight": torch.randn(4, 3, 3, 3),
        "stem.bias": torch.randn(4),
        "last.weight": torch.randn(3, 4),
        "last.bias": torch.randn(3),
    }
    torch.save(weights, own_code / "t.pt")
    (own_code / "other_network.py").write_text(CODE + "\ndef own():\n    return Own()\n")

    def identity(arch: str) -> object:
        sys.modules.pop("other_network", None)
        return open_teacher(own_code / "t.pt", arch=arch, input_size=8).record.identity

    first = identity("other_network:own")
    assert identity("other_network:own") == first
    assert identity("other_network:Own") != first
    (own_code / "other_network.py").write_text(CODE.replace("tanh", "relu") + "\ndef own():\n    return Own()\n")
    assert identity("other_network:own") != first
