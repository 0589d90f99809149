"""Digests, and the checksum of a zip archive: of parts, they are those of the whole."""

import io
import zlib

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tiedio.formats import digests, parts
from tiedio.formats.checksum import Checksum
from tiedio.formats.parts import Extent
from tiedio.storage.streams import Window


@given(st.lists(st.binary(max_size=100)), st.sampled_from([0, 1, 1 << 16, (1 << 16) + 1]))
def test_the_checksum_of_parts_is_that_of_all(pieces, zeros):
    pieces.insert(len(pieces) // 2, bytes(zeros))
    checksum = Checksum()
    for piece in pieces:
        checksum.add(Checksum.of_part(piece), len(piece))
    assert (checksum.value, checksum.size) == (zlib.crc32(b"".join(pieces)), sum(map(len, pieces)))


@given(
    content=st.one_of(st.just(b""), st.binary(min_size=40, max_size=60)),
    extents=st.lists(st.builds(Extent, st.integers(0, 50), st.integers(0, 20)), max_size=6),
)
def test_a_file_is_summed_and_digested_while_it_is_read_once(content, extents):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "PART", 8)
        sums = parts.sums_of(Window(io.BytesIO(content), 0, len(content)), extents)
    assert sums.checksum == zlib.crc32(content)
    end = 0
    for start, size in sorted(set(extents)):
        is_digested = end <= start and start + size <= len(content)
        if is_digested:
            end = start + size
        own = content[start:end] if is_digested else b""
        expected = [xxhash.xxh3_64_digest(own[at : at + 8]) for at in range(0, len(own), 8)]
        assert sums.digests.get(Extent(start, size), []) == expected


@pytest.mark.parametrize("dtype", ["float32", "bool", "int64"])
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 5), (700, 1000)])
def test_a_digest_tells_shape_dtype_and_bytes(shape, dtype):
    value = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    digest = digests.of(value)
    assert len(digest) == len(digests.BLANK)
    assert digests.agrees(digest, value)
    others = [value.reshape(1, *shape), value.astype("uint16")]
    if value.size:
        others.append(value.copy())
        others[-1].flat[-1] = 0 if value.flat[-1] else 1
    assert not any(digests.agrees(digest, other) for other in others)


def test_the_digest_that_files_once_had():
    value = np.random.default_rng(0).random((700, 1000))
    old = xxhash.xxh3_64(b"float64[700, 1000]" + value.tobytes()).hexdigest()
    assert digests.agrees(old, value)
    assert not digests.agrees(old, value + 1)
    assert not digests.agrees("1:" + old, value)
