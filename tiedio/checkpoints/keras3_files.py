"""See a file in the layout of Keras 3 as a checkpoint: it stores variables by number.

Keras 2.12 began it, and called some of its groups otherwise.
"""

import collections
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tiedio.checkpoints.checkpoint import Checkpoint
from tiedio.checkpoints.variables import StoredVariable, named_once
from tiedio.formats.content import Opened, Weight
from tiedio.formats.hdf5_reader import WeightsFile
from tiedio.keras_versions import layer_outline, optimizer_slots
from tiedio.keras_versions.config_translation import Translated
from tiedio.keras_versions.keras_version import KerasVersion
from tiedio.keras_versions.layer_outline import Part
from tiedio.record.ties import Place

_OPTIMIZER = "optimizer"
_VARIABLES = re.compile(r"((?P<inner_path>.*)/)?vars/(?P<key>0|[1-9][0-9]{0,8})")
# Paths of what belongs to no layer, and of what Keras 3 does not read.
_NO_LAYERS = re.compile(r"metrics/|(.*/)?(optimizer|exact)/")
_NOT_FOR_KERAS_3 = re.compile(r"(assets|config\.json|tiedio|(model|optimizer)_weights)(/|$)")

# What `layers` was called in Keras 2.12 and 2.13.
_DEPENDENCIES = "_layer_checkpoint_dependencies"


def described(opened: Opened, translated: Translated, kind: str) -> Checkpoint:
    """Describes a file.

    Args:
        opened: The file.
        translated: The config of its model.
        kind: What it is, in words.
    """
    weights = opened.weights
    version = opened.keras_version
    objects = {path: first for path, first in weights.walk() if not _NOT_FOR_KERAS_3.match(path)}
    renamed = _renamed(weights, objects)
    layers = layer_outline.layers(translated.config)
    parts = {part.inner_path: part for held in layers.values() for part in held}
    record = opened.read_record(verify=False)
    optimizers = tuple(f"{path}/" for path in (record.optimizer_variables if record else ()))
    paths = (one for one in objects if weights.address(one) and not one.startswith(optimizers))
    variables = _variables(weights, parts, paths, renamed)
    is_ordered = all(one.place and one.place.inner_path in parts for one in variables)
    optimizer = optimizer_slots.of_model(translated.config)
    of_layers = {one.source for one in variables}
    groups = {path: first for path, first in objects.items() if not weights.address(path)}
    # Keras 3 does not store the running values of metrics, as Keras 2 does.
    left_out = () if KerasVersion(version).is_of_keras_3 else ("metrics/",)
    return Checkpoint(
        filepath=opened.filepath,
        kind=kind,
        keras_version=version,
        tensors=weights,
        variables=variables,
        is_ordered=is_ordered,
        slots=_slots(weights, optimizer, version),
        translated=translated,
        record=record,
        metadata=dict(opened.metadata),
        others={
            renamed[path]: path
            for path in objects
            if path not in groups and path not in of_layers and not path.startswith(left_out)
        },
        groups={
            renamed[path]: {"name": name} if (name := weights.attribute(path, "name")) else {}
            for path, first in groups.items()
            if path == first
        },
        links={path: first for path, first in groups.items() if path != first},
        extract_assets=opened.extract_assets,
    )


def _variables(
    weights: WeightsFile,
    parts: Mapping[str, Part],
    paths: Iterator[str],
    renamed: Mapping[str, str],
) -> list[StoredVariable]:
    """Lists the variables of layers, in the order of the model where its config tells."""
    rank = {inner_path: number for number, inner_path in enumerate(parts)}
    stored = collections.defaultdict(dict)
    for path in paths:
        found = _VARIABLES.fullmatch(renamed[path])
        if found and not _NO_LAYERS.match(path):
            stored[found["inner_path"] or ""][int(found["key"])] = path
    variables = []
    for inner_path in sorted(stored, key=lambda one: rank.get(one, len(rank))):
        held = stored[inner_path]
        part = parts.get(inner_path)
        names = part.variables if part and len(part.variables or ()) == len(held) else None
        layer = part.name if part else _name(inner_path, parts, weights)
        for key, path in sorted(held.items()):
            name = names[key] if names and key < len(names) else str(key)
            variables.append(
                StoredVariable.of(
                    Weight("", path, weights.shape(path)),
                    weights,
                    f"{layer}/{name}".lstrip("/"),
                    place=Place(inner_path, str(key), f"{inner_path}/vars/{key}".lstrip("/")),
                    trainable=name in part.trainable if part and names else None,
                )
            )
    return list(named_once(variables))


def _name(inner_path: str, parts: Mapping[str, Part], weights: WeightsFile) -> str:
    """Names a layer that no config tells of, by what Keras 3.6 and later note in the file."""
    names: list[str] = []
    above = ""
    for component in inner_path.split("/"):
        above = f"{above}/{component}".lstrip("/")
        noted = weights.attribute(f"{above}/vars", "name")
        if above in parts:
            names = [parts[above].name]
        elif component != "layers":
            names.append(noted if isinstance(noted, str) else component)
    return "/".join(names)


def _slots(
    weights: WeightsFile, optimizer: Mapping[str, Any] | None, version: str
) -> optimizer_slots.Slots | None:
    if optimizer is None:
        return None
    store = weights.store(_OPTIMIZER)
    paths = [f"{_OPTIMIZER}/vars/{number}" for number in range(len(store))]
    try:
        stored = [Weight("", path, weights.shape(path)) for path in paths]
    except KeyError:  # an optimizer that stores in a way of its own
        return None
    return optimizer_slots.read(optimizer, stored, version or _told_version(optimizer, stored))


def _told_version(optimizer: Mapping[str, Any], stored: list[Weight]) -> str:
    """Tells the version of a file of weights by how its optimizer stores, as far as it matters.

    Keras 3 has the learning rate in second place; in 3.10 it moved what is beside the slots.
    """
    options = optimizer.get("config")
    sides = ("use_ema", "gradient_accumulation_steps")
    if not isinstance(options, Mapping) or any(options.get(one) for one in sides):
        return ""
    return "3.10" if len(stored) > 1 and stored[1].shape == () else "2.15"


def _renamed(weights: WeightsFile, paths: Iterable[str]) -> dict[str, str]:
    """Maps paths, what is inside a group after it, to where Keras 3 would have what is there."""
    renamed: dict[str, str] = {}
    numbered: dict[str, dict[str, str]] = {}
    for path in paths:
        parent, _, name = path.rpartition("/")
        if name == _DEPENDENCIES:
            name = "layers"
        elif parent.rpartition("/")[2] == _DEPENDENCIES:
            if parent not in numbered:
                numbered[parent] = _numbered_anew(weights.names(parent))
            name = numbered[parent][name]
        renamed[path] = f"{renamed[parent]}/{name}".lstrip("/") if path else ""
    return renamed


def _numbered_anew(names: list[str]) -> dict[str, str]:
    """Numbers the layers of each class without gaps: what has weights was counted twice."""
    counts = collections.Counter[str]()
    found = {}
    for name in sorted(names, key=lambda one: (len(one), one)):
        kind = re.sub(r"_\d+$", "", name)
        found[name] = f"{kind}_{counts[kind]}" if counts[kind] else kind
        counts[kind] += 1
    return found
