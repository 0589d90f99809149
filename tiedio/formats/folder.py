"""The folder that Keras writes with `zipped=False`, and on the Hugging Face Hub."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from tiedio.errors import FileFormatError, damaged
from tiedio.formats import hdf5_writer, members
from tiedio.formats.content import ASSETS, CONFIG, METADATA, VALUES, WEIGHTS, Content, Opened
from tiedio.storage.base import Storage
from tiedio.storage.streams import Window

# What TensorFlow calls a model in a folder of its own kind.
SAVED_MODEL = "saved_model.pb"


def write(target: Storage, content: Content, durable: bool, advance: hdf5_writer.Advance) -> None:
    """Writes a folder."""
    config = json.dumps(content.config)
    with target.replacing_folder({METADATA, CONFIG, WEIGHTS, VALUES, ASSETS}, durable) as folder:
        (folder / CONFIG).write_text(config)
        with open(folder / WEIGHTS, "wb") as file:
            digests = hdf5_writer.write(content.layout, file, advance)
        (folder / ASSETS).mkdir()  # Keras looks for it if there are four names or more
        for name, path in content.asset_files():
            (folder / ASSETS / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / ASSETS / name)
        (folder / METADATA).write_text(json.dumps(content.metadata_with(digests)))


@contextlib.contextmanager
def reading(source: Storage) -> Iterator[Opened]:
    """Opens a folder."""
    with source.reading_folder() as folder:
        if (folder / SAVED_MODEL).is_file() and not (folder / CONFIG).is_file():
            raise FileFormatError(
                f"`{source.name}` is a SavedModel of TensorFlow.\n"
                f"Expected: `{CONFIG}` and `{WEIGHTS}`. Received: `{SAVED_MODEL}`.\n"
                "`tiedio migrate` makes a `.keras` file of it."
            )
        if (folder / METADATA).is_dir():
            raise damaged(source.name, f"a folder `{METADATA}`")
        with members.opened(_Folder(source.name, folder)) as opened:
            yield opened


class _Folder:
    what = "a folder"
    verify = None

    def __init__(self, filepath: str, path: Path):
        self.filepath = filepath
        self._path = path

    def names(self) -> set[str]:
        return {path.name for path in self._path.iterdir() if path.is_file()}

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()

    @contextlib.contextmanager
    def window(self, name: str) -> Iterator[Window]:
        with open(self._path / name, "rb") as file:
            yield Window(file, 0, (self._path / name).stat().st_size)

    def extract_assets(self, folder: Path) -> None:
        for path in (self._path / ASSETS).rglob("*"):
            if path.is_file():
                copy = folder / path.relative_to(self._path)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
