"""The content of a file to be written, and of one that is open, whatever the format."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tiedio.errors import damaged, explained
from tiedio.formats import hdf5_writer
from tiedio.formats.hdf5_reader import WeightsFile
from tiedio.formats.store import Store
from tiedio.record.record import Record
from tiedio.record.ties import METADATA_KEY

if TYPE_CHECKING:
    from tiedio.formats.orbax_folder import Unplaced

METADATA = "metadata.json"
CONFIG = "config.json"
WEIGHTS = "model.weights.h5"
VALUES = "model.weights.npz"  # instead of `WEIGHTS`, in files that others wrote
ASSETS = "assets"

# How keras 2.3.1 lists a name that it has listed before.
_AGAIN = re.compile(r"b'(.+)'_\d+")
# The number of an output in a graph of TensorFlow.
_OUTPUT = re.compile(r":\d+$")

# Folders that an asset may be in: Python removes them by a call inside a call.
DEEPEST_ASSET = 256
_LONGEST_SHOWN = 500

# Says in the record which save it is of, and in what else is read with it.
SAVE = "save"


@dataclasses.dataclass(frozen=True)
class Content:
    """The content of a file to be written.

    Attributes:
        layout: The weights.
        record: The record, without digests.
        metadata: Other entries of `metadata.json`.
        config: Content of `config.json`, if it is a whole model.
        assets: Folder whose files are assets.
        shard_bytes: How large a shard may be, where weights are sharded.
        old_layout: The same in the layout of Keras 2, for formats that hold that too.
    """

    layout: hdf5_writer.Layout
    record: Record
    metadata: dict[str, Any]
    config: Any = None
    assets: Path | None = None
    shard_bytes: float = float("inf")
    old_layout: "OldLayout | None" = None

    def record_with(self, digests: dict[str, str]) -> dict[str, Any]:
        return dataclasses.replace(self.record, digests=digests).to_json()

    def metadata_with(self, digests: dict[str, str]) -> dict[str, Any]:
        return {**self.metadata, METADATA_KEY: self.record_with(digests)}

    def asset_files(self) -> list[tuple[str, Path]]:
        """Lists the assets: name below `assets/`, and file."""
        if self.assets is None:
            return []
        return [
            (path.relative_to(self.assets).as_posix(), path)
            for path in sorted(self.assets.rglob("*"))
            if path.is_file()
        ]


def put_asset(filepath: str, folder: Path, name: str, parts: Iterable[bytes]) -> None:
    """Writes an asset below a folder.

    Raises:
        FileFormatError: If its name, which a file says, leads elsewhere, or none can have it.
    """
    names = PurePosixPath(name).parts
    if PurePosixPath(name).is_absolute() or ".." in names or len(names) > DEEPEST_ASSET:
        raise damaged(filepath, f"an asset at `{name[:_LONGEST_SHOWN]}`")
    with explained(filepath, OSError):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "wb") as file:
            file.writelines(parts)


@dataclasses.dataclass(kw_only=True)
class Opened:
    """A file, or a folder, that is open for reading.

    Attributes:
        filepath: Its name for messages.
        record: The JSON of its record; `None` if it has none.
        config: Content of `config.json`; `None` if it holds weights only.
        weights: The weights.
        metadata: Content of `metadata.json`, or the like; of a single HDF5 file its version only.
        verify_weights: Compares the weights with a checksum of the container; `None` if it has
            none.
        extract_assets: Puts the assets below a folder, in the folder `assets`.
        read_lists: Reads its lists in the layout of Keras 2, if the format has some.
        old_layout: These lists, if it is read by them: if it has neither config nor record, or
            after `go_by_lists`.
        title: Its format, if that is no row of the table.
        unplaced: The leaves of an Orbax checkpoint of which only a model can say what they are.
    """

    filepath: str
    record: Any
    config: dict[str, Any] | None
    weights: WeightsFile
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    verify_weights: Callable[[], None] | None = None
    extract_assets: Callable[[Path], None] = lambda folder: None
    read_lists: Callable[[], "OldLayout | None"] | None = None
    old_layout: "OldLayout | None" = None
    title: str = ""
    unplaced: "Unplaced | None" = None

    def go_by_lists(self) -> None:
        """Lets the file be read by its lists in the layout of Keras 2, if it has some."""
        if self.read_lists and not self.old_layout:
            self.old_layout = self.read_lists()

    @property
    def keras_version(self) -> str:
        """The version that wrote it; empty if it does not say."""
        if self.old_layout is not None:
            return self.old_layout.keras_version
        return str(self.metadata.get("keras_version", ""))

    @property
    def is_by_position(self) -> bool:
        """Whether it lists what it stores, as Keras 2 does, and has no paths of saveables."""
        return self.old_layout is not None

    def store(self, inner_path: str) -> Store:
        """Returns what is stored for one saveable: arrays by name, read when asked for."""
        if self.old_layout is None:
            return self.weights.store(inner_path)
        listed_here = self.old_layout.optimizer if inner_path == "optimizer" else ()
        paths = {str(number): weight.dataset_path for number, weight in enumerate(listed_here)}
        return Store(self.weights, paths)

    def read_record(self, verify: bool) -> Record | None:
        """Returns the record, by which the weights are then read; `None` if there is none.

        Args:
            verify: Whether whatever is read from now on must be what was saved, as far as
                digests or a checksum tell.
        """
        record = None if self.record is None else Record.from_json(self.record)
        self.weights.axis_orders = record.axis_orders if record else {}
        if verify and record and record.digests:
            self.weights.expect(record.digests)
        elif verify and self.verify_weights:
            self.verify_weights()
        return record


@dataclasses.dataclass(frozen=True)
class Weight:
    """One variable in the layout of Keras 2.

    Attributes:
        name: Its name in a list: for Keras 3 its `Variable.path`.
        dataset_path: Where the file keeps it.
        shape: Its shape.
    """

    name: str
    dataset_path: str
    shape: tuple[int, ...]

    @property
    def listed(self) -> str:
        """Its path: that of the layer which made it, and its own name, as in `conv1/kernel`."""
        again = _AGAIN.fullmatch(self.name)
        return _OUTPUT.sub("", again[1] if again else self.name)

    @property
    def maker(self) -> str:
        """The path of the layer that made it; empty if its name does not say."""
        return self.listed.rpartition("/")[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OldLayout:
    """The lists and configs of a file in the layout of Keras 2.

    Attributes:
        filepath: Its name for messages.
        model_config: The config of the model; `None` if the file holds weights only.
        training_config: How it was compiled; `None` if it was not.
        keras_version: Of the Keras that wrote it.
        backend: The backend it ran on.
        layers: The weights of each top-level layer, in the order of the model; those of a
            nested model are one list.
        top_level: The weights that the model itself owns; `None` where old versions of
            Keras do not say.
        optimizer: The variables of the optimizer.
    """

    filepath: str
    model_config: dict[str, Any] | None
    training_config: dict[str, Any] | None
    keras_version: str
    backend: str
    layers: Mapping[str, tuple[Weight, ...]]
    top_level: tuple[Weight, ...] | None = None
    optimizer: tuple[Weight, ...] = ()

    @property
    def optimizer_class(self) -> str:
        """The class of the optimizer; empty if the file does not say."""
        told = (self.training_config or {}).get("optimizer_config")
        name = told.get("class_name") if isinstance(told, dict) else None
        return str(name or "").rpartition(">")[2]
