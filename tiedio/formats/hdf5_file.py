"""A weights file by itself: `.weights.h5`, or a whole model as `.h5`.

Its record is the dataset `tiedio/record`. A whole model has datasets named as the
members of a `.keras` archive are: `config.json`, and those below `assets/`. The
layout of Keras 2, in which Keras reads it, is made of links to the same tensors.
"""

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tiedio.formats import foreign, hdf5_writer, keras2_layout
from tiedio.formats.content import ASSETS, CONFIG, Content, Opened, put_asset
from tiedio.formats.hdf5_reader import WeightsFile
from tiedio.formats.hdf5_writer import RECORD
from tiedio.record.json_fields import parse
from tiedio.record.ties import METADATA_KEY
from tiedio.storage.base import Storage
from tiedio.storage.streams import Window, WriteBehind


def write(target: Storage, content: Content, durable: bool, advance: hdf5_writer.Advance) -> None:
    """Writes a weights file."""
    layout = content.layout
    if content.config is not None:
        layout.tensors[CONFIG] = hdf5_writer.Tensor.of(
            np.array(json.dumps(content.config).encode())
        )
        for name, path in content.asset_files():
            layout.tensors[f"{ASSETS}/{name}"] = hdf5_writer.Tensor.of_file(path)
    own = {*layout.tensors, *layout.links}
    if content.old_layout:
        keras2_layout.write(content.old_layout, layout)

    def record(digests: dict[str, str]) -> str:
        # Once is enough: not for their other paths in the old layout.
        recorded = {path: digest for path, digest in digests.items() if path in own}
        return json.dumps(content.record_with(recorded))

    with target.replacing(durable) as file, WriteBehind(file) as stream:
        hdf5_writer.write(layout, stream, advance, record)


@contextlib.contextmanager
def reading(source: Storage) -> Iterator[Opened]:
    """Opens a weights file."""
    with source.reading() as file:
        size = file.seek(0, 2)
        with contextlib.closing(WeightsFile([Window(file, 0, size)], source.name)) as weights:
            # At first it was a dataset at the root.
            recorded = METADATA_KEY if weights.address(METADATA_KEY) else RECORD
            record, config = (_json_at(path, weights) for path in (recorded, CONFIG))

            version = weights.attribute("", "keras_version")  # of a whole model only

            def extract_assets(folder: Path) -> None:
                for path in weights.below(ASSETS):
                    put_asset(source.name, folder, path, [weights.read(path).tobytes()])

            opened = Opened(
                filepath=source.name,
                record=record,
                config=config,
                weights=weights,
                metadata={"keras_version": version} if isinstance(version, str) else {},
                extract_assets=extract_assets,
                read_lists=functools.partial(keras2_layout.read, weights),
            )
            if config is None:
                opened.go_by_lists()
            if not (config or record or opened.old_layout) and (names := _of_others(weights)):
                raise foreign.of_hdf5(source.name, names)
            yield opened


def _of_others(weights: WeightsFile) -> list[str]:
    """Lists the names at the root of a file that has data, and none as Keras keeps variables."""
    has_data = False
    for path, _ in weights.walk():
        if "vars" in path.split("/"):
            return []
        has_data = has_data or weights.address(path) is not None
    return weights.names("") if has_data else []


def _json_at(path: str, weights: WeightsFile) -> dict[str, Any] | None:
    text = weights.text(path)
    return None if text is None else parse(weights.filepath, path, text)
