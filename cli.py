"""The `compress` command: reads options, calls one function, prints.

Results go to stdout, everything else to stderr. Nothing heavy is imported before a command needs it.
"""

import difflib
import io
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from compress import __version__
from compress.pipeline.errors import (
    CompressError,
    GateError,
    Interrupted,
    MissingResourceError,
    UsageError,
    is_out_of_memory,
)

if TYPE_CHECKING:
    from rich.console import Console

    from compress.pipeline.parallel.world import World
    from compress.pipeline.records import ValidateRecord
    from compress.pipeline.run import Delivery
    from compress.pipeline.settings import Settings

DEFAULT_COMMAND = "run"


class RunCommand(TyperCommand):
    """Presents itself as the bare command, and names the others below its help."""

    def get_usage(self, ctx: Any) -> str:
        return super().get_usage(ctx).replace(f" {DEFAULT_COMMAND} ", " ", 1)


class DefaultGroup(TyperGroup):
    """`compress teacher.pt ...` runs the pipeline; a first word that is a command runs that."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args:
            args = ["--help"]
        if args[0] not in self.commands and args[0] != "--version":
            meant = difflib.get_close_matches(args[0], set(self.commands) - {DEFAULT_COMMAND}, n=1, cutoff=0.75)
            if meant and not os.path.exists(args[0]):  # noqa: PTH110 - Path.exists raises for a name that is too long
                ctx.fail(f"There is no checkpoint or command '{args[0]}'. Did you mean '{meant[0]}'?")
            args = [DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """A known error becomes one sentence, a hint and its exit code."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, CompressError, MemoryError, RuntimeError) as error:
            told = _known(error)
            if told is None:
                raise
            raise _ending(told) from error


app = typer.Typer(cls=DefaultGroup, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT",
        help="The teacher: weights (.pt, .pth, .safetensors), TorchScript, torch.export, ONNX, or a Hugging Face folder.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
INPUT, TEXT, VERDICT, RUNNING = "The teacher", "Class names as text", "The verdict", "Running"
InputSize = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=INPUT, help="Height and width of its images in pixels. Default: as the checkpoint says."
    ),
]
Mean = Annotated[str | None, typer.Option(rich_help_panel=INPUT, help="Its normalisation, such as 0.485,0.456,0.406.")]
Std = Annotated[str | None, typer.Option(rich_help_panel=INPUT, help="Likewise, such as 0.229,0.224,0.225.")]
Arch = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=INPUT,
        help="What builds the network, where weights alone do not tell: package.module:function, or timm:NAME.",
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", rich_help_panel=INPUT, help="Run the code in a pickled module. Only for files that you trust."
    ),
]

MinAgreement = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=VERDICT, help="Least share of probes with the teacher's answer. A run's default: 0.9."
    ),
]
MinClassAgreement = Annotated[
    float | None, typer.Option(rich_help_panel=VERDICT, help="The same for every class that the teacher names.")
]
MaxKl = Annotated[
    float | None, typer.Option(rich_help_panel=VERDICT, help="Largest mean KL divergence from the teacher, in nats.")
]
MaxSize = Annotated[float | None, typer.Option(rich_help_panel=VERDICT, help="Largest file, in 10^6 bytes.")]
MaxLatency = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=VERDICT,
        help="Longest median milliseconds for one image, where the model is to run: on TensorRT the engine's.",
    ),
]

EPILOG = """[bold]Other commands[/bold], each with --help
  compress inspect CHECKPOINT     what a checkpoint is, and if it will do
  compress targets                the devices and what is produced for each
  compress validate FOLDER        judge a folder again, or its device's engine
  compress lint FILE              check any ONNX file against a device's rules
  compress verify FOLDER          check a folder against its manifest
  compress compare FOLDER FOLDER  two delivered folders side by side
  compress report FOLDER          make its report anew from report.json
  compress schema                 the JSON Schema of settings or reports

[bold]Exit codes[/bold]
  0    done, and the verdict is PASS
  1    an internal error
  2    a wrong option, setting or path
  3    an unsupported or unsafe input
  4    the verdict is not PASS; all files are kept
  5    a dependency, a text encoder, hardware or disk space is missing
  6    no student is small enough
  7    learning diverged, lower rates notwithstanding
  130  interrupted; a run continues with the same command"""


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Data-free model compression for the edge."""
    if version:
        typer.echo(f"compress {__version__}")
        raise typer.Exit


@app.command(DEFAULT_COMMAND, cls=RunCommand, hidden=True, epilog=EPILOG)
def run_command(
    checkpoint: Checkpoint,
    labels: Annotated[Path, typer.Option(help="Class names, one a line, in the order of the teacher's outputs.")],
    target: Annotated[str | None, typer.Option(help="The device, see `compress targets`. Default: jetson.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder to write. Default: TEACHER-TARGET.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="auto, resnet20, inherit-3-3-3, inherit-3-3-3-w0.5 or the like. Default: auto.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="How to distil: default, quick, balanced, thorough and others, see docs/recipes.md."),
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Time for the whole command, such as 90s, 15m or 1.5h.")] = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    arch: Arch = None,
    allow_pickle: AllowPickle = False,
    text_encoder: Annotated[
        str | None, typer.Option(rich_help_panel=TEXT, help="A local folder, or a name in the local cache.")
    ] = None,
    allow_download: Annotated[
        bool, typer.Option("--allow-download", rich_help_panel=TEXT, help="Let a hub be asked for the text encoder.")
    ] = False,
    min_agreement: MinAgreement = None,
    min_class_agreement: MinClassAgreement = None,
    max_kl: MaxKl = None,
    max_size_mb: MaxSize = None,
    max_latency_ms: MaxLatency = None,
    probes: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=VERDICT,
            help="Views of held-out images at least. Later on, too: nothing is learned again for them.",
        ),
    ] = None,
    allow_inconclusive: Annotated[
        bool,
        typer.Option("--allow-inconclusive", rich_help_panel=VERDICT, help="Exit with 0 when it is INCONCLUSIVE, too."),
    ] = False,
    holdout: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=VERDICT,
            help="Real images to measure, too: a folder of class folders, or an .npz. Nothing learns from them, and the "
            "verdict does without.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", rich_help_panel=RUNNING, help="A YAML file of settings.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", rich_help_panel=RUNNING, help="Any setting, such as distill.rounds=50; repeatable."),
    ] = None,
    seed: Annotated[int | None, typer.Option(rich_help_panel=RUNNING, help="Of all randomness. Default: 0.")] = None,
    device: Annotated[str | None, typer.Option(rich_help_panel=RUNNING, help="auto, cpu, cuda or cuda:1.")] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", rich_help_panel=RUNNING, help="Write curves into work/tensorboard, too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", rich_help_panel=RUNNING, help="Show the plan, write nothing.")
    ] = False,
    as_json: Json = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", rich_help_panel=RUNNING, help="No progress on stderr.")
    ] = False,
) -> None:
    """Compress a trained classifier for a device, without data.

    From a checkpoint and its class names alone: a compact student, quantized, exported, and judged against its teacher.
    """
    from compress.pipeline.printing import print_delivery
    from compress.pipeline.settings import assignment, merge, resolve_settings

    gates = limits(min_agreement, min_class_agreement, max_kl, max_size_mb, max_latency_ms)
    named = {
        "target": target,
        "recipe": recipe,
        "student.name": student,
        "budget_seconds": None if budget is None else seconds(budget),
        "teacher.input_size": input_size,
        "teacher.mean": None if mean is None else numbers(mean, "--mean"),
        "teacher.std": None if std is None else numbers(std, "--std"),
        "teacher.arch": arch,
        "teacher.allow_pickle": allow_pickle or None,
        "embed.text_encoder": text_encoder,
        "embed.allow_download": allow_download or None,
        **{f"gates.{name}": limit for name, limit in gates.items()},
        "probes.least": probes,
        "device": device,
        "seed": seed,
        "tensorboard": tensorboard or None,
    }
    command_line = _nested({key: value for key, value in named.items() if value is not None})
    for text in assignments or []:
        command_line = merge(command_line, assignment(text))
    with _all_processes() as world:
        settings = resolve_settings(command_line, environment=os.environ, config=config)
        console = _console(quiet)
        if dry_run:
            _show_plan(checkpoint, labels, settings, console, as_json, holdout)
            return
        with _continuable():
            if world is not None and not world.leads:
                code = _follow(checkpoint, settings)
            else:
                folder = output or Path(f"{checkpoint.stem}-{settings.target}")
                delivery = _run(checkpoint, labels, folder, settings, console, holdout)
                print_delivery(delivery, as_json)
                code = exit_code(delivery.report.validation, allow_inconclusive)
                if world is not None:
                    _dismiss(world, code)
    raise typer.Exit(code)


@app.command("inspect")
def inspect_command(
    checkpoint: Checkpoint,
    labels: Annotated[Path | None, typer.Option(help="Class names, to look at them, too.")] = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    arch: Arch = None,
    allow_pickle: AllowPickle = False,
    text_encoder: Annotated[str | None, typer.Option(help="A local folder, or a name in the local cache.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a checkpoint is, and whether data-free distillation will work on it."""
    from compress.pipeline.inspection import inspect_teacher
    from compress.pipeline.printing import print_facts, print_findings

    inspection = inspect_teacher(
        checkpoint,
        labels,
        text_encoder=text_encoder,
        input_size=input_size,
        mean=None if mean is None else numbers(mean, "--mean"),
        std=None if std is None else numbers(std, "--std"),
        arch=arch,
        allow_pickle=allow_pickle,
    )
    if as_json:
        typer.echo(inspection.model_dump_json(indent=2))
        return
    print_facts(inspection.facts())
    print_findings(inspection.all_findings, inspection.outlook)


@app.command("targets")
def targets_command(as_json: Json = False) -> None:
    """List the devices and what is produced for each."""
    from compress.exporters.targets import load_target, target_names

    targets = [load_target(name) for name in target_names()]
    if as_json:
        typer.echo(json.dumps([target.told() for target in targets], indent=2))
        return
    from compress.pipeline.printing import print_targets

    print_targets(targets)


@app.command("lint")
def lint_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An ONNX file, ours or not.")],
    target: Annotated[str, typer.Option(help="The device whose rules apply.")] = "jetson",
    as_json: Json = False,
) -> None:
    """Check an ONNX file against what a device accepts; exits with 4 when a rule is broken."""
    from compress.exporters.lint import lint
    from compress.exporters.targets import load_target
    from compress.pipeline.printing import print_lint

    findings = lint(file, load_target(target))
    if as_json:
        typer.echo(json.dumps([finding.model_dump(mode="json") for finding in findings], indent=2))
    elif findings:
        print_lint(findings)
    else:
        typer.echo(f"{file}: nothing that {target} would refuse.")
    raise typer.Exit(GateError.exit_code if findings else 0)


@app.command("verify")
def verify_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A delivered folder.")],
) -> None:
    """Check a delivered folder against its manifest; exits with 4 when something differs."""
    from compress.exporters.bundle import verify_manifest

    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
        raise UsageError(f"There is no folder '{folder}'.", "Name the folder that `compress` wrote with -o.")
    problems = verify_manifest(folder)
    for problem in problems or [f"{folder}: every file is as it was delivered."]:
        typer.echo(problem)
    raise typer.Exit(GateError.exit_code if problems else 0)


@app.command("validate")
def validate_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A delivered folder.")],
    receipt: Annotated[
        Path | None,
        typer.Option(help="An engine.receipt.json of deploy/replay.py, with engine.logits.npy beside it."),
    ] = None,
    engine: Annotated[
        bool,
        typer.Option("--engine", help="Run the folder's student.plan, too. An engine is a program: only your own."),
    ] = False,
    min_agreement: MinAgreement = None,
    min_class_agreement: MinClassAgreement = None,
    max_kl: MaxKl = None,
    max_size_mb: MaxSize = None,
    max_latency_ms: MaxLatency = None,
    allow_inconclusive: Annotated[
        bool, typer.Option("--allow-inconclusive", help="Exit with 0 when the verdict is INCONCLUSIVE, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Judge a delivered folder again, or the engine that its device built; exits with 4 unless the verdict is PASS."""
    from compress.pipeline.delivered import read_report
    from compress.pipeline.printing import print_validation
    from compress.pipeline.revalidation import revalidate

    gates = limits(min_agreement, min_class_agreement, max_kl, max_size_mb, max_latency_ms)
    report = read_report(folder)
    validation = revalidate(folder, report, receipt, gates, engine)
    if (folder / "student.plan").exists() and receipt is None and not engine:
        typer.echo(
            "student.plan was not judged: ask for it by --receipt engine.receipt.json, or by --engine.", err=True
        )
    print_validation(validation, report.target, as_options(gates), as_json)
    raise typer.Exit(exit_code(validation, allow_inconclusive))


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A delivered folder.")],
) -> None:
    """Make report.html and what else people read anew, from the report.json of a delivered folder."""
    from compress.pipeline.delivered import rebuild_report

    *others, last = rebuild_report(folder)
    typer.echo(f"{folder}: {', '.join(others)} and {last} were made anew from report.json.")


@app.command("compare")
def compare_command(
    one: Annotated[Path, typer.Argument(metavar="FOLDER", help="A delivered folder.")],
    other: Annotated[Path, typer.Argument(metavar="FOLDER", help="Another one.")],
    as_json: Json = False,
) -> None:
    """Set two delivered folders side by side: sizes, agreement, latency, and the settings that differ."""
    from compress.pipeline.comparison import compare
    from compress.pipeline.printing import print_comparison

    print_comparison(compare(one, other), as_json)


@app.command("schema")
def schema_command(
    of_report: Annotated[
        bool, typer.Option("--report", help="That of report.json in a delivered folder instead.")
    ] = False,
) -> None:
    """Print the JSON Schema of all settings, for editors and CI."""
    from compress.pipeline.report.data import report_schema
    from compress.pipeline.settings import Settings

    typer.echo(json.dumps(report_schema() if of_report else Settings.model_json_schema(), indent=2))


def main() -> None:
    """The entry point."""
    signal.signal(signal.SIGTERM, _interrupt)
    if os.environ.get("LOCAL_RANK", "0") != "0":
        _fall_silent()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # A terminal that lacks a character is no reason to fail.
    app()


def seconds(text: str) -> float:
    """`90`, `90s`, `15m` or `1.5h` in seconds.

    Raises:
        UsageError: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not match or float(match[1]) <= 0:
        raise UsageError(f"'{text}' is no time.", "Write --budget as 90s, 15m or 1.5h.")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def numbers(text: str, option: str) -> tuple[float, ...]:
    """`0.5,0.5,0.5` as numbers.

    Raises:
        UsageError: they are no numbers.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} '{text}' are no numbers.", f"Write {option} 0.5,0.5,0.5.") from None


def limits(
    min_agreement: float | None,
    min_class_agreement: float | None,
    max_kl: float | None,
    max_size_mb: float | None,
    max_latency_ms: float | None,
) -> dict[str, float]:
    """The gates that the options of a command set, by the names that the settings have for them."""
    named = {
        "min_agreement": min_agreement,
        "min_class_agreement": min_class_agreement,
        "max_mean_kl": max_kl,
        "max_size_mb": max_size_mb,
        "max_latency_ms": max_latency_ms,
    }
    return {name: limit for name, limit in named.items() if limit is not None}


def as_options(gates: Mapping[str, float]) -> str:
    """Gates by the names of the settings, as a command takes them."""
    others = {"max_mean_kl": "max_kl"}
    return " ".join(f"--{others.get(name, name).replace('_', '-')} {limit:.12g}" for name, limit in gates.items())


def exit_code(validation: "ValidateRecord", allow_inconclusive: bool) -> int:
    """0 when the verdict lets the artifacts pass, else 4."""
    accepted = {"PASS", "INCONCLUSIVE"} if allow_inconclusive else {"PASS"}
    return 0 if validation.verdict in accepted else GateError.exit_code


@contextmanager
def _continuable() -> Iterator[None]:
    """An interruption is told with what it leaves to do; other commands have nothing to continue."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted("Stopped.", "The same command continues where it was.") from error


def _run(
    checkpoint: Path, labels: Path, folder: Path, settings: "Settings", console: "Console", holdout: Path | None
) -> "Delivery":
    from compress.pipeline.console import ConsoleProgress
    from compress.pipeline.run import run

    progress = ConsoleProgress(console)
    try:
        return run(checkpoint, labels, folder, settings, progress, holdout)
    finally:
        progress.close()


def _all_processes() -> "AbstractContextManager[World | None]":
    """The processes that torchrun started together with this one, of which only rank 0 speaks; None where it is alone."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return nullcontext()
    from compress.pipeline.parallel.launch import joined

    return joined(_known, otherwise=_fall_silent)


def _follow(checkpoint: Path, settings: "Settings") -> int:
    from compress.pipeline.parallel.follow import follow

    return follow(checkpoint, settings)


def _dismiss(world: "World", code: int) -> None:
    from compress.pipeline.parallel.follow import dismiss

    dismiss(world, code)


def _fall_silent() -> None:
    """Let what this process and its libraries print go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def _show_plan(
    checkpoint: Path, labels: Path, settings: "Settings", console: "Console", as_json: bool, holdout: Path | None
) -> None:
    from compress.pipeline.inspection import outlook
    from compress.pipeline.plan import make_plan
    from compress.pipeline.printing import print_facts, print_findings

    with console.status("measuring this machine"):
        plan = make_plan(checkpoint, labels, settings, holdout)
    if as_json:
        typer.echo(plan.model_dump_json(indent=2))
    else:
        print_facts(plan.facts())
        print_findings(
            tuple(finding for finding in plan.findings if finding.severity != "note"), outlook(plan.findings)
        )


def _console(quiet: bool) -> "Console":
    from rich.console import Console

    in_ci = os.environ.get("CI", "").lower() in {"true", "1"}
    return Console(stderr=True, quiet=quiet, force_terminal=False if in_ci else None, soft_wrap=True)


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    from compress.pipeline.settings import merge, nested

    result: dict[str, Any] = {}
    for key, value in values.items():
        result = merge(result, nested(key.split("."), value))
    return result


def _interrupt(number: int, frame: object) -> None:
    """A polite request to end is like Ctrl-C: stop now, continue later."""
    raise KeyboardInterrupt


def _known(error: BaseException) -> CompressError | None:
    """The error that a user is told for an exception; None for a defect of the program."""
    if isinstance(error, CompressError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("Stopped.")
    if isinstance(error, MemoryError | RuntimeError) and is_out_of_memory(error):
        hint = "Smaller batches need less: --set synthesis.batch_size=50 --set distill.batch_size=64."
        return MissingResourceError("The memory is full.", hint)
    return None


def _ending(error: CompressError) -> typer.Exit:
    typer.secho(f"compress: {error.message}", err=True, fg="red")
    if error.hint:
        typer.echo(error.hint, err=True)
    return typer.Exit(error.exit_code)


if __name__ == "__main__":
    main()
