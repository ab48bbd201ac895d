import importlib.util
import json
from pathlib import Path

import pytest

from compress.pipeline.distillation import tensorboard as module
from compress.pipeline.distillation.metrics_file import METRICS_FILE
from compress.pipeline.distillation.stage import distill
from compress.pipeline.distillation.tensorboard import Curves, require_tensorboard, tag
from compress.pipeline.errors import MissingResourceError
from compress.pipeline.records import HistoryPoint
from tests.command import compress
from tests.test_distill import plan, settings
from tests.tiny import CPU, Listener, tiny_embeddings, tiny_teacher


def test_every_curve_stands_under_a_heading() -> None:
    tags = [tag(name) for name in HistoryPoint.model_fields if name != "round"]
    assert tags[:6] == [
        *("progress/kd_steps", "progress/pool_images", "loss/synthesis_loss", "loss/kd_loss"),
        *("agreement/monitor_agreement", "progress/seconds"),
    ]
    assert all(name.startswith("loss/") for name in tags[6:-1])
    assert tags[-1] == "progress/learning_rate"


def test_a_package_that_is_missing_is_told_before_anything_is_written(
    teacher_file: Path, labels_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    result = compress(teacher_file, "--labels", labels_file, "-o", tmp_path / "out", "--tensorboard")
    assert result.exit_code == MissingResourceError.exit_code
    assert result.stderr == (
        "compress: TensorBoard is not installed.\n"
        "Install it with pip install 'compress-edge[tensorboard]', or leave --tensorboard out: metrics.jsonl has the same "
        "curves.\n"
    )
    assert not (tmp_path / "out").exists()


needs_tensorboard = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs TensorBoard")


def curves_in(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every curve, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


@needs_tensorboard
def test_tensorboard_reads_the_curves_of_the_metrics_also_of_a_run_that_was_continued(tmp_path: Path) -> None:
    require_tensorboard()
    folder, events = tmp_path / "stage", tmp_path / "tensorboard"
    folder.mkdir()
    curves = Curves(events)
    with pytest.raises(KeyboardInterrupt):
        listener = Listener(interrupt_after=4)
        distill(tiny_teacher(), tiny_embeddings(), plan(), settings(), CPU, folder, listener, curves=curves)
    curves.close()
    # As if the last round had not been saved: it is told again.
    lost = Curves(events)
    lost.add(
        HistoryPoint.model_validate(json.loads((folder / METRICS_FILE).read_text().splitlines()[-1]) | {"round": 4})
    )
    lost.close()
    curves = Curves(events)
    distill(tiny_teacher(), tiny_embeddings(), plan(), settings(), CPU, folder, Listener(), curves=curves)
    curves.close()
    told = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    found = curves_in(events)
    for name in set(HistoryPoint.model_fields) - {"round", "prior_loss"}:
        expected = {line["round"]: line[name] for line in told if line[name] is not None}
        assert [step for step, _ in found[tag(name)]] == list(expected), name
        assert dict(found[tag(name)]) == pytest.approx(expected), name
    assert tag("prior_loss") not in found
