"""Read a container of members by name, which a zip archive is, and a folder."""

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Protocol

from tiedio.errors import FileFormatError, listed
from tiedio.formats import npz
from tiedio.formats.content import CONFIG, METADATA, VALUES, WEIGHTS, Opened
from tiedio.formats.hdf5_reader import WeightsFile
from tiedio.formats.parts import sums_of
from tiedio.record.json_fields import parse
from tiedio.record.ties import METADATA_KEY
from tiedio.storage.streams import Window


class Members(Protocol):
    """The questions to a container.

    Attributes:
        what: What it is, in words.
        filepath: Its name for messages.
    """

    what: str
    filepath: str

    @property
    def verify(self) -> Callable[[str, Callable[[], int]], None] | None:
        """Compares the checksum that is made of a member with its own; `None` if it has none."""

    def names(self) -> Collection[str]: ...
    def read(self, name: str) -> bytes: ...
    def window(self, name: str) -> contextlib.AbstractContextManager[Window]: ...
    def extract_assets(self, folder: Path) -> None: ...


@contextlib.contextmanager
def opened(members: Members) -> Iterator[Opened]:
    """Opens a container.

    Raises:
        FileFormatError: If it lacks what all files of Keras have, or is damaged.
    """
    names = members.names()
    stored = VALUES if VALUES in names and WEIGHTS not in names else WEIGHTS
    if missing := {CONFIG, stored}.difference(names):
        raise FileFormatError(
            f"`{members.filepath}` is not a Keras file: it has no {listed(missing)}.\n"
            f"Expected: {members.what} with `{CONFIG}` and `{WEIGHTS}`. "
            f"Received: {len(names)} other members.\n"
            "Pass a file that was saved by Keras or tiedio."
        )
    metadata, config = (
        parse(members.filepath, name, members.read(name)) if name in names else {}
        for name in (METADATA, CONFIG)
    )
    with contextlib.ExitStack() as resources:
        member = window = resources.enter_context(members.window(stored))
        if npz.is_one(member):  # Keras writes them as `WEIGHTS` too
            window = resources.enter_context(npz.converted(member, members.filepath))
        verify = members.verify and functools.partial(members.verify, stored)
        # What fails while tensors are looked for asks for the checksum alone.
        alone = verify and functools.partial(verify, lambda: sums_of(member).checksum)
        weights = WeightsFile([window], members.filepath, alone)
        with_tensors = verify and functools.partial(verify, lambda: weights.sum_up()[0])
        resources.enter_context(contextlib.closing(weights))
        yield Opened(
            filepath=members.filepath,
            record=metadata.get(METADATA_KEY),
            config=config,
            weights=weights,
            metadata=metadata,
            verify_weights=with_tensors if window is member else alone,
            extract_assets=members.extract_assets,
        )
