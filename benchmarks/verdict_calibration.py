"""Is agreement on synthetic probes a good predictor of agreement on real images?

    python benchmarks/verdict_calibration.py FOLDER[=COPIES] ... --data IMAGES.npz [--fresh N [--seed S]] [--plot FILE.svg]

Each FOLDER is what `compress` delivered; all its artifacts are students. COPIES is a folder of a run's earlier moments,
as `curve.py` leaves it; each of them is one student more. All must have the same teacher. A row a student: agreement with
the teacher on the folder's own probes, of each kind and of all, and on real images that no run saw. With `--fresh` all are
asked about the same probes, views of N batches of images, made here with the first folder's recipe. Below are the rank
correlation, and how far the probes' agreement is from the real one.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from compress.pipeline.device import choose_compute
from compress.pipeline.distillation.stage import PROBES_FILE
from compress.pipeline.probes import KINDS, Probes, make_probes
from compress.pipeline.settings import resolve_settings
from compress.pipeline.teacher import Teacher
from compress.pipeline.tensor_files import under
from compress.pipeline.workspace import EMBEDDINGS_FILE
from curve import student_of
from real_agreement import Images, Logits, answers, find_teacher, read_images

ALL = "all probes"


@dataclass(frozen=True, slots=True)
class Student:
    """What agrees how much with its teacher."""

    name: str
    on_probes: Mapping[str, float]
    """Share of the probes of each kind, and of all."""
    on_real: float


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    mean: NDArray[np.float64] = (last - (counts - 1) / 2)[place]
    return mean


def rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Spearman's: Pearson's correlation of the ranks; not a number where all are equal."""
    one, other = (ranks(values) - ranks(values).mean() for values in (first, second))
    scale = np.sqrt((one**2).sum() * (other**2).sum())
    return float((one * other).sum() / scale) if scale else float("nan")


def agreement_of_kinds(
    classes: NDArray[np.int64], wanted: NDArray[np.int64], kind: NDArray[np.str_]
) -> dict[str, float]:
    """Share of equal classes among the probes of each kind that is there, and among all."""
    same = classes == wanted
    return {name: float(same[kind == name].mean()) for name in KINDS if (kind == name).any()} | {
        ALL: float(same.mean())
    }


def fresh_probes(folder: Path, teacher: Teacher, batches: int, seed: int, **settings_of_probes: int) -> Probes:
    """Probes of the folder's recipe and embeddings, which its runs never saw, made by what is installed here."""
    asked = json.loads((folder / "report.json").read_bytes())["settings"]
    settings = resolve_settings({"recipe": asked["recipe"], "seed": seed, "target": "onnx"}, environment={})
    settings = settings.model_copy(
        update={"probes": settings.probes.model_copy(update={"batches": batches} | settings_of_probes)}
    )
    embeddings = load_file(folder / "work" / "2-embed" / EMBEDDINGS_FILE)["embeddings"]
    compute = choose_compute(settings)
    teacher = teacher.to(compute.device, torch.channels_last)
    return make_probes(teacher, embeddings, settings, compute, purpose="fresh probes")


def students_of(
    folder: Path, copies: Path | None, teacher: Teacher
) -> Iterator[tuple[str, Callable[[Images], Logits]]]:
    """Every artifact of a folder but the teacher and the fp32 graph, which is the student, and every earlier moment."""
    artifacts = answers(folder, teacher).items()
    yield from ((f"{folder.name}/{name}", run) for name, run in artifacts if name not in ("teacher", "student.onnx"))
    for copy in sorted(copies.glob("*.safetensors")) if copies else ():
        yield f"{folder.name} after {int(copy.stem):,} s", student_of(folder, under("average", load_file(copy)))


def measure(
    folder: Path,
    copies: Path | None,
    teacher: Teacher,
    images: Images,
    wanted: NDArray[np.int64],
    probes: Probes | None = None,
) -> list[Student]:
    """The students of one folder, on its own probes or others, and on real images, whose classes by the teacher are `wanted`."""
    probes = probes or Probes.load(folder / PROBES_FILE)
    shown, named = probes.images.astype(np.float32) / np.float32(255), probes.teacher_logits.argmax(1)
    return [
        Student(
            name=name,
            on_probes=agreement_of_kinds(run(shown).argmax(1), named, probes.kind),
            on_real=float((run(images).argmax(1) == wanted).mean()),
        )
        for name, run in students_of(folder, copies, teacher)
    ]


def table_of(students: Sequence[Student]) -> Table:
    """Best on real images first."""
    kinds = list(students[0].on_probes)
    table = Table("student", "real images", *kinds, "gap", title=f"{len(students)} students")
    for student in sorted(students, key=lambda student: -student.on_real):
        shares = (f"{student.on_probes[kind]:.1%}" for kind in kinds)
        table.add_row(student.name, f"{student.on_real:.1%}", *shares, f"{_gap(student, ALL):+.1%}")
    return table


def summary_of(students: Sequence[Student]) -> Table:
    """What each kind of probes is worth."""
    table = Table("probes", "rank correlation", "median gap", "worst gap", "mean of gap")
    real = np.array([student.on_real for student in students])
    for kind in students[0].on_probes:
        shares = np.array([student.on_probes[kind] for student in students])
        gaps = shares - real
        distances = (f"{value:.1%}" for value in (np.median(np.abs(gaps)), np.abs(gaps).max()))
        table.add_row(kind, f"{rank_correlation(shares, real):.3f}", *distances, f"{gaps.mean():+.1%}")
    return table


def plot(students: Sequence[Student]) -> str:
    """Agreement on all probes against that on real images, as SVG; on the line the two are equal."""
    size, margin = 380, 54
    low = min(min(student.on_real, student.on_probes[ALL]) for student in students)
    start = min(np.floor(low * 10) / 10, 0.9)

    def at(share: float) -> float:
        return float(margin + (share - start) / (1 - start) * (size - 2 * margin))

    points = "".join(
        f'<circle cx="{at(student.on_real):.1f}" cy="{size - at(student.on_probes[ALL]):.1f}" r="3.5">'
        f"<title>{escape(student.name)}: {student.on_probes[ALL]:.1%} of the probes, {student.on_real:.1%} of real images</title>"
        "</circle>"
        for student in students
    )
    marks = "".join(
        f'<text x="{at(share):.1f}" y="{size - margin + 16}" text-anchor="middle">{share:.0%}</text>'
        f'<text x="{margin - 6}" y="{size - at(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
        for share in np.arange(start, 1.001, 0.1)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" font-family="sans-serif" font-size="11">'
        f'<rect width="{size}" height="{size}" fill="#fff"/>'
        f'<path d="M{margin} {size - margin}L{size - margin} {margin}" stroke="#999"/>'
        f'<path d="M{margin} {margin}V{size - margin}H{size - margin}" stroke="#333" fill="none"/>'
        f'<g fill="#1a66cc" fill-opacity=".75">{points}</g><g fill="#333">{marks}'
        f'<text x="{size / 2}" y="{size - 6}" text-anchor="middle">agreement on real images</text>'
        f'<text x="12" y="{size / 2}" text-anchor="middle" transform="rotate(-90 12 {size / 2})">agreement on probes</text>'
        "</g></svg>\n"
    )


def _gap(student: Student, kind: str) -> float:
    return student.on_probes[kind] - student.on_real


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER[=COPIES]", help="what `compress` delivered")
    parser.add_argument("--data", type=Path, required=True, help="real images as npz, see real_agreement.py")
    parser.add_argument("--limit", type=int, help="only so many real images")
    parser.add_argument("--fresh", type=int, help="ask all students about probes of so many batches, made here")
    parser.add_argument("--seed", type=int, default=1, help="of these")
    parser.add_argument("--plot", type=Path, help="where to write a picture")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    pairs = [(Path(folder), Path(copies) if copies else None) for folder, _, copies in
             (word.partition("=") for word in options.folders)]  # fmt: skip
    images, _ = read_images(options.data, options.limit)
    students: list[Student] = []
    teachers = [find_teacher(folder, None) for folder, _ in pairs]
    if len({teacher.record.sha256 for teacher in teachers}) > 1:
        parser.error("the folders have different teachers")
    fresh = fresh_probes(pairs[0][0], teachers[0], options.fresh, options.seed) if options.fresh else None
    with torch.inference_mode():
        wanted = answers(pairs[0][0], teachers[0])["teacher"](images).argmax(1)
        for (folder, copies), teacher in zip(pairs, teachers, strict=True):
            students += measure(folder, copies, teacher, images, wanted, fresh)
    Console(width=140).print(table_of(students), summary_of(students))
    if options.plot:
        options.plot.write_text(plot(students), encoding="utf-8")
    if options.json:
        rows = [{"name": each.name, "probes": dict(each.on_probes), "real": each.on_real} for each in students]
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
