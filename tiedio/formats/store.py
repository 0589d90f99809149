"""What a weights file stores for one saveable, as Keras' `load_own_variables` expects it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tiedio.formats.arrays import Stored
from tiedio.formats.device_memory import DeviceMemory

if TYPE_CHECKING:
    from tiedio.formats.hdf5_reader import WeightsFile


class Unread:
    """A tensor that is read when its place is known, straight to there.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
    """

    def __init__(self, file: "WeightsFile", dataset_path: str):
        self.shape = file.shape(dataset_path)
        self.dtype = file.dtype(dataset_path)
        self._file = file
        self._path = dataset_path

    def begin_to_read(self, memory: DeviceMemory) -> Callable[[], None]:
        """Begins to read it into memory of a card; returns what waits for the end."""
        return self._file.begin_to_read(self._path, memory)

    def read(self) -> Stored:
        """Reads it into memory of the host."""
        return self._file.read_once(self._path)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._file.read(self._path), dtype)


class Store(Mapping[str, np.ndarray]):
    """The arrays of one saveable, as `load_own_variables` expects them.

    Args:
        file: The file.
        paths: The dataset_path of each array by its name.
        read: Reads an array, by its dataset_path.
    """

    def __init__(self, file: "WeightsFile", paths: Mapping[str, str], read: Any = None):
        self._file = file
        self._paths = paths
        self._read = read or file.read

    def shared(self, unread_from: float = math.inf) -> "Store":
        """Returns the same arrays as `Stored`: a tensor with several paths is one array.

        Args:
            unread_from: Bytes from which on they are `Unread` instead.
        """

        def read(dataset_path: str) -> Stored | Unread:
            return self._file.read_once(dataset_path, unread_from)

        return Store(self._file, self._paths, read)

    def renumbered(self, names: Sequence[str]) -> "Store":
        """Returns arrays that are named by number, in the order of the names they have here."""
        paths = {str(number): self._paths[name] for number, name in enumerate(names)}
        return Store(self._file, paths, self._read)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each array by its name; those named by number in their order."""
        names = sorted(self._paths, key=lambda name: (len(name), name))
        try:
            return {name: self._file.shape(self._paths[name]) for name in names}
        except KeyError as error:
            raise self._file.error(f"has no array at `{error.args[0]}`", "a group") from error

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read(self._paths[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
