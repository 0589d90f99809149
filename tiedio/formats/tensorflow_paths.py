"""Tell by the names of files whether something is of TensorFlow, and which: TensorFlow reads it.

ckpt.index, ckpt.data-00000-of-00001     a checkpoint
saved_model.pb, variables/variables.*    a SavedModel, which has one inside
keras_metadata.pb                        the configs of its layers, from TensorFlow 2.5 on
"""

import contextlib
import dataclasses
import re
from collections.abc import Collection
from pathlib import Path

from tiedio.errors import FileFormatError, listed
from tiedio.formats.content import CONFIG
from tiedio.storage.base import Storage
from tiedio.storage.local import Local
from tiedio.storage.locating import at
from tiedio.storage.remote import Remote

SAVED_MODEL = "saved_model.pb"
KERAS_METADATA = "keras_metadata.pb"
INDEX = ".index"
NEWEST = "checkpoint"  # a file that names the newest checkpoint beside it
_DATA = re.compile(r"\.data-\d{5}-of-\d{5}$")
# What every object of Keras is called in the graph of a SavedModel.
_OF_KERAS = b"_tf_keras_"
_PART = 1 << 20  # bytes

# What to do with a SavedModel that Keras did not save, or saved by `export`.
NOT_OF_KERAS = (
    "It says nothing of layers: `keras.layers.TFSMLayer` runs it. Or save the model by "
    "`model.save`."
)


@dataclasses.dataclass(frozen=True)
class Found:
    """Where files of TensorFlow lie.

    Attributes:
        name: The path that was asked for, for messages.
        prefix: The common beginning of the names of the files with tensors.
        folder: The folder of a SavedModel; `None` for a checkpoint.
    """

    name: str
    prefix: Path
    folder: Path | None = None


def find(source: Storage) -> Found | None:
    """Tells whether something is of TensorFlow, by the names of files only.

    Raises:
        FileFormatError: If it is, and lies elsewhere than on disk, or is several.
    """
    if isinstance(source, Remote):
        names = (f"{source.name.rstrip('/')}/{SAVED_MODEL}", f"{source.name}{INDEX}")
        if any(at(name).exists() for name in names):
            raise unreadable(source.name, "a path on disk", "a URL", "Copy it to this machine.")
    if not isinstance(source, Local):
        return None
    path = Path(source.name)
    folder = path.parent if path.name == SAVED_MODEL else path
    if (folder / SAVED_MODEL).is_file():
        return Found(source.name, folder / "variables" / "variables", folder)
    prefix = path.with_name(_DATA.sub("", path.name).removesuffix(INDEX)) if path.name else path
    if index_of(prefix).is_file():
        return Found(source.name, prefix)
    if not source.is_folder() or (path / CONFIG).exists():
        return None
    names = sorted(one.name.removesuffix(INDEX) for one in path.glob(f"*{INDEX}"))
    if not names:
        return None
    with contextlib.suppress(OSError, UnicodeDecodeError):
        # The newest of several, which lies here whatever path is written there.
        told = re.match(r'model_checkpoint_path: "(.*)"', (path / NEWEST).read_text())
        names = [one for one in names if told and one == Path(told[1]).name] or names
    if len(names) > 1:
        hint = "Pass the path of one of them, without its ending."
        raise unreadable(source.name, "one checkpoint", listed(names), hint)
    return Found(source.name, path / names[0])


def index_of(prefix: Path) -> Path:
    """The file that says where the tensors of a checkpoint are."""
    return Path(f"{prefix}{INDEX}")


def is_data(name: str) -> bool:
    """Whether a file of this name holds tensors of a checkpoint."""
    return bool(_DATA.search(name))


def checkpoints(names: Collection[str]) -> set[str]:
    """The checkpoints that files of these names are, without their endings."""
    indices = {name.removesuffix(INDEX) for name in names if name.endswith(INDEX)}
    return indices & {_DATA.sub("", name) for name in names if is_data(name)}


def unfit(source: Storage, filepath: str) -> FileFormatError | None:
    """The error for something of TensorFlow where only a file of Keras will do."""
    if (found := find(source)) is None:
        return None
    kind, received = "checkpoint", f"`{index_of(found.prefix).name}`"
    advice = "`tiedio migrate` makes a `.keras` file of it, with the model's config as `--config`."
    if found.folder:
        kind, received = "SavedModel", f"`{SAVED_MODEL}`"
        advice = "`tiedio migrate` makes a `.keras` file of it."
        if not _is_of_keras(found.folder):
            received += ", which Keras' `model.save` did not write"
            advice = NOT_OF_KERAS
    return FileFormatError(
        f"`{filepath}` is a {kind} of TensorFlow.\n"
        f"Expected: a file of Keras. Received: {received}.\n"
        f"{advice}"
    )


def _is_of_keras(folder: Path) -> bool:
    """Whether a SavedModel holds a model with its config, as the names in it say."""
    if (folder / KERAS_METADATA).is_file():
        return True
    with open(folder / SAVED_MODEL, "rb") as file:
        before = b""
        while part := file.read(_PART):
            if _OF_KERAS in before + part:
                return True
            before = part[-len(_OF_KERAS) :]
    return False


def unreadable(filepath: str, expected: str, received: str, hint: str) -> FileFormatError:
    """The error for something of TensorFlow that is not read as it lies there."""
    return FileFormatError(
        f"`{filepath}` cannot be read.\nExpected: {expected}. Received: {received}.\n{hint}"
    )
