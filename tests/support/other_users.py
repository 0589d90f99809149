"""What only POSIX has: another user, and the wait for another process."""

import contextlib
import os
import sys

import pytest

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither kills nor modes")
PATIENCE = 60  # seconds for another process to do something
NOBODY = 65534


@contextlib.contextmanager
def as_nobody():
    """Root may write everywhere: the user `nobody` takes its place."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
