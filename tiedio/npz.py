"""Read weights that Keras wrote as `.npz`, without running what they pickle."""

import contextlib
from collections.abc import Iterator

from tiedio.streams import Window


@contextlib.contextmanager
def converted(source: Window, filepath: str) -> Iterator[Window]:
    """Yields the same weights as an HDF5 file."""
    raise NotImplementedError
    yield source
