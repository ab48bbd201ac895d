import pytest
import torch
from torch import Tensor, nn

from compress.exporters.folding import fold_batch_norm
from compress.pipeline.errors import InputError
from tests.networks import student, unsettle


def batch_norms(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]


def test_a_folded_network_answers_the_same_without_batch_norm() -> None:
    network, images = student(), torch.rand(4, 1, 8, 8)
    folded = fold_batch_norm(network)
    assert batch_norms(folded) == []
    torch.testing.assert_close(folded(images), network(images), rtol=1e-4, atol=1e-5)


def test_the_network_itself_keeps_its_batch_norm() -> None:
    network = student()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fold_batch_norm(network)
    assert len(batch_norms(network)) == 6
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_dropout_and_identity_are_gone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Identity(), nn.Dropout(0.5), nn.ReLU())
    assert [type(child) for child in fold_batch_norm(network).children()] == [nn.Conv2d, nn.ReLU]


def test_a_batch_norm_that_is_not_alone_behind_its_convolution_stays() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(x)
            normalised: Tensor = self.bn(out)
            return out + normalised

    network, images = unsettle(Shared()).eval(), torch.rand(2, 3, 4, 4)
    folded = fold_batch_norm(network)
    assert len(batch_norms(folded)) == 1
    torch.testing.assert_close(folded(images), network(images))


def test_a_network_that_looks_at_its_input_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match="cannot be traced") as refusal:
        fold_batch_norm(Branching())
    assert "branch" in refusal.value.hint
