"""The formats of Keras, as one table: what a file is, and who reads and writes it."""

import dataclasses
import zipfile
from contextlib import AbstractContextManager
from typing import Protocol

from tiedio.errors import MissingFileError, SaveError
from tiedio.formats import folder, foreign, hdf5_file, shards, tensorflow_paths, zip_archive
from tiedio.formats.content import Content, Opened
from tiedio.formats.hdf5_writer import Advance
from tiedio.storage.base import Storage
from tiedio.storage.open_file import OpenFile


class _Module(Protocol):
    """A module that writes and opens files of one format."""

    def write(
        self, target: Storage, content: Content, durable: bool, advance: Advance, /
    ) -> None: ...
    def reading(self, source: Storage, /) -> AbstractContextManager[Opened]: ...


@dataclasses.dataclass(frozen=True)
class Format:
    """One way to lay a model, or its weights, out in files.

    Attributes:
        title: Its name.
        suffixes: The endings of its paths; a folder has none.
        module: Writes and opens its files.
        signature: The first bytes of its files; a folder has none.
        holds_model: Whether it holds a whole model, or weights only.
        has_old_layout: Whether it also holds the layout of Keras 2.
    """

    title: str
    suffixes: tuple[str, ...]
    module: _Module
    _: dataclasses.KW_ONLY
    signature: bytes = b""
    holds_model: bool = True
    has_old_layout: bool = False

    def write(self, target: Storage, content: Content, durable: bool, advance: Advance) -> None:
        self.module.write(target, content, durable, advance)


_ZIP, _HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"

# The first that fits is taken.
FORMATS = (
    Format("zip archive", (".keras",), zip_archive, signature=_ZIP),
    Format("folder", (), folder),
    Format("HDF5 file", (".weights.h5",), hdf5_file, signature=_HDF5, holds_model=False),
    Format("HDF5 file", (".h5", ".hdf5"), hdf5_file, signature=_HDF5, has_old_layout=True),
    Format("shards", (".weights.json",), shards, signature=b"{", holds_model=False),
)
_FOLDER = FORMATS[1]
SUFFIXES = tuple(suffix for one in FORMATS for suffix in one.suffixes)
WEIGHTS_SUFFIXES = (".weights.h5", ".weights.json")


def format_to_save(target: Storage, holds_model: bool, zipped: bool = True) -> Format:
    """Returns the format in which a model, or its weights, are saved at a place.

    Raises:
        SaveError: If its name says none.
    """
    fit = [one for one in FORMATS if one.holds_model == holds_model]
    endings = ", ".join(f"`{suffix}`" for one in fit for suffix in one.suffixes)
    if isinstance(target, OpenFile) and zipped:
        return fit[0]
    for one in fit:
        if target.name.endswith(one.suffixes) and zipped == bool(one.suffixes):
            return one
    ending = next(filter(target.name.endswith, SUFFIXES), None)
    if not zipped and not ending:
        return _FOLDER
    expected = f"a path ending in {endings}"
    if not zipped:
        expected = f"the path of a folder, which should not end in `{ending}`"
    raise SaveError(
        f"`{target.name}` names no format in which {'models' if holds_model else 'weights'} "
        "are saved.\n"
        f"Expected: {expected}. Received: {target.name}.\n"
        "Change the ending"
        + (", or pass `zipped=False` to save to a folder." if holds_model and zipped else ".")
    )


def reading(source: Storage) -> AbstractContextManager[Opened]:
    """Opens a file, or a folder, for reading, whatever it is called.

    Raises:
        MissingFileError: If there is nothing.
        FileFormatError: If it is of no format in the table, or damaged.
    """
    return format_of(source).module.reading(source)


def format_of(source: Storage) -> Format:
    """Tells of which format a file, or a folder, is.

    Raises:
        MissingFileError: If there is nothing.
        FileFormatError: If it is of no format in the table.
    """
    if source.is_folder():
        return _FOLDER
    try:
        begins = source.begins(foreign.LENGTH)
    except MissingFileError as error:
        raise (
            tensorflow_paths.unfit(source, source.name) or error
        ) from None  # a common beginning of names
    for one in FORMATS:
        if one.signature and begins.startswith(one.signature):
            return one
    with source.reading() as file:
        if zipfile.is_zipfile(file):  # other bytes may come before an archive
            return FORMATS[0]
    raise tensorflow_paths.unfit(source, source.name) or foreign.of_bytes(source.name, begins)
