import ast
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINKS = {"cli.py": "../../cli.py", **{name: f"../../{name}" for name in ("configs", "exporters", "pipeline")}}
LEAVES = {"compress.pipeline.errors", "compress.pipeline.records"}
# Folders that are made, not written.
MADE = {".git", ".venv", "build", "dist", "out", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"}


def own_files(*folders: str) -> Iterator[Path]:
    """Files of the project below its root, links not followed, without what tools have made."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            parts = path.relative_to(ROOT).parts
            if (
                path.is_file()
                and not MADE.intersection(parts)
                and not any(part.endswith(".egg-info") for part in parts)
            ):
                yield path


def python_files(*folders: str) -> list[Path]:
    return [path for path in own_files(*folders) if path.suffix == ".py"]


def imported_by(path: Path) -> set[str]:
    """Full names of what a module imports, in functions too; of `from a import b`, both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def modules_of(names: set[str]) -> set[str]:
    """The names that are modules of this project, packages left out."""
    places = {name: ROOT.joinpath(*name.split(".")[1:]) for name in names if name.startswith("compress.")}
    return {name for name, place in places.items() if place.with_suffix(".py").is_file()}


def module_level_imports(path: Path) -> set[str]:
    """Top-level names of the packages that a module imports when it is imported itself."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("script", ["compress", "edge-compress"])
def test_both_commands_start_the_same_function(script: str) -> None:
    module, _, name = PROJECT["project"]["scripts"][script].partition(":")
    assert (module, name) == ("compress.cli", "main")
    assert callable(getattr(importlib.import_module(module), name))


def test_the_command_starts_without_torch() -> None:
    assert "torch" not in module_level_imports(ROOT / "cli.py")
    heavy = "import compress.cli, sys; print(sorted({'torch', 'transformers', 'onnx'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", heavy], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "target"), LINKS.items())
def test_the_package_is_made_of_links_to_the_folders(name: str, target: str) -> None:
    assert str((ROOT / "src" / "compress" / name).readlink()) == target


def test_every_file_reaches_the_wheel_as_module_or_as_data() -> None:
    package = ROOT / "src" / "compress"
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["compress"]
    data = {path.relative_to(package) for pattern in patterns for path in package.glob(pattern)}
    for path in own_files("configs", "exporters", "pipeline"):
        module = path.suffix == ".py" and (path.parent / "__init__.py").is_file()
        assert module or path.relative_to(ROOT) in data, path


def test_exporters_import_only_the_leaves_of_the_pipeline() -> None:
    for path in python_files("exporters"):
        ours = modules_of(imported_by(path))
        outside = {name for name in ours if not name.startswith("compress.exporters")}
        assert outside <= LEAVES, path


def test_the_leaves_import_nothing_of_the_project() -> None:
    for leaf in ("errors", "records"):
        assert not modules_of(imported_by(ROOT / "pipeline" / f"{leaf}.py"))


def test_nothing_imports_the_command_line() -> None:
    for path in python_files("exporters", "pipeline"):
        assert "compress.cli" not in imported_by(path), path


def test_modules_are_imported_by_their_full_names() -> None:
    for path in python_files("exporters", "pipeline", "tests", "examples", "benchmarks", "scripts"):
        assert not {name.partition(".")[0] for name in imported_by(path)} & {"pipeline", "exporters"}, path


def test_every_direct_dependency_is_pinned_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    extras = PROJECT["project"]["optional-dependencies"]
    optional = [line for name, lines in extras.items() if name != "tensorrt" for line in lines]
    for requirement in map(Requirement, PROJECT["project"]["dependencies"] + optional):
        if requirement.name != PROJECT["project"]["name"]:
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_the_repository_names_no_package_index() -> None:
    # Where packages come from is the business of whoever installs them.
    host = re.compile(rb"pypi\.(org|python|nvidia)|pythonhosted\.|npmjs\.|debian\.org|download\.pytorch\.")
    for path in own_files("."):
        assert not host.search(path.read_bytes()), path


def test_the_dockerfile_passes_hadolint() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint is not installed")
    run = subprocess.run([hadolint, ROOT / "Dockerfile"], check=False, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "")


def test_the_build_context_holds_all_that_the_package_is_made_of() -> None:
    context = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    needed = {*LINKS, "src", "pyproject.toml", "constraints.txt", "scripts", PROJECT["project"]["readme"]}
    assert needed | set(PROJECT["project"]["license-files"]) == context


def test_make_help_lists_every_target() -> None:
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    run = subprocess.run(["make", "-C", ROOT], check=True, capture_output=True, text=True)
    targets = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert targets is not None
    assert re.findall(r"^make (\S+) ", run.stdout, re.MULTILINE) == targets[1].split()
