"""Write a safetensors file one tensor at a time, and read one by its own library.

Nothing is known here of what the tensors are, or what the metadata say.
"""

import contextlib
import json
import struct
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tiedio.errors import SaveError, damaged, explained, imported, listed
from tiedio.formats.arrays import content_of, cut
from tiedio.formats.hdf5_writer import BFLOAT16, Advance, Tensor
from tiedio.storage.base import COPY_CHUNK, Storage
from tiedio.storage.local import Local
from tiedio.storage.streams import WriteBehind

SUFFIX = ".safetensors"

_DTYPES = {
    "BOOL": np.dtype(bool),
    "BF16": BFLOAT16,
    "F16": np.dtype(np.float16),
    "C64": np.dtype(np.complex64),
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}

# The longest header that readers take (https://huggingface.co/docs/safetensors).
_LONGEST_HEADER = 100_000_000  # bytes


def write(
    target: Storage,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    durable: bool,
    advance: Advance,
) -> None:
    """Writes a file, one tensor at a time, which the library does not.

    Args:
        target: Where to.
        tensors: The tensors by name.
        metadata: Texts by name.
        durable: Whether to wait until the file is on disk.
        advance: Told how many bytes more are written, and of how many.

    Raises:
        SaveError: If the format cannot hold them.
    """
    unfit = [key for key, one in tensors.items() if one.dtype.newbyteorder("=") not in _CODES]
    if unfit:
        kinds = sorted({tensors[key].dtype.name for key in unfit})
        raise SaveError(
            f"`{target.name}` cannot hold {listed(unfit)}.\n"
            f"Expected: numbers that safetensors knows. Received: {', '.join(kinds)}.\n"
            "Copy the file as it is; a file of Keras holds all of them."
        )
    # The widest first, so that each begins where its type may.
    placed = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for key, tensor in placed:
        start, end = end, end + tensor.nbytes
        header[key] = {
            "dtype": _CODES[tensor.dtype.newbyteorder("=")],
            "shape": tensor.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(header).encode()
    text = text.ljust(len(text) + -len(text) % 8)
    if len(text) > _LONGEST_HEADER:
        raise SaveError(
            f"`{target.name}` cannot hold what is to be kept beside the tensors.\n"
            f"Expected: at most {_LONGEST_HEADER} bytes. Received: {len(text)}.\n"
            "Copy the file as it is."
        )
    with target.replacing(durable) as file, WriteBehind(file) as stream:
        stream.write(struct.pack("<Q", len(text)))
        stream.write(text)
        for _, tensor in placed:
            value = np.ascontiguousarray(tensor.read(), dtype=tensor.dtype.newbyteorder("="))
            for part in cut(content_of(value), COPY_CHUNK):
                stream.write(part)
                advance(len(part), end)


@contextlib.contextmanager
def reading(source: Storage) -> Iterator[Any]:
    """Opens a file by the library, which reads from disk only.

    Raises:
        MissingPackageError: If the library is not installed.
        MissingFileError: If there is no such file.
        FileFormatError: If it is damaged.
    """
    safetensors = imported("safetensors", f"`{source.name}`", "safetensors")
    with contextlib.ExitStack() as resources:
        file = resources.enter_context(source.reading())
        path = source.name
        if not isinstance(source, Local):
            copy = resources.enter_context(tempfile.NamedTemporaryFile(suffix=SUFFIX))
            while part := file.read(COPY_CHUNK):
                copy.write(part)
            copy.flush()
            path = copy.name
        with explained(source.name, safetensors.SafetensorError):
            yield resources.enter_context(safetensors.safe_open(path, framework="numpy"))


def tensor(source: Storage, file: Any, key: str) -> Tensor:
    """Returns a tensor of a file that is open, to be read when it is written."""
    stored = file.get_slice(key)
    if stored.get_dtype() not in _DTYPES:
        raise damaged(source.name, f"`{key}` of type {stored.get_dtype()}")
    dtype = _DTYPES[stored.get_dtype()]
    return Tensor(tuple(stored.get_shape()), dtype, lambda: file.get_tensor(key))
