"""Read and write the HDF5 layout of Keras 2, which Keras 3 still writes.

    @model_config @training_config @keras_version @backend    of a whole model only
    model_weights/ @layer_names                               of weights only: the root itself
        <layer>/ @weight_names, and a dataset below each name
        top_level_model_weights/ @weight_names
    optimizer_weights/ @weight_names

Whoever reads it goes by the order in the lists of names; the names mean nothing.
"""

import itertools
import json
import math
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tiedio.errors import RESTORE, FileFormatError, damaged, listed
from tiedio.formats import hdf5_writer
from tiedio.formats.content import OldLayout, Weight
from tiedio.formats.hdf5_reader import WeightsFile
from tiedio.record.json_fields import parse

_LAYERS = "model_weights"
_TOP_LEVEL = "top_level_model_weights"
_OPTIMIZER = "optimizer_weights"

# HDF5 keeps attributes among 64 KiB of other things: a longer list is split.
_LONGEST_LIST = 64512  # bytes


def write(old: OldLayout, layout: hdf5_writer.Layout) -> None:
    """Adds this layout to that of a file which has the tensors already."""
    root = layout.groups.setdefault("", {})
    root.update(keras_version=old.keras_version, backend=old.backend)
    for name in ("model_config", "training_config"):
        if (config := getattr(old, name)) is not None:
            root[name] = json.dumps(config).encode()
    parent = "" if old.model_config is None else _LAYERS
    layout.groups.setdefault(parent, {}).update(
        **_split("layer_names", list(old.layers)),
        backend=old.backend.encode(),
        keras_version=old.keras_version.encode(),
    )
    groups = {**old.layers, _TOP_LEVEL: old.top_level or ()}
    lists = {posixpath.join(parent, name): weights for name, weights in groups.items()}
    if old.optimizer:
        lists[_OPTIMIZER] = old.optimizer
    for group_path, weights in lists.items():
        names = list(_made_unique(weight.name for weight in weights))
        layout.groups[group_path] = _split("weight_names", names)
        for name, weight in zip(names, weights, strict=True):
            if (path := f"{group_path}/{name}") != weight.dataset_path:
                layout.links[path] = weight.dataset_path


def read(weights: WeightsFile) -> OldLayout | None:
    """Reads what a file says, if it is in this layout; tensors are not read.

    Raises:
        FileFormatError: If it contradicts itself, or lacks what it names. All is named.
    """
    parent = "" if _listed(weights, "", "layer_names") is not None else _LAYERS
    layer_names = _listed(weights, parent, "layer_names")
    if layer_names is None:
        return None
    missing: list[str] = []

    def stored(group_path: str) -> tuple[Weight, ...]:
        return tuple(_weights(weights, group_path, missing))

    def written_by(name: str) -> str:
        told = weights.attribute(parent, name)
        if told is None:  # Keras 1 says it of the file only
            told = weights.attribute("", name)
        return "" if told is None else _text(weights, name, told)

    if len(set(layer_names)) < len(layer_names):
        raise damaged(weights.filepath, f"`layer_names` with a name twice: {listed(layer_names)}")
    old = OldLayout(
        filepath=weights.filepath,
        model_config=_config(weights, "model_config"),
        training_config=_config(weights, "training_config"),
        keras_version=written_by("keras_version"),
        backend=written_by("backend"),
        layers={name: stored(posixpath.join(parent, name)) for name in layer_names},
        top_level=stored(posixpath.join(parent, _TOP_LEVEL))
        if _TOP_LEVEL in weights.names(parent)
        else None,
        optimizer=stored(_OPTIMIZER) if _OPTIMIZER in weights.names("") else (),
    )
    if missing:
        raise FileFormatError(
            f"`{weights.filepath}` lacks {listed(missing)}.\n"
            "Expected: whatever its lists of names mention. Received: no such thing.\n"
            f"{RESTORE}"
        )
    return old


def _weights(weights: WeightsFile, group_path: str, missing: list[str]) -> Iterator[Weight]:
    names = _listed(weights, group_path, "weight_names")
    if names is None:
        missing.append(f"{group_path}/@weight_names")
    for name in names or ():
        dataset_path = f"{group_path}/{name}"
        try:
            yield Weight(name, dataset_path, weights.shape(dataset_path))
        except KeyError:
            missing.append(dataset_path)


def _config(weights: WeightsFile, name: str) -> dict[str, Any] | None:
    config = weights.attribute("", name)
    return None if config is None else parse(weights.filepath, name, _text(weights, name, config))


def _text(weights: WeightsFile, name: str, value: Any) -> str:
    """Returns a text, which some versions store as bytes."""
    try:
        value = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise damaged(weights.filepath, f"`{name}` that is no text") from error
    if not isinstance(value, str):
        raise damaged(weights.filepath, f"`{name}` of type {type(value).__name__}")
    return value


def _listed(weights: WeightsFile, group_path: str, name: str) -> list[str] | None:
    """Returns a list of names, in one attribute or in parts; `None` if there is none."""
    parts = {name: weights.attribute(group_path, name)}
    if parts[name] is None:
        numbered = (f"{name}{number}" for number in itertools.count())
        found = ((part, weights.attribute(group_path, part)) for part in numbered)
        parts = dict(itertools.takewhile(lambda one: one[1] is not None, found))
    names = []
    for part, values in parts.items():
        if not isinstance(values, np.ndarray) or values.ndim != 1:
            raise damaged(weights.filepath, f"`{part}` at `{group_path}` that is no list")
        names += [_text(weights, part, value) for value in values.tolist()]
    return names if parts else None


def _split(name: str, names: Sequence[str]) -> dict[str, Any]:
    """Makes attributes of a list, as many as it takes."""
    whole = np.array([one.encode() for one in names])
    in_one = max(1, _LONGEST_LIST // whole.itemsize)
    if len(names) <= in_one:
        return {name: whole}
    parts = np.array_split(whole, math.ceil(len(names) / in_one))
    return {f"{name}{number}": part for number, part in enumerate(parts)}


def _made_unique(names: Iterable[str]) -> Iterator[str]:
    """Numbers names that HDF5 would take for one, or for a group and what is in it."""
    taken: set[str] = set()  # names, and the groups that they make
    leaves: set[str] = set()
    for name in names:
        unique, number = name, 0
        while unique in taken or leaves & set(_parents(unique)):
            number += 1
            unique = f"{name.replace('/', '_')}_{number}"
        leaves.add(unique)
        taken.update((unique, *_parents(unique)))
        yield unique


def _parents(path: str) -> Iterator[str]:
    while path := posixpath.dirname(path):
        yield path
