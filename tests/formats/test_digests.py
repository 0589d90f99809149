"""Digests, and the checksum of a zip archive: of parts, they are those of the whole."""

import zlib

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tiedio.formats import digests
from tiedio.formats.checksum import Checksum


@given(st.lists(st.binary(max_size=100)), st.sampled_from([0, 1, 1 << 16, (1 << 16) + 1]))
def test_the_checksum_of_parts_is_that_of_all(parts, zeros):
    parts.insert(len(parts) // 2, bytes(zeros))
    checksum = Checksum()
    for part in parts:
        checksum.add(Checksum.of_part(part), len(part))
    assert (checksum.value, checksum.size) == (zlib.crc32(b"".join(parts)), sum(map(len, parts)))


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
