"""Read the folders of `keras.callbacks.OrbaxCheckpoint`, by Orbax itself.

A folder has a folder for each step. In that Orbax keeps a tree, whose leaves have the paths that
the variables had, and beside it what tiedio adds: the record, and which leaf is which dataset. By
that, the tree is shown as the weights file that it would be: an HDF5 file that is laid out in
memory, with the leaves where its tensors lie.
"""

import bisect
import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tiedio.errors import (
    FileFormatError,
    MissingFileError,
    damaged,
    explained,
    imported,
    listed,
    removed,
)
from tiedio.formats.content import ASSETS, Opened, put_asset
from tiedio.formats.hdf5_reader import WeightsFile
from tiedio.formats.hdf5_writer import Layout, Tensor, lay_out
from tiedio.record.json_fields import Fields, parse
from tiedio.record.ties import METADATA_KEY
from tiedio.storage.streams import Seeking

# What Orbax calls the parts of a step, as Keras names them, and what it writes last.
TREE, CONFIG = "pytree", "model_config"
_DONE = "_CHECKPOINT_METADATA"
_UNFINISHED = ".orbax-checkpoint-tmp"

# What tiedio adds: which leaf is which dataset, and values that no variable has.
PLACING, VALUES = "placing", "values"

# While one step is read, a run may save the next, and remove this one.
_TRIES = 5

# Orbax compresses what it stores: slots that are still zero to almost nothing.
_MOST_COMPRESSED, _ROOM = 1000, 1 << 28


@dataclasses.dataclass(frozen=True)
class Placing:
    """Which dataset each leaf is, in the weights file that a tree is shown as.

    Attributes:
        record: The record of the model.
        groups: The groups of that file, with their attributes.
        links: Second paths, to the first ones.
        leaves: By the path of each dataset: its leaf, and its dtype, which a leaf that is a
            number does not say.
        others: Leaves that are no dataset: metrics, and seeds, which the record has.
        metadata: When, and by which Keras, it was saved.
        config: The config of the model, unless weights alone are saved. Keras' own has another
            optimizer where losses are scaled.
    """

    record: dict[str, Any]
    groups: Mapping[str, dict[str, Any]]
    links: Mapping[str, str]
    leaves: Mapping[str, tuple[str, str]]
    others: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] | None = None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, filepath: str, text: bytes) -> "Placing":
        fields = Fields(parse(filepath, METADATA_KEY, text), "an Orbax checkpoint")
        return cls(
            record=fields.get("record", dict),
            groups=fields.mapped("groups", _attributes),
            links=fields.mapped("links", _text),
            leaves=fields.mapped("leaves", _leaf),
            others=tuple(fields.each("others", _text, missing=[])),
            metadata=fields.get("metadata", dict),
            config=fields.get("config", dict | None),
        )


def _text(item: Any) -> str:
    return Fields({"path": item}, "a path").get("path", str)


def _attributes(item: Any) -> dict[str, Any]:
    return Fields({"attributes": item}, "a group").get("attributes", dict)


def _leaf(item: Any) -> tuple[str, str]:
    leaf, dtype = Fields({"leaf": item}, "a leaf").get("leaf", list)
    return _text(leaf), _text(dtype)


def is_one(path: Path) -> bool:
    """Whether a folder is one of Orbax: one step, or several."""
    try:
        names = {entry.name for entry in path.iterdir()}
    except FileNotFoundError:  # a save puts another folder in its place
        return False
    return bool(names & {_DONE, TREE}) or any(
        _UNFINISHED in name or _is_step(path / name) for name in names
    )


def _is_step(path: Path) -> bool:
    return path.name.isdigit() and (path / _DONE).is_file() and (path / TREE).is_dir()


def _step_in(filepath: str, path: Path) -> Path:
    """Returns the folder of a step, which this is, or of the last one that was finished."""
    if (path / _DONE).is_file():
        return path
    try:
        entries = [*path.iterdir()]
    except FileNotFoundError:
        raise removed(path) from None
    if steps := [entry for entry in entries if _is_step(entry)]:
        return max(steps, key=lambda step: int(step.name))
    raise MissingFileError(
        f"`{filepath}` has no finished checkpoint.\n"
        f"Expected: the folder of a step, with `{_DONE}`. "
        f"Received: {listed(entry.name for entry in entries)}.\n"
        "Saving did not come to its end there; load another checkpoint."
    )


def _read(filepath: str, path: Path) -> "Tree":
    """Reads a step: this one, or the last, and the next last one if that is removed meanwhile.

    Raises:
        MissingFileError: If no checkpoint is finished, or it was removed.
        FileFormatError: If it is damaged.
    """
    step = path
    for _ in range(_TRIES):
        step = _step_in(filepath, path)
        with contextlib.suppress(FileNotFoundError):
            files = [file for file in step.rglob("*") if file.is_file()]
            size = sum(file.stat().st_size for file in files)
            try:
                tree = Tree(filepath, step, size)
            except FileFormatError:
                if all(file.exists() for file in files):
                    raise
            else:
                if all(file.exists() for file in files):  # a part that is gone may be left out
                    return tree
        if step == path:
            break
    raise removed(step)


@contextlib.contextmanager
def reading(filepath: str, path: Path) -> Iterator[Opened]:
    """Opens a folder, all of which is read now: a run may remove it.

    Args:
        filepath: Its name for messages.
        path: Where it is.

    Raises:
        MissingFileError: If no checkpoint in it is finished, or it was removed meanwhile.
        MissingPackageError: If Orbax is not installed.
        FileFormatError: If it is damaged.
    """
    tree = _read(filepath, path)
    with contextlib.ExitStack() as resources:
        nothing = resources.enter_context(contextlib.closing(WeightsFile([], filepath)))
        opened = Opened(
            filepath=filepath,
            record=None,
            config=tree.config(),
            weights=nothing,
            extract_assets=tree.extract_assets,
            title="Orbax checkpoint",
        )

        def place(placing: Placing) -> None:
            window = tree.as_file(placing)
            weights = resources.enter_context(contextlib.closing(WeightsFile([window], filepath)))
            opened.record, opened.metadata = placing.record, placing.metadata
            opened.config = placing.config or opened.config
            opened.weights, opened.unplaced = weights, None

        if placing := tree.placing():
            place(placing)
        else:
            opened.unplaced = Unplaced(tree.leaves, place)
        yield opened


@dataclasses.dataclass(frozen=True)
class Unplaced:
    """The leaves of a tree that nothing in the folder says the datasets of.

    Attributes:
        leaves: The arrays, and numbers, by paths such as `trainable_variables/dense/kernel`.
        place: Shows them as a weights file.
    """

    leaves: Mapping[str, Any]
    place: Callable[[Placing], None]


class Tree:
    """The parts of one step: the tree that Keras wrote, and what tiedio added.

    Args:
        filepath: The name of the folder, for messages.
        step: Where it is.
        size: How many bytes are stored there.

    Attributes:
        leaves: The leaves of Keras' tree, then the values that were added, by their paths.
    """

    def __init__(self, filepath: str, step: Path, size: int):
        orbax = imported("orbax.checkpoint", "An Orbax checkpoint", "orbax").v1
        self._filepath = filepath
        step = step.absolute()
        with explained(filepath, Exception):  # Orbax tells in many ways what is not there
            parts = dict(orbax.checkpointables_metadata(step).metadata)
            self._check_size(parts[TREE], size)
            wanted = {name: None for name in (CONFIG, ASSETS, METADATA_KEY) if name in parts}
            wanted[TREE] = abstract(parts[TREE])
            held = orbax.load_checkpointables(step, wanted)
            added = held.get(METADATA_KEY, {PLACING: "", VALUES: {}})
            self._placing = added[PLACING].encode()
            self._config = held[CONFIG]["config"].encode() if CONFIG in held else None
            self._assets = dict(flat(held.get(ASSETS, {})))
            self.leaves = dict(flat(held[TREE]))
            self.leaves |= flat(added[VALUES], f"{METADATA_KEY}/{VALUES}/")

    def placing(self) -> Placing | None:
        """Tells which leaf is which dataset; `None` if it was not tiedio that wrote it."""
        return Placing.from_json(self._filepath, self._placing) if self._placing else None

    def config(self) -> dict[str, Any] | None:
        """Reads the config of the model; `None` if it holds weights only."""
        return None if self._config is None else parse(self._filepath, CONFIG, self._config)

    def extract_assets(self, folder: Path) -> None:
        for name, content in self._assets.items():
            parts = [np.asarray(content, np.uint8).tobytes()]
            put_asset(self._filepath, folder / ASSETS, name, parts)

    def as_file(self, placing: Placing) -> "InMemory":
        """Shows the leaves as a weights file.

        Raises:
            FileFormatError: If they are others than were placed.
        """
        told = {*placing.others, *(leaf for leaf, _ in placing.leaves.values())}
        if differing := sorted(told ^ set(self.leaves)):
            received = f"leaves that are missing, or too many: {listed(differing)}"
            raise damaged(self._filepath, received)
        with explained(self._filepath, TypeError, ValueError, KeyError, OSError, RuntimeError):
            tensors = {
                path: Tensor(
                    np.shape(self.leaves[leaf]),
                    np.dtype(dtype),
                    lambda leaf=leaf, dtype=dtype: np.asarray(self.leaves[leaf], dtype),
                )
                for path, (leaf, dtype) in placing.leaves.items()
            }
            return InMemory(Layout(dict(placing.groups), tensors, dict(placing.links)))

    def _check_size(self, tree: Any, stored: int) -> None:
        """Refuses a tree that declares far more than is stored."""
        declared = sum(
            math.prod(leaf.shape) * leaf.dtype.itemsize
            for _, leaf in flat(tree)
            if hasattr(leaf, "shape")
        )
        if declared > _ROOM + _MOST_COMPRESSED * stored:
            raise damaged(self._filepath, f"{declared} bytes declared, {stored} stored")


class InMemory(Seeking):
    """A weights file that lies nowhere: its structure, and tensors that are left where they are."""

    def __init__(self, layout: Layout):
        self._structure, offsets, size = lay_out(layout)
        super().__init__(size)
        self._tensors = [(offset, layout.tensors[path]) for path, offset in offsets.items()]
        self._offsets = [*offsets.values()]

    def read_at(self, buffer: memoryview, position: int) -> None:
        number = bisect.bisect_right(self._offsets, position) - 1
        offset, tensor = self._tensors[number] if number >= 0 else (self.size, None)
        if tensor is None or position >= offset + tensor.nbytes:
            content = self._structure[position : position + len(buffer)]
            buffer[:] = content.ljust(len(buffer), b"\0")  # whose values HDF5 does not read here
            return
        content = np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8).data
        buffer[:] = content[position - offset : position - offset + len(buffer)]


def flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of a tree by their paths."""
    for name, item in tree.items():
        if isinstance(item, Mapping):
            yield from flat(item, f"{path}{name}/")
        else:
            yield f"{path}{name}", item


def abstract(leaf: Any) -> Any:
    """Tells Orbax to read arrays as those of NumPy, wherever they were and will be."""
    if isinstance(leaf, Mapping):
        return {name: abstract(item) for name, item in leaf.items()}
    # It looks at shape and dtype: one element takes the place of all.
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) if hasattr(leaf, "shape") else leaf
