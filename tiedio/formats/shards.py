"""Weights in several files, and the `.weights.json` that says what is in which.

A link cannot lead into another file, so a second path of a tensor is in the shard
of the first. Shards of one save have a token in their names: the old set stays
whole until the JSON, written last, takes the place of the old one. Only the first
may be `_00000`, which Keras opens before it asks for any other, if there is none yet.
"""

import collections
import contextlib
import json
import posixpath
import re
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

from tiedio.errors import FileFormatError, MissingFileError, SaveError, damaged, listed
from tiedio.formats import foreign, hdf5_writer
from tiedio.formats.content import SAVE, Content, Opened
from tiedio.formats.hdf5_reader import WeightsFile
from tiedio.record.json_fields import parse
from tiedio.record.ties import METADATA_KEY
from tiedio.storage.base import Storage
from tiedio.storage.shelf import Shelf
from tiedio.storage.streams import WriteBehind

_SUFFIX = ".weights.json"


def write(target: Storage, content: Content, durable: bool, advance: hdf5_writer.Advance) -> None:
    """Writes the shards, then the JSON."""
    parts = _split(content.layout, content.shard_bytes, target.name)
    save = secrets.token_hex(4)
    base = target.label.removesuffix(_SUFFIX)
    names = [f"{base}_{save}_{number:05}.weights.h5" for number in range(len(parts))]
    first = f"{base}_00000.weights.h5"
    old = _old_shards(target)
    total = sum(tensor.nbytes for tensor in content.layout.tensors.values())
    digests: dict[str, str] = {}
    try:
        # The JSON is begun first: until it is complete, others see that a save is under way.
        with target.replacing(durable) as file:
            for name, part in zip(names, parts, strict=True):
                part.groups.setdefault("", {})[SAVE] = save
                digests |= _write_shard(
                    target.sibling(name), part, durable, lambda count, _: advance(count, total)
                )
            # Of several, Keras 3.10 would not go back to this one.
            if len(names) == 1 and target.sibling(names[0]).rename(first, durable):
                names[0] = first
            elif not target.sibling(first).exists():
                _write_shard(target.sibling(first), hdf5_writer.Layout(), durable)
            metadata = content.metadata_with(digests)
            metadata[METADATA_KEY][SAVE] = save
            written = {
                "metadata": {"total_size": total, **metadata},
                "weight_map": _weight_map(names, parts),
            }
            file.write(json.dumps(written, indent=4).encode())
    except BaseException:
        # But not if the JSON is in place, and only flushing failed.
        failed = set(names).difference(_old_shards(target))
        _remove(target, failed)
        if first in failed and target.exists():  # somebody else has saved meanwhile
            _write_shard(target.sibling(first), hdf5_writer.Layout(), durable)
        raise
    # Those of the set before, and of saves that were killed, if nobody is writing more; no file
    # of another name, whatever the old JSON said, and none that a copy of it refers to.
    shard = re.compile(re.escape(base) + r"(_[0-9a-f]{8})?_\d{5}\.weights\.h5")
    beside = target.siblings()
    old = set(filter(shard.fullmatch, old))
    if not target.is_being_saved():
        old |= {name for name in beside if (found := shard.fullmatch(name)) and found[1]}
    for one in beside:
        if one.endswith(_SUFFIX):
            old -= _old_shards(target.sibling(one))
    _remove(target, old.difference([first]))
    if first in old:
        _write_shard(target.sibling(first), hdf5_writer.Layout(), durable)


def _write_shard(
    shard: Storage,
    layout: hdf5_writer.Layout,
    durable: bool,
    advance: hdf5_writer.Advance = hdf5_writer.untold,
) -> dict[str, str]:
    with shard.replacing(durable) as file, WriteBehind(file) as stream:
        return hdf5_writer.write(layout, stream, advance)


def _remove(target: Storage, names: Iterable[str]) -> None:
    for name in names:
        with contextlib.suppress(OSError):
            target.sibling(name).remove()


def _split(layout: hdf5_writer.Layout, largest: float, filepath: str) -> list[hdf5_writer.Layout]:
    """Divides a layout into those of shards, none of which has more bytes than `largest`."""
    too_large = {path for path, tensor in layout.tensors.items() if tensor.nbytes > largest}
    if too_large:
        raise SaveError(
            f"Cannot save {listed(too_large)} to `{filepath}`: larger than a shard may be.\n"
            f"Expected: at most {largest:.0f} bytes. Received: "
            f"{max(layout.tensors[path].nbytes for path in too_large)} bytes.\n"
            "Pass a larger `max_shard_size`."
        )
    parts = [hdf5_writer.Layout()]
    size, shard_of = 0, {}
    for path, tensor in layout.tensors.items():
        size += tensor.nbytes
        if size > largest:
            parts.append(hdf5_writer.Layout())
            size = tensor.nbytes
        parts[-1].tensors[path] = tensor
        shard_of[path] = parts[-1]
    for path, first in layout.links.items():
        for part in parts:
            if shard_of.get(first) is part or any(_below(first, one) for one in _paths(part)):
                part.links[path] = first
    for path, attributes in layout.groups.items():
        holding = [part for part in parts if any(_below(path, one) for one in _paths(part))]
        for part in holding or parts[:1]:
            part.groups[path] = dict(attributes)
    return parts


def _paths(part: hdf5_writer.Layout) -> list[str]:
    """Lists the paths of all tensors in a shard, those in linked groups included."""
    paths = list(part.tensors)
    for path, first in part.links.items():
        if first in part.tensors:
            paths.append(path)
        else:
            paths += [path + one.removeprefix(first) for one in paths if _below(first, one)]
    return paths


def _below(group: str, path: str) -> bool:
    return path.startswith(f"{group}/".lstrip("/"))


def _weight_map(names: list[str], parts: list[hdf5_writer.Layout]) -> dict[str, str | list[str]]:
    """Says for each group which shards hold tensors of it, as Keras does."""
    shards: dict[str, dict[str, None]] = collections.defaultdict(dict)
    for name, part in zip(names, parts, strict=True):
        for path in _paths(part):
            shards[f"/{posixpath.dirname(path)}"][name] = None
    return {
        group: next(iter(held)) if len(held) == 1 else list(held) for group, held in shards.items()
    }


def _old_shards(target: Storage) -> set[str]:
    """Names the shards of what is there now; none if it cannot be read."""
    try:
        with target.reading() as file:
            return set(_shard_names(json.loads(file.read())["weight_map"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()


def _shard_names(weight_map: Any) -> list[str]:
    names: dict[str, None] = {}
    for held in weight_map.values():
        for name in held if isinstance(held, list) else [held]:
            if re.search(r"[/\\:\0]", name) or name in ("", ".", ".."):
                raise ValueError(f"a shard {name!r} in another folder")
            names[name] = None
    return list(names)


@contextlib.contextmanager
def reading(source: Storage) -> Iterator[Opened]:
    """Opens the JSON, and all shards: again, if a save has replaced them meanwhile.

    Raises:
        MissingFileError: If shards are missing; all are named.
        FileFormatError: If shards are of another save; all are named.
    """
    while True:
        text = _text(source)
        with contextlib.ExitStack() as resources:
            opened: Opened | MissingFileError | FileFormatError
            try:
                opened = _opened(source, text, resources)
            except (MissingFileError, FileFormatError) as error:
                opened = error
            if _text(source) != text:
                continue
            if isinstance(opened, Exception):
                raise opened
            yield opened
            return


def _text(source: Storage) -> bytes:
    with source.reading() as file:
        return file.read()


def _opened(source: Storage, text: bytes, resources: contextlib.ExitStack) -> Opened:
    """Opens the shards that the text of a JSON names."""
    content = parse(source.name, source.label, text)
    if error := foreign.of_json(source.name, content):
        raise error
    try:
        names = _shard_names(content["weight_map"])
        metadata = dict(content.get("metadata", {}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(source.name, f"no map of weights ({error})") from error
    windows, missing = [], set()
    shelf = resources.enter_context(contextlib.closing(Shelf()))
    for name in names:
        try:
            windows.append(shelf.file(source.sibling(name)))
        except MissingFileError:
            missing.add(name)
    if missing:
        raise MissingFileError(
            f"`{source.name}` lacks {listed(missing)}.\n"
            f"Expected: {len(names)} shards beside it. Received: {len(windows)}.\n"
            "Copy all shards of one save together, or save again."
        )
    if not windows:
        raise damaged(source.name, "no shards")
    weights = resources.enter_context(contextlib.closing(WeightsFile(windows, source.name)))
    record = metadata.get(METADATA_KEY)
    if isinstance(record, dict) and (save := record.get(SAVE)):
        found = weights.attributes("", SAVE)
        if others := [name for name, of in zip(names, found, strict=True) if of != save]:
            raise damaged(source.name, f"shards of another save, {listed(others)}")
    return Opened(
        filepath=source.name, record=record, config=None, weights=weights, metadata=metadata
    )
