"""A weights file by itself: `.weights.h5`, or a whole model as `.h5`.

Its record is the root dataset `tiedio`. A whole model has datasets named as the
members of a `.keras` archive are: `config.json`, and those below `assets/`.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from tiedio import hdf5
from tiedio.containers import ASSETS, CONFIG, Archive, Content, damaged, parse
from tiedio.errors import first_line
from tiedio.storage import Storage
from tiedio.streams import Window, WriteBehind
from tiedio.ties import METADATA_KEY
from tiedio.weights_file import WeightsFile


def write(target: Storage, content: Content, durable: bool, advance: hdf5.Advance) -> None:
    """Writes a weights file."""
    layout = content.layout
    if content.config is not None:
        layout.tensors[CONFIG] = _text(json.dumps(content.config).encode())
        for name, path in content.asset_files():
            layout.tensors[f"{ASSETS}/{name}"] = _bytes(path)
    with target.replacing(durable) as file, WriteBehind(file) as stream:
        hdf5.write(layout, stream, advance, lambda d: json.dumps(content.record_with(d)))


@contextlib.contextmanager
def reading(source: Storage) -> Iterator[Archive]:
    """Opens a weights file."""
    with source.reading() as file:
        size = file.seek(0, 2)
        with contextlib.closing(WeightsFile([Window(file, 0, size)], source.name)) as weights:
            record = weights.text(METADATA_KEY)
            config = weights.text(CONFIG)

            def extract_assets(folder: Path) -> None:
                for path in weights.below(ASSETS):
                    if ".." in PurePosixPath(path).parts:
                        raise damaged(source.name, f"an asset at `{path}`")
                    content = weights.read(path).tobytes()
                    try:
                        (folder / path).parent.mkdir(parents=True, exist_ok=True)
                        (folder / path).write_bytes(content)
                    except OSError as error:  # of a name that no file can have, say
                        raise damaged(source.name, first_line(error)) from error

            yield Archive(
                source.name,
                None if record is None else parse(source.name, METADATA_KEY, record),
                None if config is None else parse(source.name, CONFIG, config),
                weights,
                extract_assets=extract_assets,
            )


def _text(text: bytes) -> hdf5.Tensor:
    array = np.array(text)
    return hdf5.Tensor((), array.dtype, lambda: array)


def _bytes(path: Path) -> hdf5.Tensor:
    return hdf5.Tensor(
        (path.stat().st_size,), np.dtype(np.uint8), lambda: np.fromfile(path, np.uint8)
    )
