"""Name a file that is none of Keras', and say what to do with it.

Whatever opens files asks here, once it knows that it cannot. What is recognised, by the first bytes
or by the names in an archive, is in the two tables below, which may be added to.
"""

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from tiedio.errors import FileFormatError

# Bytes from the start that tell what a file is: a tar archive says so behind its first name, and an
# HDF5 file may have 512 zero bytes before it begins.
LENGTH = 1024

_ANY = "a zip archive, an HDF5 file, the JSON of sharded weights, or a folder"


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of files that others write.

    Attributes:
        sign: What tells it: of the first bytes, or of names in an archive, a line each.
        what: Its name.
        advice: What to do with it.
    """

    sign: bytes
    what: str
    advice: str


_FETCH = "Fetch the file that it stands for: `{}`."
_AGAIN = "Copy, or download, the file again."
_DOWNLOAD = "Download the file itself, by the link named raw or download, or after signing in."
_UNPACK = "Unpack it, and pass what is inside."
_TORCH = "Keras did not write it: load it by `torch.load`, and set the weights of a Keras model."
_NUMPY = (
    "NumPy reads it: load it by `numpy.load`, and pass the arrays to `set_weights` of the model."
)
_PICKLE = (
    "It may run any code, and is not read. Load it where it was made, and save the model by "
    "`model.save`."
)
_ELSEWHERE = "Look for the file that Keras saved, from which this one was made."

_BEGINNINGS = (
    _Kind(rb"\Z", "an empty file", _AGAIN),
    _Kind(rb"\0{16,}\Z", "zero bytes, as of a copy that was broken off", _AGAIN),
    _Kind(
        rb"version https://git-lfs\.github\.com/spec/.*?(\nsize (?P<size>\d+))?\s*\Z",
        "a pointer of Git LFS{}",
        _FETCH.format("git lfs pull"),
    ),
    _Kind(
        rb"(\.\./|\./)*(\.git)?/?annex/objects/\S+\s*\Z",
        "a pointer of git-annex",
        _FETCH.format("git annex get"),
    ),
    _Kind(rb"(?i:\s*<(!doctype html|html|head|body)\b)", "a web page", _DOWNLOAD),
    _Kind(rb"\s*<\?xml|\s*<Error>", "XML, as servers answer where they refuse", _DOWNLOAD),
    _Kind(rb"\x93NUMPY", "an array of NumPy", _NUMPY),
    _Kind(rb"\x80\x02\x8a\x0al\xfc\x9cF\xf9", "a file of `torch.save`", _TORCH),
    _Kind(rb"\x80[\x02-\x05]", "a pickle of Python", _PICKLE),
    _Kind(
        rb'.{4}\0{4}\{\s*"',
        "a file of safetensors",
        "`tiedio export` reads it, if it wrote it: its name has to end in `.safetensors`.",
    ),
    _Kind(rb".{4}TFL3", "a model of TensorFlow Lite", _ELSEWHERE),
    _Kind(rb"GGUF", "a model of GGML", _ELSEWHERE),
    _Kind(rb"\x1f\x8b", "a gzip archive", _UNPACK),
    _Kind(rb"BZh\d1AY", "a bzip2 archive", _UNPACK),
    _Kind(rb"\xfd7zXZ\0", "an xz archive", _UNPACK),
    _Kind(rb"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    _Kind(rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    _Kind(rb"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    _Kind(rb".{257}ustar", "a tar archive", _UNPACK),
    _Kind(rb"MATLAB ", "a file of MATLAB", _ELSEWHERE),
)

_MEMBERS = (
    _Kind(rb"^[^\n]*/data\.pkl$|^data\.pkl$", "an archive of `torch.save`", _TORCH),
    _Kind(rb"\A([^\n]+\.npy(\n|\Z))+\Z", "an archive of arrays, of NumPy", _NUMPY),
    _Kind(
        rb"\.(keras|h5|hdf5)$|(^|/)saved_model\.pb$",
        "an archive with a file of Keras inside",
        _UNPACK,
    ),
)


def of_bytes(filepath: str, begins: bytes) -> FileFormatError:
    """The error for a file that begins, or that is, so."""
    if told := recognised(begins):
        return _error(filepath, *told)
    return _error(
        filepath,
        f"a file that begins with {begins[:8]!r}",
        "Check the path; a model in another format must be saved again by Keras.",
        _ANY,
    )


def recognised(begins: bytes) -> tuple[str, str] | None:
    """Says what a file is that begins so, and what to do with it; `None` if that is unknown."""
    kind, found = _first(_BEGINNINGS, begins[:LENGTH], re.match)
    if kind is None:
        return None
    size = (found.groupdict().get("size") or b"").decode()
    return kind.what.format(f" to {int(size):,} bytes" if size else ""), kind.advice


def of_members(filepath: str, names: Collection[str]) -> FileFormatError | None:
    """The error for an archive with these names inside; `None` if they tell nothing."""
    listed = "\n".join(sorted(names)).encode(errors="replace")
    kind, _ = _first(_MEMBERS, listed, re.search)
    return kind and _error(filepath, kind.what, kind.advice)


def of_json(filepath: str, content: Mapping[str, Any]) -> FileFormatError | None:
    """The error for a JSON that names no shards; `None` if it does."""
    if "class_name" in content and "config" in content:
        advice = "Pass the file of the weights; `--config` takes this one."
        return _error(filepath, "the config of a model", advice)
    if "weight_map" not in content:
        received = f"JSON with {json.dumps(sorted(content)[:3])}"
        return _error(filepath, received, "Check the path; the JSON of shards has a `weight_map`.")
    return None


def of_hdf5(filepath: str, names: Collection[str]) -> FileFormatError:
    """The error for an HDF5 file that has these names, and no weights of Keras."""
    some = ", ".join(f"`{name[:60]}`" for name in sorted(names)[:3])
    return _error(
        filepath,
        f"an HDF5 file of other data ({some}{', ...' if len(names) > 3 else ''})",
        "Check the path; files of Keras list their layers, or have a group `vars` for each.",
    )


def _first(kinds: tuple[_Kind, ...], content: bytes, look: Any) -> tuple[Any, Any]:
    for kind in kinds:
        if found := look(kind.sign, content, re.DOTALL | re.MULTILINE):
            return kind, found
    return None, None


def _error(
    filepath: str, received: str, advice: str, expected: str = "one that Keras or tiedio saved"
) -> FileFormatError:
    return FileFormatError(
        f"`{filepath}` is not a Keras file.\nExpected: {expected}. Received: {received}.\n{advice}"
    )
