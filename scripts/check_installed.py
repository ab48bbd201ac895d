"""Compare an installed package with the checkout it was built from: `check_installed.py ENVIRONMENT CHECKOUT`."""

import sys
from pathlib import Path

import compress
from compress.exporters.targets import load_target, target_names
from compress.pipeline.lte import embed_labels

LINKED = ("cli.py", "configs", "exporters", "pipeline")


def files_below(folder: Path) -> set[str]:
    """Paths of the files that a package is made of, relative to the folder."""
    below = (path for name in LINKED for path in [folder / name, *(folder / name).rglob("*")])
    return {str(path.relative_to(folder)) for path in below if path.is_file() and "__pycache__" not in path.parts}


def main(environment: Path, checkout: Path) -> None:
    """Stop unless every file of the checkout is installed as a real file, and the package works."""
    package = Path(compress.__file__).parent
    if not package.is_relative_to(environment):
        sys.exit(f"This is another compress: {package}")
    missing = files_below(checkout) - files_below(package)
    links = [path for path in package.rglob("*") if path.is_symlink()]
    if missing or links:
        sys.exit(f"Not in the wheel: {sorted(missing)}; links in it: {links}")
    for name in target_names():
        load_target(name)
    embeddings, _ = embed_labels(("cat", "dog"), encoder=None)
    print(f"{len(files_below(package))} files, {len(target_names())} targets, embeddings {embeddings.shape}: complete")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
