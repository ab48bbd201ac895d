"""Two delivered folders side by side."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.exporters.bundle import write_manifest
from compress.pipeline.comparison import intervals_of
from compress.pipeline.proportions import proportion
from compress.pipeline.records import Proportion
from tests.command import compress
from tests.test_run import OPTIONS


@pytest.fixture(scope="module")
def deliveries(tmp_path_factory: pytest.TempPathFactory, teacher_file: Path, labels_file: Path) -> tuple[Path, Path]:
    """The same student for two targets."""
    plain, rounded = (tmp_path_factory.mktemp("deliveries") / name for name in ("plain", "rounded"))
    words = (teacher_file, "--labels", labels_file, *OPTIONS, "--min-agreement", "0.05")
    assert compress(*words, "--target", "onnx", "-o", plain).exit_code == 0
    shutil.copytree(plain, rounded)
    assert compress(*words, "--target", "cpu-x86", "-o", rounded).exit_code == 0
    return plain, rounded


@pytest.fixture
def folders(deliveries: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    one, other = (
        shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("work")) for folder in deliveries
    )
    return one, other


def reseal(folder: Path, change: Callable[[dict[str, Any]], object] = lambda report: None) -> None:
    """Another report, as if the folder had been delivered with it."""
    report = json.loads((folder / "report.json").read_text())
    change(report)
    (folder / "report.json").write_text(json.dumps(report))
    manifest = json.loads((folder / "manifest.json").read_text())
    write_manifest(folder, names=manifest["files"], provenance=manifest["provenance"])


def compared(one: Path, other: Path) -> dict[str, Any]:
    result = compress("compare", one, other, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_what_both_hold_and_what_differs_is_told(folders: tuple[Path, Path]) -> None:
    told = compared(*folders)
    assert (told["one"]["target"], told["other"]["target"]) == ("onnx", "cpu-x86")
    assert told["one"]["student"] == told["other"]["student"] == "inherit-1-1"
    assert told["remarks"] == ["Both were judged on the same probes."]
    assert told["settings"] == {}
    artifacts = {pair["artifact"]: pair for pair in told["artifacts"]}
    assert list(artifacts) == ["student.safetensors", "student.onnx", "student.int8.onnx"]
    report = json.loads((folders[1] / "report.json").read_text())
    assert told["other"]["seconds"] == pytest.approx(sum(report["timings"].values()))
    (row,) = [row for row in report["validation"]["ledger"] if row["artifact"] == "student.int8.onnx"]
    assert artifacts["student.int8.onnx"]["other"] == {
        **{name: row[name] for name in ("size_bytes", "agreement", "latency_ms", "mean_kl")},
        "real_agreement": None,
    }
    assert (artifacts["student.int8.onnx"]["one"], artifacts["student.int8.onnx"]["agreement"]) == (None, None)
    assert artifacts["student.onnx"]["agreement"] == "intervals overlap"


def test_the_table_has_a_column_for_each(folders: tuple[Path, Path]) -> None:
    result = compress("compare", *folders)
    assert (result.exit_code, result.stderr) == (0, "")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["student", "inherit-1-1", "inherit-1-1"] in rows
    assert ["intervals", "overlap"] in rows
    assert rows.count(["target", "onnx", "cpu-x86"]) == 1
    int8 = rows.index(["student.int8.onnx"])
    assert rows[int8 + 1][:2] == ["size", "–"]  # noqa: RUF001 - there is none


def test_settings_that_differ_are_told_by_their_names(folders: tuple[Path, Path]) -> None:
    reseal(folders[1], lambda report: report["settings"]["distill"].update(rounds=7))
    rounds = json.loads((folders[0] / "report.json").read_text())["settings"]["distill"]["rounds"]
    assert compared(*folders)["settings"] == {"distill.rounds": [rounds, 7]}
    assert f"distill.rounds {rounds} 7" in " ".join(compress("compare", *folders).stdout.split())


def test_the_table_keeps_to_80_columns_and_its_cells_to_a_line(folders: tuple[Path, Path], tmp_path: Path) -> None:
    deep = tmp_path / "students-of-the-laboratory" / "for-the-arm-boards-of-the-first-series"
    deep.mkdir(parents=True)
    one, other = (folder.rename(deep / folder.name) for folder in folders)
    reseal(one, on_real_images(930, 1000, "ab" * 32))
    layers = [f"network.layer{number}.conv1" for number in range(4)]
    reseal(other, lambda report: report["settings"]["quantize"].update(exclude=layers))
    reseal(other, lambda report: report["settings"]["distill"].update(inherited_learning_rate=0.0123))
    lines = compress("compare", one, other).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines[1:] if line.strip()]
    first = [row[0] for row in rows]
    assert [name[0] for name in rows[0]] == ["…", "…"]
    assert [name.rpartition("/")[2] for name in rows[0]] == ["plain", "rounded"]
    assert first[2:8] == ["target", "student", "parameters", "verdict", "judged", "time"]
    assert first[8:15] == ["student.safetensors", "size", "latency", "mean", "agreement", "95", "intervals"]
    assert rows[-2:] == [["quantize.exclude", "[]", "4", "values,", "see"], ["settings.yaml"]]
    assert rows[-3][0] == "distill.inherited_learning_rate"


def test_folders_whose_names_end_alike_are_named_whole(folders: tuple[Path, Path], tmp_path: Path) -> None:
    end = Path("a-name-that-is-longer-than-a-column-of-the-table")
    for folder in folders:
        (tmp_path / folder.name[0]).mkdir()
        folder.rename(tmp_path / folder.name[0] / end)
    table = compress("compare", tmp_path / "p" / end, tmp_path / "r" / end).stdout
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= 80


def test_different_teachers_are_told_of_first(folders: tuple[Path, Path]) -> None:
    reseal(folders[1], lambda report: report["teacher"].update(sha256="ab" * 32, file_name="other\x1b.pt"))
    remarks = compared(*folders)["remarks"]
    assert remarks[0].startswith("The two have different teachers, teacher.pt (SHA-256 ")
    assert (
        "other\\u001b.pt (SHA-256 abababababab): each agrees, as far as it does, with answers of its own." in remarks[0]
    )
    assert compress("compare", *folders).stdout.startswith("The two have different teachers, ")


def test_different_probes_are_told_of(folders: tuple[Path, Path]) -> None:
    with (folders[1] / "probes.npz").open("ab") as stream:
        stream.write(b"\0")
    reseal(folders[1])
    told = compared(*folders)
    assert (told["same_probes"], told["remarks"]) == (False, ["Both were judged on different probes."])


def on_real_images(agreeing: int, total: int, sha256: str) -> Callable[[dict[str, Any]], object]:
    """Lets a report tell of real images, on which every artifact agrees so often."""
    agreement = proportion(agreeing, total).model_dump()

    def change(report: dict[str, Any]) -> None:
        rows = [
            {"artifact": row["artifact"], "agreement": agreement, "accuracy": None}
            for row in report["validation"]["ledger"]
        ]
        report["validation"]["holdout"] = {
            "name": f"photos-{total}",
            "images": total,
            "sha256": sha256,
            "teacher_accuracy": None,
            "rows": rows,
        }

    return change


def test_agreement_on_real_images_is_told_for_either_folder(folders: tuple[Path, Path]) -> None:
    reseal(folders[0], on_real_images(930, 1000, "ab" * 32))
    told = compared(*folders)
    measured = told["artifacts"][1]
    assert measured["one"]["real_agreement"] == proportion(930, 1000).model_dump()
    assert measured["other"]["real_agreement"] is None
    assert told["remarks"] == ["Both were judged on the same probes."]
    rows = [line.split() for line in compress("compare", *folders).stdout.splitlines()]
    assert ["on", "real", "images", "93.0", "%", "–"] in rows  # noqa: RUF001 - there is none
    # Wilson, n = 1000: 930 agree -> 91.2 to 94.4 %
    assert ["95", "%", "interval", "91.2", "to", "94.4", "%", "–"] in rows  # noqa: RUF001 - there is none
    reseal(folders[1], on_real_images(900, 1000, "ab" * 32))
    assert "Both were measured on the same 1,000 real images." in compared(*folders)["remarks"]


def test_real_images_that_are_not_the_same_are_told_of(folders: tuple[Path, Path]) -> None:
    reseal(folders[0], on_real_images(930, 1000, "ab" * 32))
    reseal(folders[1], on_real_images(90, 100, "cd" * 32))
    assert compared(*folders)["remarks"][0] == (
        "Their real images, 1,000 in photos-1000 and 100 in photos-100, are not the same: "
        "agreement on them does not compare."
    )


def test_numbers_that_are_not_finite_are_strings(folders: tuple[Path, Path]) -> None:
    reseal(folders[1], lambda report: report["validation"]["ledger"][0].update(mean_kl="Infinity"))
    assert compared(*folders)["artifacts"][0]["other"]["mean_kl"] == "Infinity"
    assert "∞ nats" in compress("compare", *folders).stdout


@pytest.mark.parametrize("place", [0, 1])
def test_a_folder_that_cannot_be_read_is_refused_whichever_it_is(folders: tuple[Path, Path], place: int) -> None:
    def refused(code: int) -> str:
        result = compress("compare", *folders)
        assert (result.exit_code, result.stdout) == (code, "")
        return result.stderr

    folder = folders[place]
    reseal(folder, lambda report: report.update(schema_version=99))
    assert f"'{folder}/report.json' was written by another version of compress." in refused(3)
    (folder / "labels.txt").write_text("changed")
    assert f"'{folder}' is not as it was delivered: labels.txt was changed." in refused(4)
    (folder / "manifest.json").unlink()
    assert f"'{folder}' is not as it was delivered: manifest.json is missing." in refused(4)
    (folder / "report.json").unlink()
    assert f"'{folder}' is not finished." in refused(2)
    shutil.rmtree(folder)
    assert f"There is no folder '{folder}'." in refused(2)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        # Wilson, n = 1000: 900 agree -> 87.9 to 91.7 %; 930 -> 91.2 to 94.4 %; 940 -> 92.3 to 95.3 %
        (proportion(900, 1000), proportion(930, 1000), "intervals overlap"),
        (proportion(900, 1000), proportion(940, 1000), "intervals do not overlap"),
        (proportion(940, 1000), proportion(900, 1000), "intervals do not overlap"),
        (proportion(900, 1000), proportion(900, 1000), "intervals overlap"),
    ],
)
def test_two_agreements_differ_where_their_intervals_have_nothing_in_common(
    one: Proportion, other: Proportion, words: str
) -> None:
    assert intervals_of(one, other) == words
