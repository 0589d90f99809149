"""The containers around a weights file: here the `.keras` zip archive.

Writing is all or nothing. Nothing is read from an archive before its size is
checked, and no member can leave the folder it is extracted to.
"""

import collections
import contextlib
import io
import json
import logging
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tiedio import atomic, hdf5
from tiedio.errors import FileFormatError, MissingFileError, first_line, listed
from tiedio.streams import Window, WriteBehind
from tiedio.weights_file import WeightsFile

METADATA = "metadata.json"
CONFIG = "config.json"
WEIGHTS = "model.weights.h5"
ASSETS = "assets"

# Keras stores members uncompressed; deflate reaches about 1000 : 1 only on bombs. What is
# compressed goes to disk, but for texts: these may be as long as the whole archive is.
_LARGEST_EXPANSION = 100
_EXPANSION_FLOOR = 1 << 28  # bytes
_TEXT_FLOOR = 1 << 22  # bytes
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

# Where the header before a member's bytes says how long its name and extra field are
# (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.7).
_HEADER_LENGTHS_AT = 26

_log = logging.getLogger(__name__)

# What `zipfile` raises for damaged, encrypted or unheard-of members.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
)


def write_archive(
    filepath: Path,
    describe: Callable[[dict[str, str]], dict[str, Any]],
    config: Any,
    layout: hdf5.Layout,
    assets: Path,
    *,
    advance: hdf5.Advance = hdf5.untold,
    durable: bool = True,
) -> None:
    """Writes a `.keras` file whole, or leaves what is there untouched.

    Args:
        filepath: The target.
        describe: Makes the content of `metadata.json`, given the digests of the tensors.
        config: Content of `config.json`.
        layout: The weights.
        assets: Folder whose files become members below `assets/`.
        advance: Told how many bytes of the weights more are written, and of how many.
        durable: Whether to wait until the file is on disk.
    """
    # Before any byte is written: it may hold what JSON cannot.
    config_text = json.dumps(config)
    with (
        atomic.replacing(filepath, durable) as file,
        WriteBehind(file) as stream,
        zipfile.ZipFile(stream, "w") as archive,
    ):
        archive.writestr(CONFIG, config_text)
        with archive.open(WEIGHTS, "w", force_zip64=True) as member:
            digests = hdf5.write(layout, member, advance)
        for path in sorted(assets.rglob("*")):
            if path.is_file():
                archive.write(path, f"{ASSETS}/{path.relative_to(assets).as_posix()}")
        archive.writestr(METADATA, json.dumps(describe(digests)))


class Archive:
    """A `.keras` file open for reading.

    Attributes:
        metadata: Content of `metadata.json`; empty if the file has none.
        config: Content of `config.json`.
        weights: The weights.
    """

    def __init__(
        self,
        filepath: Path,
        archive: zipfile.ZipFile,
        file: io.BufferedReader,
        resources: contextlib.ExitStack,
    ):
        self._filepath = filepath
        self._archive = archive
        self._file = file
        self._resources = resources
        members = archive.namelist()
        if missing := {CONFIG, WEIGHTS}.difference(members):
            raise FileFormatError(
                f"`{filepath}` is not a Keras file: it has no {listed(missing)}.\n"
                f"Expected: a zip archive with `{CONFIG}` and `{WEIGHTS}`. "
                f"Received: {len(members)} other members.\n"
                "Pass a file that was saved by Keras or tiedio as `.keras`."
            )
        self._check_members()
        self.metadata = self._json(METADATA) if METADATA in members else {}
        self.config = self._json(CONFIG)
        self.weights = WeightsFile(self._window(WEIGHTS), str(filepath))

    def verify_weights(self) -> None:
        """Compares the weights with the checksum of the archive.

        Raises:
            FileFormatError: If they differ.
        """
        try:
            with self._archive.open(WEIGHTS) as member:
                while member.read(hdf5.CHUNK):
                    pass
        except _ZIP_ERRORS as error:
            raise _damaged(self._filepath, first_line(error)) from error

    def extract_assets(self, folder: Path) -> None:
        """Extracts the assets below `folder`, in the folder `assets`."""
        for info in self._archive.infolist():
            if info.filename.startswith(f"{ASSETS}/"):
                try:
                    # `extract` drops drive letters, leading slashes and `..`.
                    self._archive.extract(info, folder)
                except _ZIP_ERRORS as error:
                    raise _damaged(self._filepath, first_line(error)) from error

    def _json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads(self._archive.read(name), object_pairs_hook=_unambiguous)
        except (ValueError, RecursionError, MemoryError) as error:
            raise _damaged(self._filepath, f"`{name}` is not JSON ({error})") from error
        if not isinstance(content, dict):
            raise _damaged(self._filepath, f"`{name}` is not a JSON object")
        return content

    def _window(self, name: str) -> Window:
        """Opens a member; one that is compressed is unpacked to disk."""
        info = self._archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:
            _log.debug("%s is compressed: it is unpacked", name)
            unpacked = self._resources.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
            with self._archive.open(info) as member:
                shutil.copyfileobj(member, unpacked, hdf5.CHUNK)
            return Window(unpacked, 0, unpacked.tell())
        self._archive.open(info).close()  # compares its header with the archive's directory
        self._file.seek(info.header_offset + _HEADER_LENGTHS_AT)
        lengths = struct.unpack("<HH", self._file.read(4))
        start = info.header_offset + _HEADER_LENGTHS_AT + 4 + sum(lengths)
        if info.file_size != info.compress_size or start + info.file_size > self._file.seek(
            0, io.SEEK_END
        ):
            raise _damaged(self._filepath, f"`{name}` beyond the end of the file")
        return Window(self._file, start, info.file_size)

    def _check_members(self) -> None:
        """Refuses what readers would take differently, or would fill the disk or the memory."""
        members = self._archive.infolist()
        length = self._file.seek(0, io.SEEK_END)
        names = collections.Counter(info.filename for info in members)
        if twice := [name for name, times in names.items() if times > 1]:
            raise _damaged(self._filepath, f"several members named {listed(twice)}")
        if strange := [i.filename for i in members if i.compress_type not in _COMPRESSIONS]:
            raise _damaged(self._filepath, f"{listed(strange)} of another compression")
        texts = [info for info in members if info.filename in (CONFIG, METADATA)]
        for parts, limit in (
            (texts, max(_TEXT_FLOOR, length)),
            (members, max(_EXPANSION_FLOOR, _LARGEST_EXPANSION * length)),
        ):
            if sum(info.file_size for info in parts) > limit:
                largest = max(parts, key=lambda info: info.file_size)
                raise _damaged(
                    self._filepath,
                    f"{listed([largest.filename])} of {largest.file_size} bytes in "
                    f"{largest.compress_size}",
                )


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a JSON object of pairs; with a key twice, readers would differ."""
    made = dict(pairs)
    if len(made) < len(pairs):
        key, _ = collections.Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"{key[:99]!r} stands twice in one object")
    return made


@contextlib.contextmanager
def open_archive(filepath: Path) -> Iterator[Archive]:
    """Opens a `.keras` file.

    Raises:
        MissingFileError: If there is no such file.
        FileFormatError: If it is not a `.keras` file, or a damaged one.
    """
    if not filepath.is_file():
        raise MissingFileError(
            f"There is no file `{filepath}`.\n"
            f"Expected: a file. Received: {'a folder' if filepath.is_dir() else 'nothing there'}.\n"
            "Check the path."
        )
    with open(filepath, "rb") as file:
        try:
            archive = zipfile.ZipFile(file)
        except (*_ZIP_ERRORS, ValueError) as error:
            file.seek(0)
            if file.read(4) == b"PK\x03\x04":
                raise _damaged(
                    filepath, "a zip archive without its end; it was truncated"
                ) from error
            raise FileFormatError(
                f"`{filepath}` is not a Keras file: it is no zip archive.\n"
                "Expected: a file saved by Keras or tiedio as `.keras`. Received: something else.\n"
                "Check the path; other formats must be converted first."
            ) from error
        with archive, contextlib.ExitStack() as resources:
            try:
                content = Archive(filepath, archive, file, resources)
            except _ZIP_ERRORS as error:
                raise _damaged(filepath, first_line(error)) from error
            resources.enter_context(contextlib.closing(content.weights))
            yield content


def _damaged(filepath: Path, received: str) -> FileFormatError:
    return FileFormatError(
        f"`{filepath}` is damaged.\n"
        f"Expected: a complete `.keras` file. Received: {received}.\n"
        "Restore it from a copy, or save the model again."
    )
