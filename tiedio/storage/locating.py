"""Tell by a path which kind of place it names."""

import os
from pathlib import Path
from typing import Any

from tiedio.errors import unfit
from tiedio.storage.base import Storage
from tiedio.storage.hub import Hub
from tiedio.storage.local import Local
from tiedio.storage.open_file import OpenFile
from tiedio.storage.remote import Remote


def path_of(filepath: Any, argument: str = "filepath") -> str:
    """Returns a path as text."""
    try:
        return os.fsdecode(filepath)
    except TypeError:
        raise unfit(
            {argument: filepath},
            "a path, a URL or an open file",
            "Pass a path; what takes a model as well takes that first, and one only.",
        ) from None


def at(filepath: Any) -> Storage:
    """Returns where `filepath` leads: a path, a URL, or a file that is open."""
    if hasattr(filepath, "read") or hasattr(filepath, "write"):
        return OpenFile(filepath)
    name = path_of(filepath)
    scheme, separator, rest = name.partition("://")
    if not separator:
        return Local(Path(name))
    if scheme == "file":
        return Local(Path(rest))
    return Hub(rest) if scheme == "hf" else Remote(name)
