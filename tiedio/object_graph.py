"""See what TensorFlow saves as a checkpoint: a checkpoint of objects, or a SavedModel.

    ckpt.index, ckpt.data-00000-of-00001     tensors by key, and the graph of the objects
    saved_model.pb, variables/variables.*    the same of a whole model
    keras_metadata.pb                        the configs of its layers, from TensorFlow 2.5 on

A variable that layers share is stored once, and is one node of the graph, to which each of
them leads: nothing has to be guessed. How versions of Keras call what a layer leads to is in
the constants below, which may be added to. TensorFlow is imported only where such a file is
met; it reads tensors, and runs nothing of the model.
"""

import collections
import contextlib
import importlib
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tiedio import outline, slots, storage, translation
from tiedio.checkpoint import Checkpoint, Evidence, StoredVariable, Tie, named_once
from tiedio.containers import damaged, parse
from tiedio.errors import FileFormatError, TiedioError, first_line, listed
from tiedio.legacy import Weight
from tiedio.outline import Part
from tiedio.storage import Local, Remote, Storage
from tiedio.ties import Place

_SAVED_MODEL = "saved_model.pb"
_METADATA = "keras_metadata.pb"
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_DATA = re.compile(r"\.(index|data-\d{5}-of-\d{5})$")

# Attributes are called otherwise than in Keras 3 by what stands before.
_PREFIXES = ("", "_", "depthwise_", "adapt_")
# A network leads to its layers by number, to those with weights twice.
_LAYER = re.compile(r"layer-(\d+)")
_NUMBERED = re.compile(r"layer(_with_weights)?-\d+")
_LISTS = ("layers", "cells")
# An optimizer leads to the number of its steps, before 2.11 and after.
_ITERATIONS = ("iter", "_iterations")
# What is no part of a layer, or leads to its variables again.
_NO_PARTS = re.compile(
    "keras_api|signatures|save_counter|regularization_losses|root|"
    "(_?non)?_?trainable_(variables|weights)|variables|_self_.*|_layers"
)
_MODELS = ("_tf_keras_model", "_tf_keras_network", "_tf_keras_sequential")
_METRIC = "_tf_keras_metric"


@dataclasses.dataclass(frozen=True)
class Found:
    """Where files of TensorFlow lie.

    Attributes:
        name: What was asked for, for messages.
        prefix: What the names of the files with tensors begin with.
        folder: The folder of a SavedModel; `None` for a checkpoint.
    """

    name: str
    prefix: Path
    folder: Path | None = None


def find(source: Storage) -> Found | None:
    """Tells whether something is of TensorFlow, by the names of files only.

    Raises:
        FileFormatError: If it is, and lies elsewhere than on disk, or is several.
    """
    if isinstance(source, Remote):
        names = (f"{source.name.rstrip('/')}/{_SAVED_MODEL}", f"{source.name}.index")
        if any(storage.at(name).exists() for name in names):
            raise _refused(source.name, "a path on disk", "a URL", "Copy it to this machine.")
    if not isinstance(source, Local):
        return None
    path = Path(source.name)
    folder = path.parent if path.name == _SAVED_MODEL else path
    if (folder / _SAVED_MODEL).is_file():
        return Found(source.name, folder / "variables" / "variables", folder)
    prefix = path.with_name(_DATA.sub("", path.name)) if path.name else path
    if _index(prefix).is_file():
        return Found(source.name, prefix)
    names = sorted(_DATA.sub("", one.name) for one in path.glob("*.index"))
    if not names or (path / "config.json").exists():
        return None
    with contextlib.suppress(OSError, UnicodeDecodeError):
        # The newest of several, which lies here whatever path is written there.
        told = re.match(r'model_checkpoint_path: "(.*)"', (path / "checkpoint").read_text())
        names = [one for one in names if told and one == Path(told[1]).name] or names
    if len(names) > 1:
        hint = "Pass the path of one of them, without its ending."
        raise _refused(source.name, "one checkpoint", listed(names), hint)
    return Found(source.name, path / names[0])


@contextlib.contextmanager
def reading(found: Found, given: Mapping[str, Any] | None = None) -> Iterator[Checkpoint]:
    """Opens a checkpoint, or a SavedModel.

    Args:
        found: Where it is.
        given: The config of its model, if it has none.

    Raises:
        MissingPackageError: If TensorFlow is not installed.
        FileFormatError: If it is damaged, or holds no graph of objects.
    """
    with _explained(found.name):
        tensors = _Tensors(found)
        graph = _Graph(tensors)
        opened = _described(found, tensors, graph, _metadata(found), given)
    yield opened


def _described(
    found: Found,
    tensors: "_Tensors",
    graph: "_Graph",
    metadata: "Mapping[int, _Metadata]",
    given: Mapping[str, Any] | None,
) -> Checkpoint:
    kept = next((one.content for one in metadata.values() if one.kind in _MODELS), {})
    own, training = kept.get("model_config"), kept.get("training_config") or {}
    version = str(kept.get("keras_version", ""))
    translated = translation.Translated({}, (), ())
    if own or given:
        translated = translation.translated(dict(own or given or {}), training, version)
    held = outline.layers(translated.config)
    parts = [part for several in held.values() for part in several]
    variables = list(named_once(_Walk(graph, tensors, metadata).variables(parts)))
    optimizer = training.get("optimizer_config")
    lost = f"Left out, as they are no numbers: {listed(graph.left_out)}."
    title = "SavedModel" if found.folder else "TensorFlow checkpoint"
    return Checkpoint(
        found.name,
        f"{title} of a whole model" if own else f"{title} of weights only",
        version,
        tensors,
        variables,
        is_ordered=all(one.place for one in variables),
        ties=list(_ties(variables)),
        slots=_slots(graph, tensors, variables, optimizer, version) if optimizer else None,
        optimizer=(translated.config.get("compile_config") or {}).get("optimizer"),
        config=translated.config or None,
        notes=(*translated.notes, *([lost] if graph.left_out else ())),
        untranslated=translated.untranslated,
        groups={f"{part.inner_path}/vars": {"name": part.layer} for part in parts},
    )


def _ties(variables: Sequence[StoredVariable]) -> Iterator[Tie]:
    """Yields what is one node of the graph: it is stored under one key."""
    names = collections.defaultdict(list)
    for one in variables:
        names[one.source].append(one.name)
    for tied in names.values():
        if len(tied) > 1:
            yield Tie(tuple(tied), Evidence.GRAPH, "they are one node of the object graph")


class _Tensors:
    """The tensors of a checkpoint, by their keys."""

    def __init__(self, found: Found):
        tensorflow = storage.imported("tensorflow", f"`{found.name}`", "tensorflow")
        if not _index(found.prefix).is_file():
            raise damaged(found.name, f"no `{_index(found.prefix).name}`")
        self._filepath = found.name
        self._reader = tensorflow.train.load_checkpoint(str(found.prefix))
        self._shapes = self._reader.get_variable_to_shape_map()
        self._dtypes = self._reader.get_variable_to_dtype_map()
        files = found.prefix.parent.glob("*")
        named = (one for one in files if one.name.startswith(f"{found.prefix.name}.data-"))
        self._stored_bytes = sum(one.stat().st_size for one in named)

    def __contains__(self, key: str) -> bool:
        return key in self._shapes

    def read(self, dataset_path: str, /) -> np.ndarray:
        shape, dtype = self.shape(dataset_path), self.dtype(dataset_path)
        if math.prod(shape) * dtype.itemsize > self._stored_bytes:
            declared = f"`{dataset_path}` of shape {shape} in {self._stored_bytes} bytes"
            raise damaged(self._filepath, declared)
        with _explained(self._filepath):
            return np.asarray(self._reader.get_tensor(dataset_path))

    def graph(self) -> bytes:
        if self._shapes.get(_GRAPH) != []:
            expected, hint = "the graph of its objects", "Save it by `tf.train.Checkpoint`."
            raise _refused(self._filepath, expected, "tensors by name", hint)
        return self._reader.get_tensor(_GRAPH)

    def shape(self, dataset_path: str, /) -> tuple[int, ...]:
        return tuple(self._shapes[dataset_path])

    def dtype(self, dataset_path: str, /) -> np.dtype:
        return np.dtype(self._dtypes[dataset_path].as_numpy_dtype)

    def address(self, dataset_path: str, /) -> str:
        return dataset_path


@dataclasses.dataclass(frozen=True)
class _Node:
    """An object.

    Attributes:
        children: What it leads to, by attributes.
        key: Where it is stored, if it is a variable.
        full_name: The name that it was made with.
        slots: The variables that it keeps for others, by what they are and for which.
    """

    children: Mapping[str, int]
    key: str
    full_name: str
    slots: Mapping[tuple[str, int], int]


class _Graph:
    """The objects of a checkpoint, by number.

    Attributes:
        nodes: All of them; the first is what was saved.
        model: The number of the model.
        optimizer: That of its optimizer; `None` if there is none.
        left_out: The keys of what is neither an object nor a variable of numbers: tables, texts.
    """

    def __init__(self, tensors: _Tensors):
        proto = _parsed("trackable_object_graph_pb2", "TrackableObjectGraph", tensors.graph())
        self.left_out: list[str] = []
        self.nodes = [self._node(node, tensors) for node in proto.nodes]
        lead = [0, *self.nodes[0].children.values()]
        self.model = next((one for one in lead if self.items(one, "layers")), 0)
        lead = [*lead, *self.nodes[self.model].children.values()]
        self.optimizer = next(
            (one for one in lead if self.child(one, *_ITERATIONS) is not None), None
        )

    def _node(self, node: Any, tensors: _Tensors) -> _Node:
        key = full_name = ""
        for one in node.attributes:
            if one.name == "VARIABLE_VALUE" and tensors.dtype(one.checkpoint_key).kind != "O":
                key, full_name = one.checkpoint_key, one.full_name
            else:
                self.left_out.append(one.checkpoint_key)
        children = {one.local_name: one.node_id for one in node.children}
        kept = {
            (one.slot_name, one.original_variable_node_id): one.slot_variable_node_id
            for one in node.slot_variables
        }
        return _Node(children, key, full_name, kept)

    def child(self, node: int, *names: str) -> int | None:
        """Returns what an object leads to by the first of some names that it has."""
        children = self.nodes[node].children
        return next((children[name] for name in names if name in children), None)

    def items(self, node: int, name: str) -> list[int]:
        """Lists what an object leads to by numbers: a network to its layers, or an RNN to cells."""
        children = self.nodes[node].children
        held = {m[1]: child for key, child in children.items() if (m := _LAYER.fullmatch(key))}
        if name != "layers" or not held:
            several = self.child(node, name, f"_{name}")
            held = {} if several is None else self.nodes[several].children
        return [held[key] for key in sorted(filter(str.isdecimal, held), key=int)]

    def variables(self, node: int) -> dict[str, int]:
        """Returns the variables that an object leads to, each by one name, best a public one."""
        names: dict[int, str] = {}
        for name, child in sorted(self.nodes[node].children.items(), key=_is_private):
            if self.nodes[child].key:
                names.setdefault(child, name)
        return {name: child for child, name in names.items()}


class _Walk:
    """Finds the variables of a model: of the layers that a config tells of, then of the others."""

    def __init__(self, graph: _Graph, tensors: _Tensors, metadata: "Mapping[int, _Metadata]"):
        self._graph = graph
        self._tensors = tensors
        self._names = {node: str(one.content.get("name", "")) for node, one in metadata.items()}
        self._seen: set[int | None] = {graph.optimizer}
        self._seen.update(node for node, one in metadata.items() if one.kind == _METRIC)
        told = graph.child(graph.model, "trainable_variables")
        self._trained = None if told is None else set(graph.nodes[told].children.values())
        objects = (one for one in graph.nodes if one.slots == {})
        self._uses = collections.Counter(
            child
            for one in objects
            if not all(map(str.isdecimal, one.children))
            for child in set(one.children.values())
        )

    def variables(self, parts: Iterable[Part]) -> Iterator[StoredVariable]:
        known = {part.inner_path: part for part in parts}
        for inner_path, node in _located(self._graph, known).items():
            yield from self._of_part(known[inner_path], node)
        yield from self._below(self._graph.model, ())
        yield from self._below(0, ())

    def _of_part(self, part: Part, node: int) -> Iterator[StoredVariable]:
        """Yields the variables of a layer that the config tells of."""
        own = self._graph.variables(node)
        if part.variables is not None:
            found = {
                name: self._graph.child(node, *(prefix + name for prefix in _PREFIXES))
                for name in part.variables
            }
            own = {name: child for name, child in found.items() if child in own.values()}
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
        """Yields the variables of objects of which nothing but the graph tells."""
        if node in self._seen:
            return
        self._seen.add(node)
        for name, child in self._graph.variables(node).items():
            yield self._stored("/".join((*names, name)), child)
        for name, child in self._parts(node):
            yield from self._below(child, (*names, name))

    def _parts(self, node: int) -> list[tuple[str, int]]:
        """Lists what may have variables of its own, each by one name, best an attribute's."""
        names: dict[int, str] = {}
        for name, child in sorted(self._graph.nodes[node].children.items(), key=_is_private):
            if not self._graph.nodes[child].key and not _NO_PARTS.fullmatch(name):
                numbered = _NUMBERED.fullmatch(names.get(child, "layer-0"))
                if numbered and not (child in names and _LAYER.fullmatch(name)):
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
        shape, dtype = self._tensors.shape(key), self._tensors.dtype(key)
        return StoredVariable(name, key, shape, dtype, place, trainable)


def _located(graph: _Graph, paths: Iterable[str]) -> dict[str, int]:
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
    graph: _Graph,
    tensors: _Tensors,
    variables: Sequence[StoredVariable],
    optimizer: Mapping[str, Any],
    version: str,
) -> slots.Slots | None:
    """Reads the state of the optimizer, under the names that the layout of Keras 2 has."""
    if graph.optimizer is None:
        return None
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
        iterations = graph.child(graph.optimizer, *_ITERATIONS)
        named.insert(0, ("Optimizer/iter", iterations or 0))

    def weight(name: str, node: int) -> Weight:
        key = graph.nodes[node].key
        return Weight(f"{name}:0", key, tensors.shape(key))

    found = slots.read(optimizer, [weight(*one) for one in named], version)
    rate = graph.child(graph.optimizer, "learning_rate", "_learning_rate")
    if found and rate and graph.nodes[rate].key:
        scalars = {**found.scalars, "learning_rate": weight("learning_rate", rate)}
        found = dataclasses.replace(found, scalars=scalars)
    return found


@dataclasses.dataclass(frozen=True)
class _Metadata:
    """What a SavedModel says of an object of Keras: its kind, its name and its config."""

    kind: str
    content: Mapping[str, Any]


def _metadata(found: Found) -> dict[int, _Metadata]:
    """Reads what a SavedModel says of its objects, by their numbers in the graph."""
    if found.folder is None:
        return {}
    path = found.folder / _METADATA
    if path.is_file():
        nodes = _keras_metadata().FromString(path.read_bytes()).nodes
        told = [(one.node_id, one.identifier, one.metadata) for one in nodes]
    else:
        content = (found.folder / _SAVED_MODEL).read_bytes()
        graphs = _parsed("saved_model_pb2", "SavedModel", content).meta_graphs
        objects = [one.user_object for one in graphs[0].object_graph_def.nodes]
        told = [(number, one.identifier, one.metadata) for number, one in enumerate(objects)]
    return {
        number: _Metadata(kind, _plain(parse(found.name, _METADATA, text)))
        for number, kind, text in told
        if kind.startswith("_tf_keras") and text
    }


def _keras_metadata() -> Any:
    """Makes the message of `keras_metadata.pb`, which TensorFlow itself need not know."""
    descriptors = importlib.import_module("google.protobuf.descriptor_pb2")
    factory = importlib.import_module("google.protobuf.message_factory")
    pool = importlib.import_module("google.protobuf.descriptor_pool").DescriptorPool()
    file = descriptors.FileDescriptorProto(name="saved_metadata.proto", syntax="proto3")
    node = file.message_type.add(name="SavedObject")
    kinds = descriptors.FieldDescriptorProto
    node.field.add(name="node_id", number=2, type=kinds.TYPE_INT32, label=kinds.LABEL_OPTIONAL)
    for name, number in (("identifier", 4), ("metadata", 5)):
        node.field.add(name=name, number=number, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    file.message_type.add(name="SavedMetadata").field.add(
        name="nodes",
        number=1,
        type=kinds.TYPE_MESSAGE,
        label=kinds.LABEL_REPEATED,
        type_name="SavedObject",
    )
    pool.Add(file)
    return factory.GetMessageClass(pool.FindMessageTypeByName("SavedMetadata"))


def _plain(value: Any) -> Any:
    """Turns tuples and shapes, which these configs mark, into the lists of other files."""
    if isinstance(value, dict):
        if value.get("class_name") in ("__tuple__", "TensorShape") and "items" in value:
            return _plain(value["items"])
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _parsed(module: str, message: str, content: bytes) -> Any:
    """Reads a message that TensorFlow defines."""
    messages = importlib.import_module(f"tensorflow.core.protobuf.{module}")
    return getattr(messages, message).FromString(content)


def _index(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.index")


def _is_private(named: tuple[str, int]) -> bool:
    return named[0].startswith("_")


@contextlib.contextmanager
def _explained(filepath: str) -> Iterator[None]:
    """Says that a file is damaged, whatever TensorFlow raises: it names no errors for it."""
    try:
        yield
    except (TiedioError, MemoryError):
        raise
    except Exception as error:
        raise damaged(filepath, first_line(error)) from error


def _refused(filepath: str, expected: str, received: str, hint: str) -> FileFormatError:
    return FileFormatError(
        f"`{filepath}` cannot be read.\nExpected: {expected}. Received: {received}.\n{hint}"
    )
