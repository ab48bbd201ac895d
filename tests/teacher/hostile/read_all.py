"""Reads every file of a folder in one process that is held to limits, and prints how each was refused.

    python -m tests.teacher.hostile.read_all FOLDER

One JSON object a line: name, class and exit code of the error, message, hint, seconds, and the peak of memory so far.
"""

import json
import resource
import signal
import sys
import time
from pathlib import Path

from compress.pipeline.errors import CompressError
from compress.pipeline.teacher.reading import read_checkpoint

ADDRESS_SPACE = 2**30
"""Bytes that reading may add to what the process has after its imports."""

SECONDS = 5
"""Of computing, for one file."""


def main(folder: Path) -> None:
    """Read the files in the order of their names."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for path in sorted(folder.iterdir()):
        print(json.dumps(_outcome(path)), flush=True)


def _outcome(path: Path) -> dict[str, object]:
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends the process
    start = time.process_time()
    outcome: dict[str, object] = {"name": path.name, "error": "", "exit_code": 0, "message": "", "hint": ""}
    try:
        read_checkpoint(path)
    except CompressError as error:
        outcome |= {"error": type(error).__name__, "exit_code": error.exit_code}
        outcome |= {"message": error.message, "hint": error.hint}
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return outcome | {"seconds": time.process_time() - start, "peak": peak}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
