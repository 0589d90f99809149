"""Digests of tensors, which threads make at once: of the digests of their parts.

XXH3 (https://xxhash.com) with 64 bits, over a text such as `float32[2, 3]` for dtype and shape,
and the digests of the parts of the bytes. Files once had it over that text and the bytes.
"""

import functools
from collections.abc import Iterable

import numpy as np
import xxhash

from tiedio.formats.arrays import content_of, cut

# A part stays in the cache of a processor while it is read, digested and checksummed.
PART = 1 << 21  # bytes

# How the digests of today begin.
_KIND = f"{PART}:"

# As long as any.
BLANK = _KIND + "0" * 16


def of_part(part: memoryview) -> bytes:
    """Returns the digest of one part."""
    return xxhash.xxh3_64_digest(part)


def of_parts(dtype: np.dtype, shape: tuple[int, ...], parts: Iterable[bytes]) -> str:
    """Returns the digest of a tensor, given those of its parts."""
    return _KIND + xxhash.xxh3_64_hexdigest(_text(dtype, shape) + b"".join(parts))


def of(value: np.ndarray) -> str:
    """Returns the digest of an array."""
    content = content_of(np.ascontiguousarray(value))
    return of_parts(value.dtype, value.shape, map(of_part, cut(content, PART)))


def are_of_parts(digest: str) -> bool:
    """Whether a digest is made of those of parts."""
    return digest.startswith(_KIND)


def agrees(expected: str, value: np.ndarray, parts: Iterable[bytes] | None = None) -> bool:
    """Whether a digest is that of an array, row by row.

    Args:
        expected: The digest, of today's kind or of an older one.
        value: The array.
        parts: The digests of its parts, if they are known.
    """
    if are_of_parts(expected):
        known = of(value) if parts is None else of_parts(value.dtype, value.shape, parts)
        return known == expected
    digest = xxhash.xxh3_64(_text(value.dtype, value.shape))
    digest.update(content_of(value))
    return digest.hexdigest() == expected


@functools.lru_cache
def _text(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    return f"{dtype.name}{list(shape)}".encode()
