"""Read the state of every saveable of a model from a file into place.

`capture` mirrors it: variables and assets of each saveable in the order of the walk, then
what Keras itself does not store.
"""

import contextlib
import math
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tiedio.errors import FileFormatError, LoadError, TiedioError, TiedioWarning, first_line, listed
from tiedio.formats.hdf5_reader import Store, WeightsFile, damaged
from tiedio.model.places import find_generators, find_places
from tiedio.model.walk import Visit
from tiedio.record.record import Record
from tiedio.record.ties import Place
from tiedio.saving.capture import find_stored, listed_only, shapes_to_store
from tiedio.saving.deferral import Deferral

# Bytes that any tensor may have, however small the model's are.
_ROOM = 1 << 20


class Restoration:
    """Reads the state of saveables into place, and remembers what failed.

    Args:
        weights: The file.
        assets: Folder with the assets, which need not exist; `None` to leave them as they are.
        record: The record of the file, if it has one.
        deferral: The variables that have no value yet.
    """

    def __init__(
        self, weights: WeightsFile, assets: Path | None, record: Record | None, deferral: Deferral
    ):
        self._weights = weights
        self._assets = assets
        self._record = record
        self._deferral = deferral
        self._read_by_record = read_by_record(record)
        self._failed: dict[str, Exception] = {}
        self._unreadable: FileFormatError | None = None
        self._unresumed: list[LoadError] = []

    def read(self, visits: Sequence[Visit]) -> None:
        """Reads the state of these saveables; all of their variables have values then."""
        for visit in visits:
            with self._noting(visit.inner_path or "the model"):
                self._read_one(visit)
        self._deferral.finish()
        places = find_places(visits)
        incomplete = find_incomplete(self._record, places)
        stored = {place for place, _ in find_stored(visits) if place.inner_path in incomplete}
        for place in self._record.exact_values if self._record else ():
            if place in places and place.dataset_path and place not in stored:
                with self._noting(str(place)):
                    places[place][1].assign(self._weights.read(place.dataset_path))
        generators = find_generators(visits)
        for random_state in self._record.random_states if self._record else ():
            place = random_state.places[0]
            if place in generators:
                with self._noting(str(place)):
                    generators[place][1].state.assign(np.array(random_state.state))

    def _read_one(self, visit: Visit) -> None:
        if hasattr(visit.saveable, "load_own_variables"):
            store = self._weights.store(visit.inner_path)
            begun = self._record.optimizer_variables if self._record else {}
            if begun.get(visit.inner_path, ()) is None and not len(store):
                return  # an optimizer that starts anew
            error = self._record and slots_error(visit.inner_path, visit.saveable, store)
            if error:
                self._unresumed.append(error)
            elif visit.inner_path not in self._read_by_record:
                self._deferral.load(visit.saveable, store)
        if hasattr(visit.saveable, "load_assets") and self._assets and self._assets.exists():
            folder = self._assets / visit.inner_path
            visit.saveable.load_assets(str(folder) if folder.exists() else None)

    @contextlib.contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileFormatError as error:
            # A damaged tensor: there may be more.
            self._unreadable = self._unreadable or error
        except TiedioError:
            raise
        except Exception as error:  # the code of layers may raise anything
            self._failed[name] = error

    def finish(self, strict: bool) -> None:
        """Raises what failed.

        Raises:
            FileFormatError: If tensors are damaged; all are named.
            LoadError: If something could not be read.
        """
        if self._weights.damaged or self._unreadable:
            names = self._weights.find_damaged()
            if self._unreadable and len(names) < 2:
                raise self._unreadable
            raise damaged(self._weights.filepath, names, "others") from self._unreadable
        if self._failed:
            first, cause = next(iter(self._failed.items()))
            error = LoadError(
                f"Cannot load the state of {listed(self._failed)}.\n"
                f"Received, for `{first}`: {first_line(cause)}\n"
                "Load the file with the same classes, in the version it was saved with."
            )
            error.__cause__ = cause
            self._unresumed.insert(0, error)
        for error in self._unresumed:
            report(error, strict)


def read_by_record(record: Record | None) -> set[str]:
    """Finds the layers that list what they did not store: some would miss it when reading."""
    return {
        place.inner_path
        for place in (record.exact_values if record else ())
        if listed_only(place.attribute)
        and not str(place.dataset_path).startswith(f"{place.inner_path}/vars/".lstrip("/"))
    }


def nothing_stored(
    visits: Iterable[Visit], record: Record | None, weights: WeightsFile
) -> LoadError | None:
    """The error for what has variables, and nothing in the file."""
    by_record = read_by_record(record)
    lacking = {
        visit.inner_path or "the model": f"{count} variables, received 0 variables"
        for visit in visits
        if visit.inner_path not in by_record
        and not len(weights.store(visit.inner_path))
        and hasattr(visit.saveable, "save_own_variables")
        and (count := len(shapes_to_store(visit.saveable)))
    }
    return unloadable(lacking, f"`{weights.filepath}` has none for them")


def unloadable(expected: Mapping[str, str], why: str) -> LoadError | None:
    """The error for layers of which something else is expected than the file has, if any are."""
    if not expected:
        return None
    told = "; ".join(f"`{name}`: expected {expected[name]}" for name in sorted(expected))
    return LoadError(
        f"Cannot load the weights of {listed(expected)}: {why}.\n"
        f"Received: {told}.\n"
        "Build the model as it was when saved, or pass `skip_mismatch=True`."
    )


def find_incomplete(record: Record | None, places: Container[Place]) -> set[str]:
    """Finds the layers that lack some exact value: what they stored themselves holds them all.

    So a kernel into which LoRA was merged, in a model without LoRA.
    """
    exact_values = record.exact_values if record else ()
    return {p.inner_path for p in exact_values if p not in places} - read_by_record(record)


def slots_error(inner_path: str, saveable: Any, store: Store) -> LoadError | None:
    """Compares what an optimizer holds with what is stored, before any of it is changed."""
    if not isinstance(saveable, keras.optimizers.Optimizer):
        return None
    expected = [tuple(variable.shape) for variable in saveable.variables]
    received = store.shapes()
    if received == expected:
        return None
    return LoadError(
        f"Cannot resume `{inner_path}`: its variables are not those of the file.\n"
        f"Expected: {len(expected)} of shapes {sorted(set(expected))}. "
        f"Received: {len(received)} of shapes {sorted(set(received))}.\n"
        "Load the file in the version it was saved with, or pass `strict=False`."
    )


def make_room(weights: WeightsFile, model: keras.Model) -> None:
    """Lets a tensor declare as many bytes as the largest of the model has."""
    largest = max((math.prod(variable.shape) for variable in model.variables), default=0)
    weights.room = _ROOM + 8 * largest


def report(error: Exception | None, strict: bool) -> None:
    """Raises, or with `strict=False` warns, that something cannot be restored."""
    if error and strict:
        raise error
    if error:
        warnings.warn(str(error), TiedioWarning, stacklevel=4)
