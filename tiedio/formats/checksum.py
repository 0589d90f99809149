"""The checksum of a zip archive, of parts that several threads sum at once.

CRC-32 is a remainder of polynomials, so that of two parts follows from those of each and the
length of the second (https://stackoverflow.com/a/23126768, by an author of zlib).
"""

import functools

from zlib_ng import zlib_ng

# The divisor, the highest power in the lowest bit.
_DIVISOR = 0xEDB88320
_ONE = 1 << 31


class Checksum:
    """A checksum in the making.

    Attributes:
        value: The checksum of what was added.
        size: Bytes of it.
    """

    def __init__(self):
        self.value = 0
        self.size = 0

    @staticmethod
    def of_part(part: bytes | bytearray | memoryview) -> int:
        """Sums one part, in any thread."""
        return zlib_ng.crc32(part)

    def add(self, sum_of_part: int, size: int) -> None:
        """Adds the next part, given its checksum and its bytes."""
        self.value = _product(_shift(size), self.value) ^ sum_of_part
        self.size += size


@functools.lru_cache
def _shift(size: int) -> int:
    """Returns what a remainder is multiplied by when `size` more bytes follow."""
    result, power = _ONE, _ONE >> 8  # x to the 8: one byte
    while size:
        if size & 1:
            result = _product(result, power)
        power = _product(power, power)
        size >>= 1
    return result


def _product(first: int, second: int) -> int:
    """Multiplies two polynomials, modulo the divisor."""
    product = 0
    while first:
        if first & _ONE:
            product ^= second
        first = first << 1 & 0xFFFFFFFF
        second = second >> 1 ^ (_DIVISOR if second & 1 else 0)
    return product
