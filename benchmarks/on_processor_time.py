"""`compress` by a clock of its own processor time, so that other work on the machine takes nothing from a budget.

    python benchmarks/on_processor_time.py TEACHER --labels FILE --budget 5m --set threads=1 ...

With one thread the two clocks agree on a machine that does nothing else; several threads count together.
"""

import time

time.monotonic = time.perf_counter = time.process_time

from compress.cli import main

if __name__ == "__main__":
    main()
