"""Zip archives: whatever is wrong in their structure is refused, whoever wrote them is read."""

import io
import struct
import zipfile

import pytest
import sample_files

from tiedio.errors import FileFormatError
from tiedio.files import verify
from tiedio.formats import damage, table
from tiedio.storage.locating import at

ASSETS = {"assets/ä/words": b"one", "assets/words_1.txt": b"two"}


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    folder = sample_files.write(tmp_path_factory.mktemp("files"))
    with sample_files.opened(folder / "tied.keras") as archive:
        stored = {name: archive.read(name) for name in archive.namelist()}
    return {**ASSETS, **stored}


@pytest.fixture(scope="module")
def content(members):
    stream = io.BytesIO()
    sample_files.zipped(stream, members)
    return stream.getvalue()


def read(content, folder):
    """Reads all of an archive; what is damaged is an error."""
    with table.reading(at(io.BytesIO(content))) as opened:
        damage.check(opened)
        opened.extract_assets(folder)
        files = [one for one in sorted(folder.rglob("*")) if one.is_file()]
        assets = {one.relative_to(folder).as_posix(): one.read_bytes() for one in files}
        assert assets == ASSETS
        return opened.record, opened.config, opened.metadata


def structure(content):
    """Finds the bytes of the directory, and of the headers before the members."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        yield from range(archive.start_dir, len(content))
        for info in archive.infolist():
            lengths = struct.unpack_from("<HH", content, info.header_offset + 26)
            yield from range(info.header_offset, info.header_offset + 30 + sum(lengths))


@pytest.mark.slow
@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_is_refused_or_changes_nothing(content, tmp_path, bit):
    expected = read(content, tmp_path / "as it was")
    refused, spots = 0, list(structure(content))
    for spot in spots:
        changed = bytearray(content)
        changed[spot] ^= 1 << (spot + bit) % 8
        try:
            assert read(bytes(changed), tmp_path / str(spot)) == expected, spot
        except FileFormatError:
            refused += 1
    assert len(spots) / 3 < refused < len(spots)


@pytest.mark.parametrize("swallowed", ["metadata.json", "assets/words_1.txt"])
def test_an_entry_in_the_comment_of_the_one_before(content, tmp_path, swallowed):
    changed = bytearray(content)
    entry = content.rindex(swallowed.encode()) - 46
    before = content.rindex(b"PK\1\2", 0, entry)
    changed[before + 32 : before + 34] = struct.pack("<H", 46 + len(swallowed))
    with pytest.raises(FileFormatError, match=r"Received: 4 of 5 members in its directory\."):
        read(bytes(changed), tmp_path)


def test_an_end_that_leaves_all_numbers_to_the_longer_one(content, tmp_path):
    """As some writers do it, however few members there are."""
    at = content.rindex(b"PK\5\6")
    count, size, start = struct.unpack_from("<HLL", content, at + 10)
    longer = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *[0xFFFF] * 2, *[0xFFFFFFFF] * 2, 0)
    expected = read(content, tmp_path / "as it was")
    assert read(content[:at] + longer + locator + end, tmp_path / "other") == expected


@pytest.mark.parametrize("name", ASSETS)
def test_a_flipped_bit_of_an_asset_is_told(members, content, tmp_path, name):
    changed = bytearray(content)
    changed[content.index(members[name])] ^= 1
    (tmp_path / "changed.keras").write_bytes(changed)
    (problem,) = verify(tmp_path / "changed.keras").problems
    assert str(problem) == "the assets are not those that were saved"


class Pipe(io.BytesIO):
    """Is written from its start to its end: sizes and checksums come after the members."""

    def seekable(self):
        return False

    def tell(self):
        raise OSError


def streamed(members):
    return put(Pipe(), members)


def compressed(members):
    return put(io.BytesIO(), members, compression=zipfile.ZIP_DEFLATED)


def of_large_members(members):
    return put(io.BytesIO(), members, force_zip64=True)


def commented(members):
    return put(io.BytesIO(), members, comment=b"PK\1\2 and more")


def between_other_bytes(members):
    return b"before" * 9 + put(io.BytesIO(), members) + bytes(9)


def with_others(members):
    return put(io.BytesIO(), {"README.md": b"Read me.", "other/": b"", **members})


def put(stream, members, compression=zipfile.ZIP_STORED, comment=b"", **options):
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.comment = comment
        for name, content in members.items():
            with archive.open(name, "w", **options) as member:
                member.write(content)
    return stream.getvalue()


WRITERS = (streamed, compressed, of_large_members, commented, between_other_bytes, with_others)


@pytest.mark.parametrize("write", WRITERS, ids=lambda one: one.__name__)
def test_what_others_write_is_read(members, content, tmp_path, write):
    assert read(write(members), tmp_path / "others") == read(content, tmp_path / "own")
