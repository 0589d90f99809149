"""Where the checkout is, and how a process of its own is started in it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "fixtures"


def environment(*folders, **variables):
    """Returns the variables of a process that imports from `folders`, and what this one can."""
    path = [*map(str, folders), *filter(None, sys.path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **variables}


def start(module, *arguments, **options):
    """Starts a script, given as the module that it is."""
    command = [sys.executable, module.__file__, *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), **options)
