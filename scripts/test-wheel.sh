#!/usr/bin/env bash
# Build the wheel, install it where there is no checkout, and try it.
#
#   scripts/test-wheel.sh          with dependencies of its own, as constraints.txt pins them: minutes and gigabytes
#   scripts/test-wheel.sh PYTHON   with the dependencies that PYTHON's environment has: seconds
set -euo pipefail

checkout=$(cd "$(dirname "$0")/.." && pwd)
lender=${1:+$(cd "$(dirname "$1")" && pwd)/$(basename "$1")}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
bin=$folder/environment/bin

step() {
    printf -- '-- %s\n' "$*"
    "$@"
}

python3=${lender:-python3}
if [ -z "$lender" ]; then
    step python3 -m venv "$folder/builder"
    python3=$folder/builder/bin/python
    step "$python3" -m pip install --quiet --upgrade pip build
fi

# The wheel is built from the source archive, so that both are complete; from a copy, so that no build leaves a trace.
mkdir "$folder/source"
tar -C "$checkout" -cf - src pipeline exporters configs cli.py pyproject.toml README.md LICENSE | tar -C "$folder/source" -xf -
echo "-- $python3 -m build"
"$python3" -m build --outdir "$folder/dist" "$folder/source" >"$folder/build.log" 2>&1 || { cat "$folder/build.log"; exit 1; }
wheel=$(echo "$folder"/dist/*.whl)

step "$python3" -m venv --without-pip "$folder/environment"
install=("$python3" -m pip --python "$bin/python" --disable-pip-version-check install --quiet)
if [ -n "$lender" ]; then
    step "${install[@]}" --no-deps "$wheel"
    "$lender" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/lent.pth"
else
    step "${install[@]}" --constraint "$checkout/constraints.txt" "${wheel}[encoder]"
fi

cd "$folder"
step "$bin/compress" --version
step "$bin/edge-compress" --version
step "$bin/python" -m compress --version
step "$bin/compress" --help >/dev/null
step "$bin/compress" targets
step "$bin/python" "$checkout/scripts/check_installed.py" "$folder/environment" "$checkout"
