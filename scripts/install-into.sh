#!/usr/bin/env bash
# Install compress, its text encoder and what reads pictures into a new virtual environment: what the Dockerfile does,
# and check-image-steps.sh.
#
#   scripts/install-into.sh FOLDER
#
# TORCH_INDEX, where set, names an index that torch alone comes from, such as one of CPU builds.
set -euo pipefail

folder=$1
source=$(cd "$(dirname "$0")/.." && pwd)
install=(python3 -m pip --python "$folder/bin/python" --disable-pip-version-check install --constraint "$source/constraints.txt")

# NVIDIA's images keep TensorRT's Python module among the system's packages.
visible=()
if python3 -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("tensorrt") is None)'; then
    visible=(--system-site-packages)
fi

python3 -m venv --without-pip "${visible[@]}" "$folder"
if [ -n "${TORCH_INDEX:-}" ]; then
    "${install[@]}" --no-deps --index-url "$TORCH_INDEX" torch
fi
"${install[@]}" "${source}[encoder,holdout]"
