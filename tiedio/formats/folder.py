"""The folder that Keras writes with `zipped=False`, and on the Hugging Face Hub.

Those of Orbax are read by `orbax_folder`.
"""

import contextlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tiedio.errors import damaged, removed
from tiedio.formats import hdf5_writer, members, orbax_folder, tensorflow_paths
from tiedio.formats.content import (
    ASSETS,
    CONFIG,
    DEEPEST_ASSET,
    METADATA,
    SAVE,
    VALUES,
    WEIGHTS,
    Content,
    Opened,
)
from tiedio.record.ties import METADATA_KEY
from tiedio.storage.base import Storage
from tiedio.storage.local import Local
from tiedio.storage.streams import Window, WriteBehind

_FILES = {METADATA, CONFIG, WEIGHTS, VALUES}

# The files are open before the next save is done, mostly. But some file systems number a folder
# anew whenever they are asked.
_TRIES = 100


def write(target: Storage, content: Content, durable: bool, advance: hdf5_writer.Advance) -> None:
    """Writes a folder."""
    save = {SAVE: secrets.token_hex(4)}
    config = json.dumps({**content.config, METADATA_KEY: save})
    with target.replacing_folder({*_FILES, ASSETS}, durable) as folder:
        (folder / CONFIG).write_text(config)
        with open(folder / WEIGHTS, "wb") as file, WriteBehind(file) as stream:
            digests = hdf5_writer.write(content.layout, stream, advance)
        (folder / ASSETS).mkdir()  # Keras looks for it if there are four names or more
        for name, path in content.asset_files():
            (folder / ASSETS / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / ASSETS / name)
        metadata = content.metadata_with(digests)
        metadata[METADATA_KEY] |= save
        (folder / METADATA).write_text(json.dumps(metadata))


@contextlib.contextmanager
def reading(source: Storage) -> Iterator[Opened]:
    """Opens a folder.

    Raises:
        FileFormatError: If it is not one of a model, or holds files of several saves.
        MissingFileError: If it is one of Orbax, without a finished checkpoint.
    """
    with contextlib.ExitStack() as resources:
        path = resources.enter_context(source.reading_folder())
        if orbax_folder.is_one(path):
            yield resources.enter_context(orbax_folder.reading(source.name, path))
            return
        folder = resources.enter_context(_all_at_once(source.name, path))
        of_others = CONFIG not in folder.names()
        if of_others and (error := tensorflow_paths.unfit(Local(path), source.name)):
            raise error
        if (path / METADATA).is_dir():
            raise damaged(source.name, f"a folder `{METADATA}`")
        with members.opened(folder) as opened:
            # The record has digests of the weights, but not of the config, which people edit.
            save = _save_of((opened.config or {}).pop(METADATA_KEY, None))
            if save and _save_of(opened.record) not in (None, save):
                raise damaged(source.name, f"`{CONFIG}` of another save")
            yield opened


def _save_of(entry: Any) -> Any:
    return entry.get(SAVE) if isinstance(entry, dict) else None


@contextlib.contextmanager
def _all_at_once(filepath: str, path: Path) -> Iterator["_Folder"]:
    """Opens all files of one folder: at any time, a save may put another in its place."""
    for left in reversed(range(_TRIES)):
        with contextlib.ExitStack() as resources:
            try:
                place = resources.enter_context(_held(path))
                folder = _Folder(filepath, path, resources)
                is_replaced = not os.path.samestat(place, os.stat(path))
            except FileNotFoundError:
                if not left:
                    raise removed(filepath) from None
                continue
            if left and is_replaced:
                continue
            yield folder
            return


@contextlib.contextmanager
def _held(path: Path) -> Iterator[os.stat_result]:
    """Yields the status of a folder, whose number no other one gets inside."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folder, and uses no number again
        yield os.stat(path)
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield os.fstat(descriptor)
    finally:
        os.close(descriptor)


class _Folder:
    """The files of a folder, all of them open; assets, of which there may be many, are copied."""

    what = "a folder"
    verify = None

    def __init__(self, filepath: str, path: Path, resources: contextlib.ExitStack):
        self.filepath = filepath
        self._names = {entry.name for entry in path.iterdir() if entry.is_file()}
        self._files = {
            name: resources.enter_context(open(path / name, "rb"))  # noqa: SIM115
            for name in self._names & _FILES
        }
        self._assets = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        for asset in (path / ASSETS).rglob("*"):
            if asset.is_file():
                if len(asset.relative_to(path).parts) > DEEPEST_ASSET:
                    raise damaged(filepath, "an asset in too many folders")
                copy = self._assets / asset.relative_to(path)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(asset, copy)

    def names(self) -> set[str]:
        return self._names

    def read(self, name: str) -> bytes:
        self._files[name].seek(0)
        return self._files[name].read()

    @contextlib.contextmanager
    def window(self, name: str) -> Iterator[Window]:
        file = self._files[name]
        yield Window(file, 0, file.seek(0, os.SEEK_END))

    def extract_assets(self, folder: Path) -> None:
        shutil.copytree(self._assets, folder, dirs_exist_ok=True)
