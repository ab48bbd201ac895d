#!/usr/bin/env bash
# Walk the Dockerfile's steps without a container engine: its build context, its installation, its environment.
set -euo pipefail

checkout=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/context" "$folder/data"

# .dockerignore lists what the context holds, one `!name` a line.
sed -n 's/^!//p' "$checkout/.dockerignore" |
    tar -C "$checkout" --exclude=__pycache__ --exclude='*.egg-info' -cf - -T - | tar -C "$folder/context" -xf -
"$folder/context/scripts/install-into.sh" "$folder/compress"

cd "$folder/data"
in_image=(env -i PATH="$folder/compress/bin:/usr/bin:/bin" HOME=/tmp USER=compress HF_HUB_OFFLINE=1)
"${in_image[@]}" compress --version
"${in_image[@]}" compress targets
"${in_image[@]}" python -c "
from compress.pipeline.lte import embed_labels
print('text encoder:', embed_labels(('cat', 'dog'), encoder=None)[1].encoder)"
