import html
import io
import json
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from markdown_it import MarkdownIt
from onnx import TensorProto, helper
from PIL import Image
from rich.console import Console

from compress.exporters.camera_input import with_camera_input
from compress.exporters.targets import Gates, Target
from compress.pipeline import fidelity
from compress.pipeline.adequacy import assess_adequacy
from compress.pipeline.proportions import proportion
from compress.pipeline.records import (
    DistillRecord,
    EmbeddingRecord,
    EngineRecord,
    ExportedGraph,
    ExportRecord,
    Finding,
    HistoryPoint,
    HoldoutRecord,
    HoldoutRow,
    InputSpec,
    LayerCost,
    LedgerRow,
    Proportion,
    QuantizeRecord,
    SampleGrid,
    Step,
    TeacherCost,
    TeacherRecord,
    ValidateRecord,
    Verdict,
)
from compress.pipeline.report import ReportData, charts, render, render_table, sections, text
from compress.pipeline.report.junit import to_junit
from compress.pipeline.report.png import class_grid, probe_samples

DIGITS = tuple(
    f"digit {name}" for name in ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
)
LIMITS = Gates(min_agreement=0.9, max_mean_kl=2, max_size_mb=0.5)
CPU = "AMD EPYC 7B13, 2 cores"


def imitation(teacher: Any, mistakes: int, noise: float) -> Any:
    """Logits that are noisy everywhere and wrong on every so many images."""
    student = teacher + np.random.default_rng(5).normal(0, noise, teacher.shape).astype(np.float32)
    student[3::mistakes] = np.roll(student[3::mistakes], 1, axis=1)
    return student


def a_step(origin: str) -> Step:
    return Step(origin=origin, agreement=proportion(99, 100), mean_kl=0.01, sqnr_db=20.0, lost=0.01)


def validation(
    num_classes: int = 10,
    mistakes: int = 27,
    gates: Gates = LIMITS,
    margin: float = 8,
    probes: int = 1200,
) -> ValidateRecord:
    """Two artifacts, measured on made-up logits."""
    random = np.random.default_rng(0)
    targets = random.integers(0, num_classes, probes)
    teacher = random.normal(0, 1, (probes, num_classes)).astype(np.float32)
    teacher[np.arange(probes), targets] += margin
    kinds, origin = random.choice(["synthesised", "synthesised", "mixed", "augmented"], probes), np.arange(probes) // 2
    adequacy = assess_adequacy(teacher, targets, kinds == "synthesised")
    artifacts = (
        ("student.onnx", "fp32", 1_120_000, 1.84, 60, 0.3),
        ("student.int8.onnx", "int8", 301_000, 0.87, mistakes, 0.6),
    )
    ledger = [
        fidelity.measure_artifact(
            name,
            precision,
            size_bytes=size_bytes,
            latency_ms=latency_ms,
            teacher_logits=teacher,
            student_logits=imitation(teacher, wrong, noise),
            kinds=kinds,
            groups=origin,
            gates=gates,
            adequate=adequacy.adequate,
        )
        for name, precision, size_bytes, latency_ms, wrong, noise in artifacts
    ]
    last, rounded = (
        LedgerRow(artifact=form, precision=precision, step=step, **dict(fidelity.measures(teacher, answers, origin)))
        for form, precision, answers, step in (
            ("last weights", "fp32", imitation(teacher, 20, 0.5), None),
            ("fake-quantized", "int8", imitation(teacher, mistakes, 0.6), a_step("student.onnx")),
        )
    )
    return ValidateRecord(
        probes=probes,
        probe_images=len(set(origin.tolist())),
        probe_kinds={str(kind): int((kinds == kind).sum()) for kind in np.unique(kinds)},
        adequacy=adequacy,
        ledger=tuple(ledger),
        shipped="student.int8.onnx",
        verdict=fidelity.find_artifact(ledger, "student.int8.onnx").verdict,
        cpu=CPU,
        teacher=TeacherCost(size_bytes=3_400_000, latency_ms=9.87),
        undelivered=(last, rounded),
    )


def report_data(labels: tuple[str, ...] = DIGITS, **changes: Any) -> ReportData:
    """A realistic record of a whole run."""
    history = tuple(
        HistoryPoint(
            round=number,
            kd_steps=number * 20,
            pool_images=number * 100,
            synthesis_loss=2.0,
            kd_loss=1 / number,
            monitor_agreement=0.97 - 0.45 * 0.86**number if number > 1 else None,
            seconds=4.2 * number,
        )
        for number in range(1, 31)
    )
    int8_graph = ExportedGraph(
        file_name="student.int8.onnx",
        precision="int8",
        opset=17,
        ir_version=8,
        size_bytes=301_000,
        sha256="c" * 64,
        max_abs_difference=0.0312,
    )
    float_graph = int8_graph.model_copy(
        update={"file_name": "student.onnx", "precision": "fp32", "sha256": "b" * 64, "max_abs_difference": 4.1e-6}
    )
    record = ReportData(
        title="resnet18-digits for jetson",
        target=Target(
            name="jetson",
            title="Jetson Orin with JetPack 6",
            runtime="tensorrt",
            jetpack="6",
            tensorrt=("8.6", "10.3"),
            precisions=("fp32", "int8"),
            int8="s8s8",
            opset=17,
            ir_version=8,
        ),
        teacher=TeacherRecord(
            file_name="teacher.pt",
            sha256="a" * 64,
            format="training checkpoint, state_dict under 'state_dict'",
            name="resnet18",
            architecture="ResNet-18 with a 3x3 stem, width 64",
            spec={"family": "resnet"},
            input=InputSpec(
                channels=3,
                height=32,
                width=32,
                mean=(0.4914, 0.4822, 0.4465),
                std=(0.247, 0.243, 0.261),
                source="the usual values of CIFAR",
            ),
            num_classes=len(labels),
            parameters=11_173_962,
            batch_norm_layers=20,
            reasons=("122 of 122 keys and shapes match", "the first convolution is 3x3 with stride 1"),
            findings=(
                Finding(
                    severity="warning",
                    topic="normalisation",
                    message="The checkpoint does not say how its images were normalised.",
                    advice="Give --mean and --std.",
                ),
            ),
        ),
        embedding=EmbeddingRecord(
            encoder="all-MiniLM-L6-v2",
            encoder_sha256="d" * 64,
            prompt="a photo of a {label}",
            dimension=384,
            labels=labels,
            closest_pair=(labels[0], labels[1], 0.913),
        ),
        distill=DistillRecord(
            student="inherit-1-1-1-1",
            spec={"family": "resnet"},
            inherited=True,
            parameters=277_402,
            warmup_rounds=1,
            rounds=29,
            annealed=tuple((number + 1) / 29 for number in range(29)),
            kd_steps=600,
            pool_images=3400,
            probes=1200,
            monitor_agreement=0.968,
            history=history,
            notes=("Round 27 of 30 was the best on the monitor probes and is what is shipped.",),
        ),
        quantize=QuantizeRecord(
            scheme="int8, signed symmetric; weights per channel, activations per tensor",
            quantized_layers=tuple(
                f"layer{stage}.{block}.conv{number}" for stage in (1, 2, 3, 4) for block in (0, 1) for number in (1, 2)
            ),
            float_layers=("stem.conv", "head"),
            left_float=("head",),
            layer_costs=(LayerCost(layer="layer1.0.conv1", sqnr_db=21.46, agreement=0.984),),
            tail_steps=100,
            held_out=850,
            agreement_float=0.969,
            agreement_calibrated=0.951,
            agreement=0.968,
        ),
        export=ExportRecord(
            target="jetson",
            graphs=(float_graph, int8_graph),
            engine=EngineRecord(
                built=False,
                file_name=None,
                message="No TensorRT engine was built: TensorRT is not installed here. deploy/build_engine.sh builds it on the device.",
            ),
        ),
        validation=validation(len(labels)),
        labels=labels,
        settings={
            "seed": 0,
            "target": "jetson",
            "distill": {"kd_steps": 20, "learning_rate": 0.1},
            "teacher": {"mean": None},
        },
        timings={"intake": 0.84, "embed": 2.1, "distill": 754.0, "quantize": 41.3, "export": 6.6, "validate": 9.7},
        seed=0,
        versions={"compress": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "onnxruntime": "1.32.0"},
    )
    return record.model_copy(update=changes)


HOSTILE = (
    "<script>alert(1)</script>",
    "a|b",
    "back\\slash \\| both",
    "`code` **bold** _under_ ~~gone~~ $x$",
    "[link](http://evil.example) ![image](x)",
    "www.evil.example",
    "&amp; &#60;b&#62;",
    "\x1b[31mred\x07",
    "\u202egnitrevni",
    "two\nlines",
    "- item",
    "1. item",
    "# heading",
    '" onload="alert(1)',
    "{{ 7 * 7 }}{% raw %}",
    "snow\u2028man",
    "=SUM(A1)",
    "नमस्\u200dते",
)


def files(data: ReportData, samples: bytes | None = None) -> dict[str, str]:
    return {name: content.decode() for name, content in render(data, samples).items()}


@cache
def hostile_files() -> dict[str, str]:
    """Foreign text in every place that it can reach."""
    data = report_data(labels=HOSTILE, validation=validation(len(HOSTILE)))
    nasty = "<b>|`*_\x1b[2J\u202e"
    finding = Finding(severity="problem", topic=nasty, message=nasty, advice=nasty)
    texts = dict.fromkeys(("file_name", "format", "name", "architecture"), nasty)
    teacher = data.teacher.model_copy(update={**texts, "findings": (finding,), "reasons": (nasty,)})
    return files(
        data.model_copy(
            update={"title": nasty, "teacher": teacher, "settings": {nasty: nasty}, "versions": {nasty: nasty}}
        )
    )


class Page(HTMLParser):
    """What a browser would make of a page: its tags with attributes, and whether they nest."""

    VOID: ClassVar = {"meta", "img", "rect", "line", "polyline", "path", "br"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("th", "td"):
            self.cells.append("")
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("th", "td"):
            self.cells[-1] += data


# The whole


def test_a_report_is_five_files() -> None:
    assert list(files(report_data())) == ["report.html", "report.md", "report.json", "junit.xml", "README.md"]


def test_the_same_record_gives_the_same_bytes() -> None:
    assert render(report_data()) == render(report_data())


@pytest.mark.parametrize("name", ["report.html", "report.md", "README.md", "junit.xml"])
def test_every_readable_file_tells_the_verdict_in_one_sentence(name: str) -> None:
    data = report_data()
    words = fidelity.verdict_sentence(data.validation).partition(": ")[2]
    shown = html.unescape(files(data)[name]).replace("\xa0", " ")
    assert words.startswith("student.int8.onnx gives the teacher's answer on 96.2 % of 1,200 held-out synthetic probes")
    assert words in shown


def test_a_float_only_run_is_reported_without_quantization() -> None:
    data = report_data(quantize=None)
    assert "none: the target takes no int8 model" in files(data)["report.html"]
    assert "Then it was quantized" not in files(data)["README.md"]


# HTML


def test_the_page_nests_and_loads_nothing_from_anywhere() -> None:
    page = Page(files(report_data(), samples=b"PNG")["report.html"])
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "base", "a"})
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert sources == ["data:image/png;base64,UE5H"]
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_pictures_of_classes_stand_beside_their_names() -> None:
    grids = (
        SampleGrid(file_name="warm.png", moment="after warm-up", classes=(3, 0)),
        SampleGrid(file_name="lost.png", moment="later", classes=(1,)),
        SampleGrid(file_name="end.png", moment="at the end", classes=(8,)),
    )
    data = report_data()
    labels = HOSTILE[:10]
    data = data.model_copy(update={"labels": labels, "distill": data.distill.model_copy(update={"samples": grids})})
    content = render(data, grids={"warm.png": b"PNG", "end.png": b"GNP"})["report.html"].decode()
    page = Page(content)
    assert [attributes["src"] for tag, attributes in page.tags if tag == "img"] == [
        "data:image/png;base64,UE5H",
        "data:image/png;base64,R05Q",
    ]
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [
        "Synthetic images after warm-up, a row for each class",
        "Synthetic images at the end, a row for each class",
    ]
    names = [attributes["title"] for tag, attributes in page.tags if tag == "li" and "title" in attributes]
    assert names == [text.visible(labels[number]) for number in (3, 0, 8)]
    assert "no real image is among them" in content
    assert "no real image is among them" not in files(report_data())["report.html"]


def test_hostile_text_becomes_no_markup_on_the_page() -> None:
    hostile, harmless = Page(hostile_files()["report.html"]), Page(files(report_data())["report.html"])
    assert {tag for tag, _ in hostile.tags} == {tag for tag, _ in harmless.tags}
    assert {name for _, attributes in hostile.tags for name in attributes} == {
        name for _, attributes in harmless.tags for name in attributes
    }
    assert {text.visible(label) for label in HOSTILE} <= {cell.replace("\xa0", " ") for cell in hostile.cells}


@pytest.mark.parametrize("name", ["report.html", "report.md", "report.json", "junit.xml", "README.md"])
def test_no_character_steers_a_terminal_or_reorders_a_line(name: str) -> None:
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", hostile_files()[name])


def test_every_header_cell_says_what_it_heads_and_every_drawing_what_it_shows() -> None:
    source = files(report_data())["report.html"]
    page = Page(source)
    assert {attributes.get("scope") for tag, attributes in page.tags if tag == "th"} == {"col", "row"}
    drawings = [attributes for tag, attributes in page.tags if tag == "svg" and "class" in attributes]
    assert [drawing["role"] for drawing in drawings] == ["img"] * 13  # ten classes, the agreement and two losses
    assert len(re.findall(r'role="img"[^>]*>\s*<title[^>]*>[^<]+</title>\s*<desc[^>]*>[^<]+</desc>', source)) == 13


def test_a_thousand_classes_are_bounded_to_the_twenty_lowest() -> None:
    labels = tuple(f"class {number}" for number in range(1000))
    pages = files(report_data(labels=labels, validation=validation(1000, probes=1500)))
    assert pages["report.html"].count('class="bar"') == 20
    assert re.search(r"The 20 lowest of \d{3} classes\.", pages["report.html"])
    assert all(len(pages[name]) < 50_000 for name in ("report.html", "report.md", "README.md"))


def test_classes_that_no_probe_shows_are_named() -> None:
    labels = tuple(f"class {number}" for number in range(50))
    seen = validation(50, probes=60)
    missing = charts.unseen_classes(labels, seen.ledger[1].agreement_by_class)
    pages = files(report_data(labels=labels, validation=seen))
    expected = f"the teacher names on no probe ({len(missing)}: {', '.join(missing[:12])}"
    assert missing
    assert all(expected in pages[name] for name in ("report.html", "report.md", "README.md"))


def test_a_run_that_was_not_monitored_has_no_curve() -> None:
    record = report_data().distill
    page = files(report_data(distill=record.model_copy(update={"history": ()})))["report.html"]
    assert "The agreement was not monitored." in page
    assert "curve-title" not in page


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`. Source: WCAG 2.2, definition of relative luminance."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_text_stands_out_from_paper_and_panel_in_light_dark_and_print() -> None:
    style = (Path(charts.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    themes = [
        dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    ]
    assert len(themes) == 3
    for theme in themes:
        for ink in ("ink", "quiet", "pass", "fail", "inconclusive"):
            for paper in ("paper", "panel"):
                light, dark = sorted((luminance(theme[ink]), luminance(theme[paper])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, paper)  # WCAG 2.2, 1.4.3, level AA


# Markdown


def markdown_text(source: str) -> tuple[list[str], set[str]]:
    """Texts of a Markdown document's inline runs, and the kinds of its tokens."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(source)
    children = [child for token in tokens for child in token.children or ()]
    texts = ["".join(child.content for child in token.children or ()) for token in tokens if token.type == "inline"]
    return texts, {token.type for token in (*tokens, *children)}


@pytest.mark.parametrize("name", ["report.md", "README.md"])
def test_hostile_text_becomes_no_markup_in_markdown(name: str) -> None:
    _, kinds = markdown_text(hostile_files()[name])
    _, expected = markdown_text(files(report_data())[name])
    assert kinds <= expected | {"text_special"}
    assert kinds.isdisjoint({"html_inline", "html_block", "link_open", "image", "s_open"})


def test_every_label_is_readable_in_markdown_as_it_is() -> None:
    texts, _ = markdown_text(hostile_files()["report.md"])
    assert {text.visible(label) for label in HOSTILE} <= set(texts)


def test_every_row_of_a_markdown_table_has_as_many_cells_as_its_header() -> None:
    for block in re.findall(r"(?:^\|.*\n)+", hostile_files()["report.md"], re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1, block


@pytest.mark.parametrize(
    ("plain", "escaped"),
    [
        ("digit 1.5 % - or so", "digit 1.5 % - or so"),
        ("1. item", "1\\. item"),
        ("-1 dB", "\\-1 dB"),
        ("a_b", "a\\_b"),
        ("http://x", "http\\://x"),
        ("a|<b>", "a&#124;&#60;b&#62;"),
        ("\x1b[0m", "&#92;u001b\\[0m"),
    ],
)
def test_only_what_markdown_would_read_is_escaped(plain: str, escaped: str) -> None:
    assert text.markdown(plain) == escaped


# The model card


def for_cameras() -> ExportRecord:
    export = report_data().export
    graphs = tuple(graph.model_copy(update={"input_form": "uint8-nhwc"}) for graph in export.graphs)
    return export.model_copy(update={"graphs": graphs})


@pytest.mark.parametrize("takes_bytes", [False, True])
def test_the_snippet_of_the_model_card_runs_as_it_is(tmp_path: Path, takes_bytes: bool) -> None:
    weights = np.random.default_rng(0).normal(size=(3 * 32 * 32, 10)).astype(np.float32)
    shapes: dict[str, list[str | int | None]] = {"images": ["N", 3, 32, 32], "logits": ["N", 10]}
    inputs, outputs = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "student", [inputs], [outputs], [onnx.numpy_helper.from_array(weights, "weights")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(with_camera_input(model) if takes_bytes else model, tmp_path / "student.int8.onnx")
    data = report_data(export=for_cameras()) if takes_bytes else report_data()
    images = np.random.default_rng(1).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "probes.npz", images=images)
    (tmp_path / "labels.txt").write_text("\n".join(DIGITS) + "\n", encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", files(data)["README.md"], re.DOTALL)
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = (images[0].reshape(-1) / np.float32(255) @ weights).argmax()
    assert done.stdout == f"{DIGITS[expected]}\n"


def test_the_model_card_says_what_goes_in_and_how_to_deploy() -> None:
    card = files(report_data())["README.md"]
    assert "float32 `[N, 3, 32, 32]`, RGB, values in [0, 1]" in card
    assert "mean and standard deviation are inside the model" in card
    assert "deploy/build_engine.sh" in card
    assert "not accuracy" in card
    assert "No real data was seen" in card
    assert "Do not deploy" not in card


def test_the_card_of_a_model_that_takes_bytes_says_so() -> None:
    card = files(report_data(export=for_cameras()))["README.md"]
    assert "uint8 `[N, 32, 32, 3]`, RGB, the channels last" in card
    assert "Do not scale or normalise" in card
    assert "float32 `[N, 3, 32, 32]`" not in card


def test_a_target_without_tensorrt_builds_no_engine() -> None:
    target = report_data().target.model_copy(update={"runtime": "onnxruntime", "note": "Measure int8 against fp32."})
    engine = EngineRecord(built=False, file_name=None, message="ONNX Runtime takes the ONNX file as it is.")
    export = report_data().export.model_copy(update={"engine": engine})
    card = files(report_data(target=target, export=export))["README.md"]
    assert "build_engine.sh" not in card
    assert "Measure int8 against fp32." in card


def test_the_card_of_a_model_that_did_not_pass_warns_of_it() -> None:
    assert "**Do not deploy it as it is**" in files(report_data(validation=validation(mistakes=3)))["README.md"]


def test_a_shipped_engine_is_tried_through_the_graph_that_it_was_built_from() -> None:
    shown = validation()
    engine = shown.ledger[1].model_copy(update={"artifact": "student.plan"})
    shown = shown.model_copy(update={"ledger": (*shown.ledger, engine), "shipped": "student.plan"})
    assert 'InferenceSession("student.int8.onnx"' in files(report_data(validation=shown))["README.md"]


# JSON


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_the_json_report_is_the_record_and_reads_back() -> None:
    data = report_data()
    content = files(data)["report.json"]
    assert json.loads(content, parse_constant=refuse)["schema_version"] == 2
    assert ReportData.model_validate_json(content) == data


def test_numbers_that_are_not_finite_are_written_as_strings_that_read_back() -> None:
    shown = validation()
    broken = shown.ledger[1].model_copy(update={"mean_kl": float("inf"), "sqnr_db": float("-inf")})
    data = report_data(validation=shown.model_copy(update={"ledger": (shown.ledger[0], broken)}))
    content = files(data)["report.json"]
    row = json.loads(content, parse_constant=refuse)["validation"]["ledger"][1]
    assert (row["mean_kl"], row["sqnr_db"]) == ("Infinity", "-Infinity")
    assert ReportData.model_validate_json(content) == data


# JUnit


def outcomes(record: ValidateRecord) -> dict[str, Counter[str]]:
    """For each artifact how many test cases came out how."""
    root = ElementTree.fromstring(to_junit(record))
    found: dict[str, Counter[str]] = {}
    for case in root.iter("testcase"):
        kinds = [child.tag for child in case] or ["passed"]
        found.setdefault(str(case.get("classname")), Counter()).update(kinds)
    (suite,) = root
    total = sum(found.values(), Counter())
    assert int(suite.attrib["tests"]) == total.total()
    assert [int(suite.attrib[name]) for name in ("failures", "errors", "skipped")] == [
        total["failure"],
        total["error"],
        total["skipped"],
    ]
    return found


@pytest.mark.parametrize(
    ("changes", "verdict", "shipped"),
    [
        ({}, "PASS", {"passed": 4}),
        ({"mistakes": 3}, "FAIL", {"failure": 2, "passed": 2}),
        ({"mistakes": 9}, "INCONCLUSIVE", {"error": 1, "passed": 3}),
        ({"margin": 2.5, "gates": Gates(min_agreement=0.1)}, "INCONCLUSIVE", {"error": 1, "passed": 1}),
        (
            {"margin": 2.5, "gates": Gates(max_size_mb=0.1, min_agreement=0.1)},
            "FAIL",
            {"failure": 1, "error": 1, "passed": 1},
        ),
    ],
)
def test_junit_is_green_exactly_when_the_verdict_is_pass(
    changes: dict[str, Any], verdict: Verdict, shipped: dict[str, int]
) -> None:
    record = validation(**changes)
    found = outcomes(record)
    bad = sum((kinds["failure"] + kinds["error"] for kinds in found.values()), 0)
    assert record.verdict == verdict
    assert dict(found["student.int8.onnx"]) == shipped
    assert (bad == 0) == (verdict == "PASS")


def test_a_gate_that_does_not_decide_is_skipped_in_junit_with_its_verdict() -> None:
    case = next(case for case in ElementTree.fromstring(to_junit(validation())).iter("testcase") if len(case))
    assert case.get("classname") == "student.onnx"
    assert case[0].tag == "skipped"
    assert case[0].get("message") == "FAIL, but not what is shipped: a size of 1.12 MB is over the allowed 0.5 MB"


def test_an_undecided_gate_is_an_error_of_type_inconclusive() -> None:
    errors = list(ElementTree.fromstring(to_junit(validation(mistakes=9))).iter("error"))
    assert [error.get("type") for error in errors] == ["inconclusive"]
    assert "probes would settle it" in str(errors[0].get("message"))


# The terminal


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_in_the_terminal_fits_and_says_it_all(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(render_table(validation(mistakes=9)))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    row = next(line for line in lines if "student.int8.onnx" in line)
    assert row.split() == [
        "student.int8.onnx",
        "301",
        "kB",
        "88.9",
        "%",
        "87.0",
        "to",
        "90.5",
        "%",
        "0.870",
        "ms",
        "INCONCLUSIVE",
    ]
    assert max(map(len, lines)) <= width


# Real images


def on_real_images(*, classes: bool = True, alike: tuple[int, int] = (85, 90)) -> ReportData:
    """A report of a run that was given 90 real images, and on how many of them student and teacher answer alike."""
    accuracy = proportion(81, 90) if classes else None
    rows = tuple(
        HoldoutRow(artifact=artifact, agreement=proportion(*alike), accuracy=accuracy)
        for artifact in ("student.onnx", "student.int8.onnx")
    )
    holdout = HoldoutRecord(
        name="<b>real|images</b>",
        images=alike[1],
        sha256="d" * 64,
        teacher_accuracy=proportion(87, 90) if classes else None,
        rows=rows,
        notes=("7 of 90 real images were scaled to 8 x 8 pixels.",),
    )
    return report_data(validation=validation().model_copy(update={"holdout": holdout}))


@pytest.mark.parametrize("name", ["report.html", "report.md", "README.md"])
def test_every_readable_file_tells_of_real_images_beside_the_verdict(name: str) -> None:
    data = on_real_images()
    shown = html.unescape(files(data)[name]).replace("\xa0", " ").replace("\\", "")
    assert (
        "On 90 real images that you gave, student.int8.onnx gives the teacher's answer on 94.4 % (87.6 to 97.6 %), "
        "1.8 points less than on the probes. It names the true class on 90.0 % (82.0 to 94.6 %), the teacher on "
        "96.6 % (90.6 to 98.8 %). The verdict does not rest on them." in shown
    )
    assert "No real image was seen" not in shown
    assert "no true label was used" not in shown
    assert fidelity.verdict_sentence(data.validation) == fidelity.verdict_sentence(report_data().validation)


@pytest.mark.parametrize(
    ("alike", "gap"),
    [
        # On the probes it is 1155 / 1200 = 96.25 %.
        ((89, 90), "2.6 points more than on the probes"),
        ((77, 80), "as on the probes"),
        ((85, 90), "1.8 points less than on the probes"),
    ],
)
def test_the_gap_between_real_images_and_probes_is_told_in_points(alike: tuple[int, int], gap: str) -> None:
    assert f" %), {gap}." in files(on_real_images(alike=alike))["report.md"]


def test_without_true_classes_no_accuracy_is_told() -> None:
    data = on_real_images(classes=False)
    content = files(data)["report.md"]
    assert "true class" not in content
    assert f"| student.onnx | 94.4 % | 87.6 to 97.6 % | 98.3 % | {text.MISSING} |  |" in content
    assert ReportData.model_validate_json(files(data)["report.json"]) == data


def test_a_report_without_real_images_says_nothing_of_them_and_an_older_one_reads_back() -> None:
    content = files(report_data())
    assert "On real images" not in content["report.html"] + content["report.md"]
    older = json.loads(content["report.json"])
    del older["validation"]["holdout"]
    assert ReportData.model_validate_json(json.dumps(older)) == report_data()


def test_the_name_of_real_images_becomes_no_markup() -> None:
    content = files(on_real_images())
    assert "<b>real" not in content["report.html"] + content["report.md"]
    assert "&#60;b&#62;real&#124;images" in content["report.md"]
    assert {"thead", "tbody"} <= {tag for tag, _ in Page(content["report.html"]).tags}


# Forms of the student, and what they take for what


def cells_of(page: str, after: str) -> list[list[str]]:
    """The rows of the first table behind a heading, as texts."""
    table = page.partition(after)[2].partition("</table>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in table.split("<tr")[1:]]
    return [[re.sub(r"<[^>]+>", " ", cell).replace("&nbsp;", " ").strip() for cell in row] for row in rows]


def test_every_form_of_the_student_stands_behind_the_one_that_it_was_made_from() -> None:
    rows = cells_of(files(report_data())["report.html"], '<h3 id="steps">')
    assert [row[0].split("  ")[0].split(" from ")[0].strip() for row in rows[1:]] == [
        "(last weights)",
        "student.onnx",
        "(fake-quantized)",
        "student.int8.onnx",
    ]
    markdown = files(report_data())["report.md"].partition("### Step by step")[2].partition("###")[0]
    told = [line.split("|")[1].strip() for line in markdown.splitlines() if line.startswith("| ")]
    assert told[1:] == ["(last weights)", "student.onnx", "(fake-quantized)", "student.int8.onnx"]


def test_what_the_teacher_takes_is_told_for_comparison() -> None:
    content = files(report_data())
    assert cells_of(content["report.html"], '<h2 id="artifacts">')[1][3:] == ["3.40 MB", "", "9.87 ms"]
    assert "| teacher, in PyTorch | | | | 3.40 MB | | 9.87 ms |" in content["report.md"]
    again = report_data().model_copy(update={"validation": validation().model_copy(update={"teacher": None})})
    assert "in PyTorch |" not in files(again)["report.md"]


def test_all_pairs_of_classes_are_counted_out_where_there_is_room_for_them() -> None:
    confusion = validation().ledger[-1].confusion
    rows = cells_of(files(report_data())["report.html"], '<h3 id="map">')
    assert rows[0][1:] == list(DIGITS)
    assert confusion is not None
    assert [row[1:] for row in rows[1:]] == [[str(count or "") for count in row] for row in confusion]
    many = validation(num_classes=21)
    assert many.ledger[-1].confusion is None
    wide = report_data(labels=tuple(f"c{number}" for number in range(21)), validation=many)
    assert '<h3 id="map">' not in files(wide)["report.html"]


# Pictures


def test_a_grid_shows_every_pixel_of_its_images_with_transparent_gaps() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
    with Image.open(io.BytesIO(class_grid([images[:3], images[3:]], columns=3, scale=2))) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (2 * 8 + 2, 3 * 12 + 2 * 2, 4)  # two rows of 4 * 2 pixels, three columns of 6 * 2, gaps of 2
    tiles = [pixels[y : y + 8 : 2, x : x + 12 : 2] for y in (0, 10) for x in (0, 14, 28)]
    for image, tile in zip(images, tiles, strict=False):
        assert (tile[..., :3] == image.transpose(1, 2, 0)).all()
        assert (tile[..., 3] == 255).all()
    assert not tiles[5].any()
    assert not pixels[8:10].any()


def test_grey_images_are_shown_grey() -> None:
    images = np.full((2, 1, 3, 3), 200, dtype=np.uint8)
    with Image.open(io.BytesIO(class_grid([images], columns=2, scale=1))) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (3, 8, 4)
    assert pixels[0, 0].tolist() == [200, 200, 200, 255]


def test_a_grid_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="a grid needs at least one row"):
        class_grid([], columns=2)


def test_probes_are_shown_by_their_kinds() -> None:
    images = np.arange(40, dtype=np.uint8).repeat(64 * 64).reshape(40, 1, 64, 64)
    kinds = np.array(["mixed", "augmented", "augmented", "mixed"] * 10)
    with Image.open(io.BytesIO(probe_samples(images, kinds))) as picture:
        pixels = np.asarray(picture)[::66, ::66, 0]  # a pixel an image: 64, and a gap of 2
    assert pixels.tolist() == [[1, 2, 5, 6, 9, 10, 13, 14, 17, 18], [0, 3, 4, 7, 8, 11, 12, 15, 16, 19]]


# Charts and numbers


def test_the_lowest_classes_come_first_and_of_equals_the_surer() -> None:
    parts = [proportion(*counts) for counts in ((9, 10), (0, 0), (1, 2), (5, 10))]
    shown = charts.lowest_classes("abcd", parts, most=2)
    assert [row.label for row in shown] == ["d", "c"]
    assert charts.unseen_classes("abcd", parts) == ["b"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.012345, "0.0123"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (1234.5, "1,234"),
        (-1.5, "-1.50"),
        (3e-5, "< 0.0001"),
        (float("inf"), "∞"),
        (float("-inf"), "-∞"),
        (float("nan"), "not a number"),
    ],
)
def test_numbers_are_shown_with_three_digits_and_no_powers_of_ten(value: float, shown: str) -> None:
    assert text.significant(value) == shown


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.size(301_000), "301 kB"),
        (text.size(1_120_000), "1.12 MB"),
        (text.milliseconds(None), "–"),  # noqa: RUF001
        (text.milliseconds(0.87), "0.870 ms"),
        (text.decibels(13.46), "13.5 dB"),
        (text.decibels(float("inf")), "∞ dB"),
        (text.duration(0.42), "0.420 s"),
        (text.duration(200), "3 min 20 s"),
        (text.duration(7500), "2 h 5 min"),
        (text.share(None), "–"),  # noqa: RUF001
        (text.share(Proportion(value=0, low=0, high=1, total=0)), "–"),  # noqa: RUF001
        (text.interval(Proportion(value=0.9, low=0.85, high=0.94, total=200)), "85.0 to 94.0 %"),
    ],
)
def test_quantities_are_shown_with_their_units(shown: str, expected: str) -> None:
    assert shown == expected


def test_settings_are_listed_under_the_names_that_set_takes() -> None:
    settings = {"seed": 0, "teacher": {"mean": None, "std": [0.5]}, "distill": {"on": True, "name": "x"}}
    assert list(sections.flattened(settings)) == [
        ("seed", "0"),
        ("teacher.mean", "null"),
        ("teacher.std", "[0.5]"),
        ("distill.on", "true"),
        ("distill.name", "x"),
    ]
    assert list(sections.flattened({"annealed": [0.1] * 200})) == [("annealed", "200 values, see settings.yaml")]


def test_long_lists_of_names_are_counted_and_cut() -> None:
    assert sections.named([]) == "none"
    assert sections.named(["a", "b"]) == "2: a, b"
    assert sections.named(["x"] * 1500) == f"1,500: {', '.join(['x'] * 12)} and 1,488 more"
