"""The folder that Keras writes with `zipped=False`, and on the Hugging Face Hub."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from tiedio.errors import FileFormatError, damaged
from tiedio.formats import hdf5_writer, npz
from tiedio.formats.content import (
    ASSETS,
    CONFIG,
    METADATA,
    VALUES,
    WEIGHTS,
    Archive,
    Content,
    lacking,
)
from tiedio.formats.hdf5_reader import WeightsFile
from tiedio.record.json_fields import parse
from tiedio.record.ties import METADATA_KEY
from tiedio.storage.base import Storage
from tiedio.storage.streams import Window

# What TensorFlow calls a model in a folder of its own kind.
_SAVED_MODEL = "saved_model.pb"


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
def reading(source: Storage) -> Iterator[Archive]:
    """Opens a folder."""
    with source.reading_folder() as folder, contextlib.ExitStack() as resources:
        names = {path.name for path in folder.iterdir() if path.is_file()}
        missing = {CONFIG, WEIGHTS}.difference(names)
        if missing and not (missing == {WEIGHTS} and VALUES in names):
            if _SAVED_MODEL in names:
                raise FileFormatError(
                    f"`{source.name}` is a SavedModel of TensorFlow.\n"
                    f"Expected: `{CONFIG}` and `{WEIGHTS}`. Received: `{_SAVED_MODEL}`.\n"
                    "`tiedio migrate` makes a `.keras` file of it."
                )
            raise lacking(source.name, "a folder", missing, len(names))

        if (folder / METADATA).is_dir():
            raise damaged(source.name, f"a folder `{METADATA}`")

        def parsed(name: str) -> dict[str, object]:
            return parse(source.name, name, (folder / name).read_bytes())

        stored = WEIGHTS if WEIGHTS in names else VALUES
        file = resources.enter_context(open(folder / stored, "rb"))
        window = Window(file, 0, (folder / stored).stat().st_size)
        if npz.is_one(window):  # Keras writes them as `WEIGHTS` too
            window = resources.enter_context(npz.converted(window, source.name))
        weights = WeightsFile([window], source.name)
        resources.enter_context(contextlib.closing(weights))

        def extract_assets(below: Path) -> None:
            for path in (folder / ASSETS).rglob("*"):
                if path.is_file():
                    copy = below / path.relative_to(folder)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)

        metadata = parsed(METADATA) if METADATA in names else {}
        yield Archive(
            source.name,
            metadata.get(METADATA_KEY),
            parsed(CONFIG),
            weights,
            metadata,
            extract_assets=extract_assets,
        )
