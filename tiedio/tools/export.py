"""Carry a file of Keras to safetensors and back.

Whose names tensors have there, and what is kept beside them to write the same file again, is
decided here:

    __metadata__   "decoder/kernel": "encoder/kernel"    for each alias, its owner
                   "tiedio": the rest of the file, as JSON
    encoder/kernel, ...                                  tensors by the names of variables
"""

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiedio.checkpoints import opening, rewriting
from tiedio.errors import FileFormatError, SaveError, damaged, explained, listed
from tiedio.formats import safetensors_file, table
from tiedio.formats.content import ASSETS, Content, put_asset
from tiedio.formats.hdf5_writer import Advance, Layout, Tensor
from tiedio.formats.safetensors_file import SUFFIX
from tiedio.record.json_fields import Written, parse
from tiedio.record.notebook import Reported
from tiedio.record.record import Record
from tiedio.record.report import Report
from tiedio.record.report import notes as noted
from tiedio.record.ties import METADATA_KEY, VERSION
from tiedio.storage.base import Storage
from tiedio.storage.locating import at
from tiedio.storage.progress import bar


@dataclasses.dataclass(frozen=True)
class Export(Written, Reported):
    """The outcome of an export.

    Attributes:
        filepath: The file.
        target: The file that was written.
        tensors: How many tensors.
        aliases: Variables that are tied to others, and to which.
        notes: Further notes.
    """

    filepath: str
    target: str
    tensors: int
    aliases: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def report(self) -> Report:
        told = f"Wrote {self.target}. Tensors: {self.tensors}; aliases: {len(self.aliases)}"
        return [told, *noted(self.notes)]


def export(
    filepath: Any,
    target: Any,
    overwrite: bool = False,
    durable: bool = True,
    *,
    progress: bool = False,
) -> Export:
    """Writes a file of Keras as safetensors, or the other way round what was so written.

    Args:
        filepath: A file that any version of Keras from 2.0 on wrote, or a `.safetensors` file.
        target: A path ending in `.safetensors`, or in that of a file of Keras.
        overwrite: Whether to replace what is at `target`.
        durable: Whether to wait until the file is on disk.
        progress: Whether to show a progress bar, by bytes.

    Returns:
        How many tensors were written, and which variables are tied to others.

    Raises:
        ArgumentError: If something else is passed than paths, URLs or open files.
        MissingFileError: If there is no such file.
        FileFormatError: If it is not what its name says, or damaged.
        SaveError: If `target` exists, or cannot hold what the file has.
        MissingPackageError: If safetensors, which reads its files, is not installed.

    Example:

    >>> import keras, tiedio
    >>> from tiedio.files import export
    >>> encoder, decoder = (keras.layers.Dense(4, name=name) for name in ("encoder", "decoder"))
    >>> model = keras.Sequential([keras.Input((4,)), encoder, decoder])
    >>> _ = tiedio.tie(decoder, to=encoder, weights=("kernel",))
    >>> tiedio.save_tied(model, "model.keras")
    >>> export("model.keras", "model.safetensors").aliases
    {'decoder/kernel': 'encoder/kernel'}
    >>> _ = export("model.safetensors", "back.keras")
    >>> back = tiedio.load_tied("back.keras")
    >>> back.layers[0].kernel is back.layers[1].kernel
    True
    """
    source, destination = at(filepath), at(target)
    ways = [one.name.endswith(SUFFIX) for one in (source, destination)]
    if ways[0] == ways[1]:
        raise SaveError(
            f"Cannot export `{source.name}` to `{destination.name}`.\n"
            f"Expected: one path ending in `{SUFFIX}`. Received: {'two' if ways[0] else 'none'}.\n"
            "Change an ending; `tiedio migrate` writes files of Keras from others."
        )
    if not overwrite:
        destination.check_free(SaveError)
    with bar(f"Writing {destination.label}", progress) as advance:
        if ways[1]:
            return _export(filepath, destination, durable, advance)
        return _import(source, destination, durable, advance)


def _export(filepath: Any, target: Storage, durable: bool, advance: Advance) -> Export:
    with opening.reading(filepath) as checkpoint, tempfile.TemporaryDirectory() as assets:
        checkpoint.verify()
        content, notes = rewriting.content(
            checkpoint,
            checkpoint.ties,
            reconcile="owner",
            holds_model=checkpoint.is_model,
            assets=Path(assets),
        )
        layout = content.layout
        names = {rewriting.target_path(checkpoint, one): one.name for one in checkpoint.variables}
        keys = {path: names.get(path, path) for path in layout.tensors}
        tensors = {keys[path]: tensor for path, tensor in layout.tensors.items()}
        aliases = {
            names[path]: keys[first]
            for path, first in layout.links.items()
            if path in names and first in keys
        }
        notes += (
            f"{' = '.join(tie.names)} is among no aliases, which are equal to their owners."
            for tie in checkpoint.transposed_ties
        )
        rest = {}
        if checkpoint.is_by_position:
            notes = [*notes, "It does not tell how Keras 3 would store it: there is no way back."]
        else:
            assets_by_key = {f"{ASSETS}/{name}": name for name, _ in content.asset_files()}
            tensors |= {
                f"{ASSETS}/{name}": Tensor.of_file(path) for name, path in content.asset_files()
            }
            rest[METADATA_KEY] = json.dumps(
                {
                    "version": VERSION,
                    "tensors": {key: path for path, key in keys.items()},
                    "links": layout.links,
                    "groups": layout.groups,
                    "assets": assets_by_key,
                    "record": content.record_with({}),
                    "metadata": content.metadata,
                    "config": content.config,
                },
                default=lambda attribute: attribute.tolist(),  # of NumPy, as HDF5 has them
            )
        safetensors_file.write(
            target, tensors, {**aliases, **rest}, durable=durable, advance=advance
        )
        return Export(
            filepath=checkpoint.filepath,
            target=target.name,
            tensors=len(tensors),
            aliases=aliases,
            notes=tuple(notes),
        )


def _import(source: Storage, target: Storage, durable: bool, advance: Advance) -> Export:
    with safetensors_file.reading(source) as file, tempfile.TemporaryDirectory() as folder:
        content, aliases = _content(source, file, Path(folder))
        holds_model = not target.name.endswith(table.WEIGHTS_SUFFIXES)
        container = table.format_to_save(target, holds_model)
        if holds_model and (content.config is None or container.has_old_layout):
            raise SaveError(
                f"`{source.name}` cannot be written as a model to `{target.name}`.\n"
                f"Expected: a path ending in `.keras`, and a model. Received: "
                f"{'weights only' if content.config is None else target.label}.\n"
                "Change the ending: to `.weights.h5` for weights."
            )
        content = content if holds_model else dataclasses.replace(content, config=None)
        with explained(source.name, ValueError, TypeError, RuntimeError, KeyError):  # of paths, say
            container.write(target, content, durable, advance)
        return Export(source.name, target.name, len(content.layout.tensors), aliases)


def _content(source: Storage, file: Any, folder: Path) -> tuple[Content, dict[str, str]]:
    """Reads what was kept beside the tensors; these are read when they are written."""
    metadata = file.metadata() or {}
    if METADATA_KEY not in metadata:
        raise FileFormatError(
            f"`{source.name}` does not say where its tensors belong.\n"
            f"Expected: `{METADATA_KEY}` in its metadata. Received: {listed(metadata) or 'none'}.\n"
            "Only what `tiedio export` wrote of a whole model, or of weights, can come back."
        )
    rest = parse(source.name, METADATA_KEY, metadata.pop(METADATA_KEY))
    if rest.get("version") != VERSION:
        raise damaged(source.name, f"version {rest.get('version')!r} of its metadata")
    stored = set(file.keys())
    paths, assets = (_names(source, rest, name) for name in ("tensors", "assets"))
    if lost := [key for key in (*paths, *assets) if key not in stored]:
        raise damaged(source.name, f"no {listed(lost)}")
    tensors = {path: safetensors_file.tensor(source, file, key) for key, path in paths.items()}
    for key, name in assets.items():
        put_asset(
            source.name, folder, name, [safetensors_file.tensor(source, file, key).read().tobytes()]
        )
    groups, kept = (_typed(source, rest, name, dict) for name in ("groups", "metadata"))
    config = None if rest.get("config") is None else _typed(source, rest, "config", dict)
    for path in groups:
        _typed(source, groups, path, dict)
    layout = Layout(groups, tensors, _names(source, rest, "links"))
    record = Record.from_json(rest.get("record"))
    return Content(layout, record, kept, config, assets=folder), metadata


def _names(source: Storage, rest: Mapping[str, Any], name: str) -> dict[str, str]:
    names = _typed(source, rest, name, dict)
    return {key: _typed(source, names, key, str) for key in names}


def _typed(source: Storage, held: Mapping[str, Any], name: str, kind: type) -> Any:
    if not isinstance(held.get(name), kind):
        raise damaged(source.name, f"`{name[:99]}` that is no {kind.__name__}")
    return held[name]
