"""Read what TensorFlow saves: tensors by key, and the graph of the objects that they belong to.

How versions of Keras call what an object leads to is in the constants below, which may be added
to. TensorFlow is imported only where such a file is met; it runs nothing of the model.
"""

import dataclasses
import importlib
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tiedio.errors import FileFormatError, damaged, explained, imported, listed
from tiedio.formats import digests
from tiedio.formats.tensorflow_paths import (
    KERAS_METADATA,
    SAVED_MODEL,
    Found,
    index_of,
    unreadable,
)
from tiedio.record.json_fields import parse

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"

# The messages of `keras_metadata.pb`, which TensorFlow itself need not know.
_KERAS_METADATA = """
name: "saved_metadata.proto" syntax: "proto3"
message_type {
  name: "SavedObject"
  field { name: "node_id" number: 2 type: TYPE_INT32 label: LABEL_OPTIONAL }
  field { name: "identifier" number: 4 type: TYPE_STRING label: LABEL_OPTIONAL }
  field { name: "metadata" number: 5 type: TYPE_STRING label: LABEL_OPTIONAL }
}
message_type {
  name: "SavedMetadata"
  field {
    name: "nodes" number: 1 type: TYPE_MESSAGE label: LABEL_REPEATED type_name: "SavedObject"
  }
}
"""

# A network leads to its layers by number.
LAYER = re.compile(r"layer-(\d+)")
# And in Keras 3 to a list of them.
_ITEMS = {"layers": ("_operations",)}
# An optimizer leads to the number of its steps, before 2.11 and after.
ITERATIONS = ("iter", "_iterations")
# The name of the counter of saves.
_COUNTER = "save_counter"


class Tensors:
    """The tensors of a checkpoint, by their keys."""

    def __init__(self, found: Found):
        tensorflow = imported("tensorflow", f"`{found.name}`", "tensorflow")
        if not index_of(found.prefix).is_file():
            raise damaged(found.name, f"no `{index_of(found.prefix).name}`")
        self._filepath = found.name
        self._reader = tensorflow.train.load_checkpoint(str(found.prefix))
        self._shapes = self._reader.get_variable_to_shape_map()
        self._dtypes = self._reader.get_variable_to_dtype_map()
        # TensorFlow reads no references, and ends the process where it meets one.
        references = [key for key, dtype in self._dtypes.items() if dtype.base_dtype != dtype]
        if references:
            raise damaged(found.name, f"references at {listed(references)}")
        files = found.prefix.parent.glob("*")
        named = (one for one in files if one.name.startswith(f"{found.prefix.name}.data-"))
        self._stored_bytes = sum(one.stat().st_size for one in named)

    def read(self, dataset_path: str, /) -> np.ndarray:
        shape, dtype = self.shape(dataset_path), self.dtype(dataset_path)
        if math.prod(shape) * dtype.itemsize > self._stored_bytes:
            declared = f"`{dataset_path}` of shape {shape} in {self._stored_bytes} bytes"
            raise damaged(self._filepath, declared)
        with explained(self._filepath, Exception):
            return np.asarray(self._reader.get_tensor(dataset_path))

    def first(self, dataset_path: str, count: int, /) -> np.ndarray:
        return self.read(dataset_path).reshape(-1)[:count]

    def digest(self, dataset_path: str, /) -> str:
        return digests.of(self.read(dataset_path))

    @property
    def keys(self) -> list[str]:
        return sorted(self._shapes)

    def is_whole(self, key: str) -> bool:
        """Whether a tensor can be read, and has its checksum."""
        try:
            self.read(key)
        except FileFormatError:
            return False
        return True

    def graph(self) -> bytes:
        if self._shapes.get(_GRAPH) != []:
            expected, hint = "the graph of its objects", "Save it by `tf.train.Checkpoint`."
            raise unreadable(self._filepath, expected, "tensors by name", hint)
        return self._reader.get_tensor(_GRAPH)

    def shape(self, dataset_path: str, /) -> tuple[int, ...]:
        return tuple(self._shapes[dataset_path])

    def dtype(self, dataset_path: str, /) -> np.dtype:
        return np.dtype(self._dtypes[dataset_path].as_numpy_dtype)

    def address(self, dataset_path: str, /) -> str:
        return dataset_path


def checked(found: Found) -> tuple[int, list[str]]:
    """Reads all tensors, each of which TensorFlow compares with its checksum.

    Returns:
        How many there are, and the keys of those that are not as they were saved.
    """
    tensors = Tensors(found)
    return len(tensors.keys), [key for key in tensors.keys if not tensors.is_whole(key)]


@dataclasses.dataclass(frozen=True)
class Node:
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


class Graph:
    """The objects of a checkpoint, by number.

    Attributes:
        nodes: All of them; the first is what was saved.
        model: The number of the model.
        optimizer: That of its optimizer; `None` if there is none.
        left_out: The keys of what is neither an object nor a variable of numbers: tables, texts.
    """

    def __init__(self, tensors: Tensors):
        proto = _parsed("trackable_object_graph_pb2", "TrackableObjectGraph", tensors.graph())
        self.left_out: list[str] = []
        self.nodes = [self._node(node, tensors) for node in proto.nodes]
        lead = [0]
        if self.child(0, _COUNTER) is not None:  # a checkpoint of several objects
            lead += self.nodes[0].children.values()
        self.model = next((one for one in lead if self.items(one, "layers")), 0)
        lead = [*lead, *self.nodes[self.model].children.values()]
        self.optimizer = next(
            (one for one in lead if self.child(one, *ITERATIONS) is not None), None
        )

    def _node(self, node: Any, tensors: Tensors) -> Node:
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
        return Node(children, key, full_name, kept)

    def children(self, node: int) -> list[tuple[str, int]]:
        """Lists what an object leads to, by public names first."""
        return sorted(self.nodes[node].children.items(), key=lambda one: one[0].startswith("_"))

    def child(self, node: int, *names: str) -> int | None:
        """Returns what an object leads to by the first of some names that it has."""
        children = self.nodes[node].children
        return next((children[name] for name in names if name in children), None)

    def items(self, node: int, name: str) -> list[int]:
        """Lists what an object leads to by numbers: a network to its layers, or an RNN to cells."""
        children = self.nodes[node].children
        held = {m[1]: child for key, child in children.items() if (m := LAYER.fullmatch(key))}
        if name != "layers" or not held:
            several = self.child(node, name, f"_{name}", *_ITEMS.get(name, ()))
            held = {} if several is None else self.nodes[several].children
        return [held[key] for key in sorted(filter(str.isdecimal, held), key=int)]

    def variables(self, node: int) -> dict[str, int]:
        """Returns the variables that an object leads to, each by one name, best a public one."""
        names: dict[int, str] = {}
        for name, child in self.children(node):
            if self.nodes[child].key and name != _COUNTER:
                names.setdefault(child, name.lstrip("_") or name)
        return {name: child for child, name in names.items()}


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a SavedModel says of an object of Keras: its kind, its name and its config."""

    kind: str
    content: Mapping[str, Any]


def metadata(found: Found) -> dict[int, Metadata]:
    """Reads what a SavedModel says of its objects, by their numbers in the graph."""
    if found.folder is None:
        return {}
    path = found.folder / KERAS_METADATA
    if path.is_file():
        nodes = _keras_metadata().FromString(path.read_bytes()).nodes
        told = [(one.node_id, one.identifier, one.metadata) for one in nodes]
    else:
        content = (found.folder / SAVED_MODEL).read_bytes()
        graphs = _parsed("saved_model_pb2", "SavedModel", content).meta_graphs
        objects = [one.user_object for one in graphs[0].object_graph_def.nodes]
        told = [(number, one.identifier, one.metadata) for number, one in enumerate(objects)]
    return {
        number: Metadata(kind, _plain(parse(found.name, KERAS_METADATA, text)))
        for number, kind, text in told
        if kind.startswith("_tf_keras") and text
    }


def _keras_metadata() -> Any:
    descriptors, factory, pools, texts = (
        importlib.import_module(f"google.protobuf.{name}")
        for name in ("descriptor_pb2", "message_factory", "descriptor_pool", "text_format")
    )
    pool = pools.DescriptorPool()
    pool.Add(texts.Parse(_KERAS_METADATA, descriptors.FileDescriptorProto()))
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
