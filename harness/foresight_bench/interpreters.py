"""Other Python environments that encoders are run in, because models pin versions of libraries that conflict."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping

from foresight_bench.errors import EnvironmentFault
from foresight_bench.registry import code_digest

_QUESTION = """
import json
from foresight_bench.identities import library_versions
from foresight_bench.registry import code_digest
print(json.dumps([dict(library_versions(minor=True)), code_digest("foresight_bench")]))
"""


def libraries_of(python: str) -> Mapping[str, str]:
    """Return the minor versions of the libraries that ``python`` computes with, by distribution.

    Raises:
        EnvironmentFault: it cannot be run, or foresight-bench is not installed there in the same release.
    """
    hint = "Install the same release of foresight-bench, and the plugins, in that environment."
    try:
        asked = subprocess.run([python, "-c", _QUESTION], capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        raise EnvironmentFault(f"The interpreter {python} cannot be run: {error}.", "Check the path.") from error
    try:
        libraries, digest = json.loads(asked.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        said = (asked.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise EnvironmentFault(f"The environment of {python} has no foresight-bench: {said}.", hint) from error
    if digest != code_digest("foresight_bench"):
        raise EnvironmentFault(f"The foresight-bench of {python} is another release.", hint)
    return dict(libraries)
