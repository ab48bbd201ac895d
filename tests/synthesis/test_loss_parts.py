import json

import torch

from compress.pipeline.synthesis.loss_parts import LossParts


def test_a_part_is_handed_on_with_its_gradient_and_its_mean_is_kept() -> None:
    parts = LossParts()
    weight = torch.tensor(3.0, requires_grad=True)
    value = weight * 2
    assert parts.seen("one", value) is value
    parts.seen("one", torch.tensor(1.0))
    parts.seen("other", torch.tensor(5.0))
    value.backward()
    assert weight.grad == 2
    assert parts.take() == {"one": 3.5, "other": 5.0}  # (6 + 1) / 2


def test_means_start_anew_when_they_were_taken() -> None:
    parts = LossParts()
    parts.seen("one", torch.tensor(1.0))
    parts.take()
    assert parts.take() == {}
    parts.seen("one", torch.tensor(4.0))
    assert parts.take() == {"one": 4.0}


def test_what_is_kept_holds_on_to_no_graph() -> None:
    parts = LossParts()
    parts.seen("one", torch.tensor(3.0, requires_grad=True) * 2)
    assert not parts._sums["one"].requires_grad


def test_parts_that_were_saved_go_on_as_if_nothing_had_happened() -> None:
    parts, continued = LossParts(), LossParts()
    for value in (0.1, 0.2):
        parts.seen("kl_loss", torch.tensor(value))
    continued.restore(json.loads(json.dumps(parts.state())), torch.device("cpu"))
    for each in (parts, continued):
        each.seen("kl_loss", torch.tensor(0.7))
    assert continued.take() == parts.take()
