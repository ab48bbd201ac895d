"""Files made to harm whoever reads them, each by one function that says what it tries.

The only payload is a canary: a file that comes into being when somebody runs what the hostile file says. Sources are the
published advisories, scanners' test suites and papers that the docstrings name.
"""

from tests.teacher.hostile import archives, claims, code, others
from tests.teacher.hostile.making import Maker

HOSTILE: dict[str, Maker] = {**code.FILES, **claims.FILES, **archives.FILES, **others.FILES}
"""All of them, by what they are or do."""
