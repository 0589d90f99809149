"""The `.keras` zip archive.

Nothing is read from one before its size is checked, and no member can leave the
folder it is extracted to.
"""

import bz2
import collections
import contextlib
import io
import json
import logging
import lzma
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tiedio.errors import damaged, explained, listed
from tiedio.formats import foreign, hdf5_writer, members
from tiedio.formats.checksum import Checksum
from tiedio.formats.content import (
    ASSETS,
    CONFIG,
    DEEPEST_ASSET,
    METADATA,
    WEIGHTS,
    Content,
    Opened,
    put_asset,
)
from tiedio.storage.base import COPY_CHUNK, Storage
from tiedio.storage.streams import Window, WriteBehind

# Keras stores members uncompressed; deflate reaches about 1000 : 1 only on bombs. What is
# compressed goes to disk, but for texts: these may be as long as the whole archive is.
_LARGEST_EXPANSION = 100
_EXPANSION_FLOOR = 1 << 28  # bytes
_TEXT_FLOOR = 1 << 22  # bytes
# Of these `zipfile` unpacks all that it has read, however much that becomes.
_UNBOUNDED = (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, *_UNBOUNDED)
# LZMA keeps so many bytes of what it has unpacked as the member says: at most those of `xz -9`.
_LARGEST_DICTIONARY = 1 << 26
# Before its bytes stand versions, the size of what follows, options in one byte, and this.
_LZMA_HEADER = struct.Struct("<2x2xBL")

_PART = COPY_CHUNK

# The header before a member's bytes: signature, flags, lengths of its name and its extra field
# (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.7).
_HEADER = struct.Struct("<4s2xH18xHH")
_HEADER_SIGNATURE = b"PK\3\4"
_IN_UTF_8 = 1 << 11  # among the flags
# The end of the directory: signature, how many members there are (4.3.16). A comment follows.
_END = struct.Struct("<4s6xH10x")
_END_SIGNATURE = b"PK\5\6"
_LONGEST_COMMENT = 0xFFFF
_UNTOLD = 0xFFFF  # how many there are, a longer record says

_log = logging.getLogger(__name__)

# What `zipfile` raises for damaged, encrypted or unheard-of members.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)


def write(target: Storage, content: Content, durable: bool, advance: hdf5_writer.Advance) -> None:
    """Writes an archive."""
    # Before any byte is written: it may hold what JSON cannot.
    config = json.dumps(content.config)
    with (
        target.replacing(durable) as file,
        WriteBehind(file) as stream,
        _Archive(stream, "w") as archive,
    ):
        archive.writestr(CONFIG, config)
        with archive.open(WEIGHTS, "w", force_zip64=True) as member:
            digests = _write_weights(member, content.layout, stream, advance)
        for name, path in content.asset_files():
            archive.write(path, f"{ASSETS}/{name}")
        archive.writestr(METADATA, json.dumps(content.metadata_with(digests)))


class _Archive(zipfile.ZipFile):
    """An archive that is left as it is if an error comes, as its file will be."""

    def __exit__(self, kind: Any, *error: Any) -> None:
        if kind:
            self.fp = None
        super().__exit__(kind, *error)


def _write_weights(
    member: Any, layout: hdf5_writer.Layout, stream: WriteBehind, advance: hdf5_writer.Advance
) -> dict[str, str]:
    """Writes a member, and sums it: `zipfile` would do so one part after the other."""
    checksum = Checksum()
    digests = hdf5_writer.write(layout, stream, advance, checksum=checksum)
    # There is no public way to say what it did not see.
    member._crc, member._file_size = checksum.value, checksum.size
    return digests


@contextlib.contextmanager
def reading(source: Storage) -> Iterator[Opened]:
    """Opens an archive.

    Raises:
        FileFormatError: If it is not one of a model, or a damaged one.
    """
    with source.reading() as file, contextlib.ExitStack() as resources:
        with explained(source.name, *_ZIP_ERRORS):
            if not zipfile.is_zipfile(file):
                raise damaged(source.name, "a zip archive without its end; it was truncated")
            archive = resources.enter_context(zipfile.ZipFile(file))
            zipped = _Zip(source.name, archive, file)
            names = zipped.names()
            is_ours = {CONFIG, WEIGHTS} & set(names)
            if not is_ours and (error := foreign.of_members(source.name, names)):
                raise error
            opened = resources.enter_context(members.opened(zipped))
        yield opened


class _Zip:
    """The members of a zip archive, checked before anything of them is read."""

    what = "a zip archive"

    def __init__(self, filepath: str, archive: zipfile.ZipFile, file: BinaryIO):
        self.filepath = filepath
        self._archive = archive
        self._file = file
        self._check()

    def names(self) -> list[str]:
        return self._archive.namelist()

    def read(self, name: str) -> bytes:
        return b"".join(self._parts(self._archive.getinfo(name)))

    def verify(self, name: str, checksum: Callable[[], int]) -> None:
        info = self._archive.getinfo(name)
        with explained(self.filepath, *_ZIP_ERRORS):
            # One that is compressed was compared while it was unpacked.
            if info.compress_type == zipfile.ZIP_STORED and checksum() != info.CRC:
                raise zipfile.BadZipFile(f"Bad CRC-32 for file {name!r}")

    def _parts(self, info: zipfile.ZipInfo) -> Iterator[bytes]:
        """Reads a member in parts, at whose end its checksum is compared."""
        with self._archive.open(info) as member:
            while info.compress_type not in _UNBOUNDED and (part := member.read(_PART)):
                yield part
        if info.compress_type not in _UNBOUNDED:
            return
        packed = Window(self._file, self._start(info), info.compress_size)
        unpacked = bz2.BZ2Decompressor()
        if info.compress_type == zipfile.ZIP_LZMA:
            options, size = _LZMA_HEADER.unpack(packed.read(_LZMA_HEADER.size))
            kept = {"dict_size": size, "lc": options % 9, "lp": options // 9 % 5}
            kept = {"id": lzma.FILTER_LZMA1, **kept, "pb": options // 45}
            unpacked = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[kept])
        left, checksum = info.file_size, 0
        while left:
            content = packed.read(_PART) if unpacked.needs_input else b""
            part = unpacked.decompress(content, min(_PART, left))
            if not (part or content):
                raise EOFError("it ends too early")
            left, checksum = left - len(part), zlib.crc32(part, checksum)
            yield part
        if checksum != info.CRC:
            raise zipfile.BadZipFile(f"Bad CRC-32 for file {info.filename!r}")

    def extract_assets(self, folder: Path) -> None:
        with explained(self.filepath, *_ZIP_ERRORS):
            for info in self._archive.infolist():
                if info.filename.startswith(f"{ASSETS}/"):
                    if info.filename.count("/") > DEEPEST_ASSET:
                        raise damaged(self.filepath, "an asset in too many folders")
                    if info.compress_type in _UNBOUNDED:
                        put_asset(self.filepath, folder, info.filename, self._parts(info))
                        continue
                    # `extract` drops drive letters, leading slashes and `..`.
                    self._archive.extract(info, folder)

    @contextlib.contextmanager
    def window(self, name: str) -> Iterator[Window]:
        """Opens a member; one that is compressed is unpacked to disk."""
        info = self._archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:
            _log.debug("%s is compressed: it is unpacked", name)
            with tempfile.TemporaryFile() as unpacked:
                unpacked.writelines(self._parts(info))
                yield Window(unpacked, 0, unpacked.tell())
            return
        self._archive.open(info).close()  # refuses what is encrypted
        start = self._start(info)
        end = self._file.seek(0, io.SEEK_END)
        if info.file_size != info.compress_size or start + info.file_size > end:
            raise damaged(self.filepath, f"`{name}` beyond the end of the file")
        yield Window(self._file, start, info.file_size)

    def _start(self, info: zipfile.ZipInfo) -> int:
        """Returns where the bytes of a member begin, after a header of the same name."""
        self._file.seek(info.header_offset)
        header = self._file.read(_HEADER.size).ljust(_HEADER.size)
        signature, flags, name, extra = _HEADER.unpack(header)
        encoding = "utf-8" if flags & _IN_UTF_8 else "cp437"
        name = self._file.read(name).decode(encoding, "replace")
        if (signature, name) != (_HEADER_SIGNATURE, info.orig_filename):
            raise damaged(self.filepath, f"no `{info.filename}` where its directory has it")
        return self._file.tell() + extra

    def _count(self) -> int:
        """Returns how many members there are, or `_UNTOLD`, as the end of the archive says."""
        length = self._file.seek(0, io.SEEK_END)
        self._file.seek(max(0, length - _END.size - _LONGEST_COMMENT))
        end = self._file.read()
        return _END.unpack_from(end, end.rindex(_END_SIGNATURE))[1]

    def _dictionary(self, info: zipfile.ZipInfo) -> int:
        """Returns how much memory a member of LZMA asks for."""
        self._file.seek(self._start(info))
        return _LZMA_HEADER.unpack(self._file.read(_LZMA_HEADER.size))[1]

    def _check(self) -> None:
        """Refuses what readers would take differently, or would fill the disk or the memory."""
        members = self._archive.infolist()
        if (count := self._count()) not in (len(members), _UNTOLD):
            raise damaged(self.filepath, f"{len(members)} of {count} members in its directory")
        length = self._file.seek(0, io.SEEK_END)
        names = collections.Counter(info.filename for info in members)
        if twice := [name for name, times in names.items() if times > 1]:
            raise damaged(self.filepath, f"several members named {listed(twice)}")
        if strange := [i.filename for i in members if i.compress_type not in _COMPRESSIONS]:
            raise damaged(self.filepath, f"{listed(strange)} of another compression")
        packed = [info for info in members if info.compress_type == zipfile.ZIP_LZMA]
        if large := [i.filename for i in packed if self._dictionary(i) > _LARGEST_DICTIONARY]:
            raise damaged(self.filepath, f"{listed(large)} that would fill the memory")
        texts = [info for info in members if info.filename in (CONFIG, METADATA)]
        for parts, limit in (
            (texts, max(_TEXT_FLOOR, length)),
            (members, max(_EXPANSION_FLOOR, _LARGEST_EXPANSION * length)),
        ):
            if sum(info.file_size for info in parts) > limit:
                largest = max(parts, key=lambda info: info.file_size)
                raise damaged(
                    self.filepath,
                    f"{listed([largest.filename])} of {largest.file_size} bytes in "
                    f"{largest.compress_size}",
                )
        for info in members:  # a name that is not its own would hide a member
            self._start(info)
