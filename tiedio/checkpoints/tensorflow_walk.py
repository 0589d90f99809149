"""See what TensorFlow saves, a checkpoint of objects or a SavedModel, as a checkpoint.

A variable that layers share is stored once, and is one node of the graph of objects, to which
each of them leads: nothing has to be guessed. What the walk over that graph goes by is in the
constants below, which may be added to.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tiedio.checkpoints import tensorflow_files
from tiedio.checkpoints.checkpoint import Checkpoint
from tiedio.checkpoints.stated_ties import Evidence, stored_once
from tiedio.checkpoints.tensorflow_files import ITERATIONS, LAYER, Graph, Metadata, Tensors
from tiedio.checkpoints.variables import StoredVariable, named_once
from tiedio.errors import listed
from tiedio.formats.content import Weight
from tiedio.formats.tensorflow_paths import Found
from tiedio.keras_versions import config_translation, layer_outline, optimizer_slots
from tiedio.keras_versions.layer_outline import Part
from tiedio.record.ties import Place

# Attributes are called otherwise than in Keras 3 by what stands before.
_PREFIXES = ("", "_", "depthwise_", "adapt_")
# A network leads to its layers by number, to those with weights twice.
_NUMBERED = re.compile(r"layer(_with_weights)?-\d+")
_LISTS = ("layers", "cells")
# Attributes that are no parts of a layer, or lead to its parts or variables again.
_NO_PARTS = re.compile(
    "keras_api|signatures|root|_?layers|(layer_)?(metrics|regularization_losses)|"
    "_?(non_)?(trainable_)?(variables|weights)|_self_.*"
)
_MODELS = ("_tf_keras_model", "_tf_keras_network", "_tf_keras_sequential")
_METRIC = "_tf_keras_metric"


def described(
    found: Found, given: Mapping[str, Any] | None, functions: Mapping[str, str] | None = None
) -> Checkpoint:
    """Describes a checkpoint, or a SavedModel.

    Args:
        found: Where it is.
        given: The config of its model, if it has none.
        functions: What takes the place of functions in it, as `lambdas.replace` has it.

    Raises:
        MissingPackageError: If TensorFlow is not installed.
        FileFormatError: If it is damaged, or holds no graph of objects.
    """
    tensors = Tensors(found)
    graph = Graph(tensors)
    metadata = tensorflow_files.metadata(found)
    kept = next((one.content for one in metadata.values() if one.kind in _MODELS), {})
    own, training = kept.get("model_config"), kept.get("training_config") or {}
    version = str(kept.get("keras_version", ""))
    translated = config_translation.translated(own or given or {}, training, version, functions)
    held = layer_outline.layers(translated.config)
    parts = [part for several in held.values() for part in several]
    variables = list(named_once(_Walk(graph, tensors, metadata).variables(parts)))
    optimizer = training.get("optimizer_config")
    notes = []
    if graph.left_out:
        notes.append(f"Left out, as they are no numbers: {listed(graph.left_out)}.")
    if graph.optimizer is not None and not optimizer:
        notes.append("The state of the optimizer is left out: nothing says which one it was.")
    why = "they are one node of the object graph"  # which is stored under one key
    title = "SavedModel" if found.folder else "TensorFlow checkpoint"
    return Checkpoint(
        filepath=found.name,
        kind=f"{title} of a whole model" if own else f"{title} of weights only",
        keras_version=version,
        tensors=tensors,
        variables=variables,
        is_ordered=all(one.place for one in variables),
        layout_ties=list(stored_once(variables, tensors, Evidence.GRAPH, why)),
        slots=_slots(graph, tensors, variables, optimizer, version=version),
        translated=translated,
        left_out=notes,
        is_of_keras=found.folder is None or bool(metadata),
        groups={f"{part.inner_path}/vars": {"name": part.layer} for part in parts},
    )


class _Walk:
    """Finds the variables of a model: of the layers in its config, then of the others."""

    def __init__(self, graph: Graph, tensors: Tensors, metadata: Mapping[int, Metadata]):
        self._graph = graph
        self._tensors = tensors
        self._names = {node: str(one.content.get("name", "")) for node, one in metadata.items()}
        self._seen: set[int | None] = {graph.optimizer}
        self._seen.update(node for node, one in metadata.items() if one.kind == _METRIC)
        told = graph.child(graph.model, "trainable_variables")
        self._trained = None if told is None else set(graph.nodes[told].children.values())
        self._uses = collections.Counter(
            child
            for one in graph.nodes
            if not all(map(str.isdecimal, one.children))  # not a list
            for child in set(one.children.values())
        )

    def variables(self, parts: Iterable[Part]) -> Iterator[StoredVariable]:
        known = {part.inner_path: part for part in parts}
        for inner_path, node in _located(self._graph, known).items():
            yield from self._of_part(known[inner_path], node)
        # Other objects in a checkpoint, such as a count of steps, do not belong to the model.
        yield from self._below(self._graph.model if known else 0, ())

    def _of_part(self, part: Part, node: int) -> Iterator[StoredVariable]:
        """Yields the variables of a layer in the config."""
        own = self._graph.variables(node)
        if part.variables is not None:
            found = {
                name: self._graph.child(node, *(prefix + name for prefix in _PREFIXES))
                for name in part.variables
            }
            own = {name: child for name, child in found.items() if child and child in own.values()}
            if len(own) < len(found):
                return  # another layer than the config says: found with the others
        self._seen.add(node)
        for number, (name, child) in enumerate(own.items()):
            path = f"{part.inner_path}/vars/{number}"
            trainable = None if part.variables is None else name in part.trainable
            place = Place(part.inner_path, str(number), path)
            yield self._stored(f"{part.name}/{name}", child, place, trainable)
        for name, child in self._parts(node) if part.variables is None else ():
            yield from self._below(child, (part.name, name))

    def _below(self, node: int, names: tuple[str, ...]) -> Iterator[StoredVariable]:
        """Yields the variables of objects that only the graph knows."""
        if node in self._seen:
            return
        self._seen.add(node)
        for name, child in self._graph.variables(node).items():
            yield self._stored("/".join((*names, name)), child)
        for name, child in self._parts(node):
            yield from self._below(child, (*names, name))

    def _parts(self, node: int) -> list[tuple[str, int]]:
        """Lists child objects that may own variables, each under one name; attribute names win."""
        names: dict[int, str] = {}
        for name, child in self._graph.children(node):
            if not self._graph.nodes[child].key and not _NO_PARTS.fullmatch(name):
                numbered = _NUMBERED.fullmatch(names.get(child, "layer-0"))
                if numbered and not (child in names and LAYER.fullmatch(name)):
                    names[child] = name
        for child, name in names.items():
            told = self._names.get(child) or self._made_by(child)
            if _NUMBERED.fullmatch(name) and told and told not in names.values():
                names[child] = told
        return [(name, child) for child, name in names.items()]

    def _made_by(self, node: int) -> str:
        """Returns the name of a layer in the names of the variables that nothing else has."""
        variables = self._graph.variables(node).values()
        names = {self._graph.nodes[one].full_name for one in variables if self._uses[one] == 1}
        layers = {name.split("/")[-2] for name in names if "/" in name}
        return layers.pop() if len(layers) == 1 else ""

    def _stored(
        self, name: str, node: int, place: Place | None = None, trainable: bool | None = None
    ) -> StoredVariable:
        key = self._graph.nodes[node].key
        if self._trained is not None:
            trainable = node in self._trained
        weight = Weight("", key, self._tensors.shape(key))
        return StoredVariable.of(weight, self._tensors, name, place=place, trainable=trainable)


def _located(graph: Graph, paths: Iterable[str]) -> dict[str, int]:
    """Finds the objects at paths in Keras' walk, in their order."""
    tree: dict[str, Any] = {}
    for path in paths:
        below = tree
        for name in path.split("/"):
            below = below.setdefault(name, {})
    found: dict[str, int] = {}

    def descend(node: int, below: Mapping[str, Any], path: str) -> None:
        found[path] = node
        for name, held in below.items():
            here = f"{path}/{name}".lstrip("/")
            if items := graph.items(node, name) if name in _LISTS else []:
                # The input of a Sequential is only in the graph, or only in the config.
                if abs(len(items) - len(held)) <= (name == "layers"):
                    for inner, item in zip(reversed(held), reversed(items), strict=False):
                        descend(item, held[inner], f"{here}/{inner}")
            elif (child := graph.child(node, name, f"_{name}")) is not None:
                descend(child, held, here)

    descend(graph.model, tree, "")
    return {path: found[path] for path in paths if path in found}


def _slots(
    graph: Graph,
    tensors: Tensors,
    variables: Sequence[StoredVariable],
    optimizer: Any,
    *,
    version: str,
) -> optimizer_slots.Slots | None:
    """Reads the state of the optimizer, under the names that the layout of Keras 2 has."""
    if graph.optimizer is None or not optimizer:  # of which `described` has a note
        return optimizer_slots.NONE
    held = graph.items(graph.optimizer, "variables")
    named = [(graph.nodes[one].full_name, one) for one in held]
    if not named:
        kept = graph.nodes[graph.optimizer].slots
        names = {one.source: one.name for one in reversed(variables)}
        of = {node.key: number for number, node in enumerate(graph.nodes)}
        ordered = list(dict.fromkeys(one.source for one in variables))
        named = [
            (f"Optimizer/{names[key]}/{kind}", kept[kind, of[key]])
            for kind in dict.fromkeys(kind for kind, _ in kept)
            for key in ordered
            if (kind, of[key]) in kept
        ]
        iterations = graph.child(graph.optimizer, *ITERATIONS)
        named.insert(0, ("Optimizer/iter", iterations or 0))

    def weight(name: str, node: int) -> Weight:
        key = graph.nodes[node].key
        return Weight(f"{name}:0", key, tensors.shape(key))

    found = optimizer_slots.read(optimizer, [weight(*one) for one in named], version)
    rate = graph.child(graph.optimizer, "learning_rate", "_learning_rate")
    if found and rate and graph.nodes[rate].key:
        scalars = {**found.scalars, "learning_rate": weight("learning_rate", rate)}
        found = dataclasses.replace(found, scalars=scalars)
    return found
