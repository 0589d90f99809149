"""Read the state of every saveable of a model from a file into place.

`capture` mirrors it: variables and assets of each saveable in the order of the walk, then
what Keras itself does not store.
"""

import contextlib
import math
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tiedio.errors import FileFormatError, LoadError, TiedioError, first_line, listed
from tiedio.formats.content import Opened
from tiedio.formats.hdf5_reader import Store, WeightsFile, damaged
from tiedio.model.walk import Visit, Walk
from tiedio.record.record import Record
from tiedio.record.ties import Place
from tiedio.saving.capture import listed_only
from tiedio.saving.deferral import Deferral

# Bytes that any tensor may have, however small the model's are.
_ROOM = 1 << 20


class Restoration:
    """Reads the state of saveables into place, and remembers what failed.

    Args:
        source: The file.
        assets: Folder with the assets, which need not exist; `None` to leave them as they are.
        record: The record of the file, if it has one.
        deferral: The variables that have no value yet.
    """

    def __init__(
        self, source: Opened, assets: Path | None, record: Record | None, deferral: Deferral
    ):
        self._source = source
        self._weights = source.weights
        self._assets = assets
        self._record = record
        self._deferral = deferral
        self._read_by_record = read_by_record(record)
        self._failed: dict[str, Exception] = {}
        self._unreadable: FileFormatError | None = None
        self._unresumed: list[LoadError] = []

    def read(self, walk: Walk) -> None:
        """Reads the state of all but optimizers; every variable has a value then."""
        for visit in walk.parts:
            with self._noting(walk.label(visit.inner_path)):
                if not self._source.is_by_position and visit.inner_path not in self._read_by_record:
                    self._load(visit, self._weights.store(visit.inner_path))
                self._load_assets(visit)
        self._assign_exact_values(walk)
        self._deferral.finish()
        if self._source.is_by_position:
            _finalize(walk)
        for random_state in self._record.random_states if self._record else ():
            place = random_state.places[0]
            if place in walk.generators:
                with self._noting(str(walk.place(place.inner_path, place.attribute))):
                    walk.generators[place].item.state.assign(np.array(random_state.state))

    def _assign_exact_values(self, walk: Walk) -> None:
        """Reads the variables of which their layer stores another value, or none."""
        exact_values = self._record.exact_values if self._record else ()
        incomplete = find_incomplete(self._record, walk.places)
        stored = (
            {place for place in walk.stored_places if place.inner_path in incomplete}
            if incomplete
            else ()
        )
        assigned = set()
        for place in exact_values:
            held = walk.places.get(place)
            if held is None or not place.dataset_path or place in stored:
                continue
            if id(held.item) not in assigned:  # a shared one has equal values at all of its places
                assigned.add(id(held.item))
                with self._noting(str(walk.place(place.inner_path, place.attribute))):
                    held.item.assign(self._weights.read_once(place.dataset_path))

    def resume(self, visits: Iterable[Visit]) -> None:
        """Reads the state of optimizers."""
        for visit in visits:
            with self._noting(visit.inner_path):
                store = self._source.store(visit.inner_path)
                begun = self._record.optimizer_variables if self._record else {}
                if begun.get(visit.inner_path, ()) is None and not len(store):
                    continue  # it starts anew
                error = self._record and slots_error(
                    visit.inner_path, visit.saveable, store, self._source.is_by_position
                )
                if error:
                    self._unresumed.append(error)
                elif visit.inner_path not in self._read_by_record:
                    self._load(visit, store)
                self._load_assets(visit)
        self._deferral.finish()

    def _load(self, visit: Visit, store: Store) -> None:
        if hasattr(visit.saveable, "load_own_variables"):
            self._deferral.load(visit.saveable, store)

    def _load_assets(self, visit: Visit) -> None:
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

    def failures(self) -> list[LoadError]:
        """Lists an error for each thing that could not be read.

        Raises:
            FileFormatError: If tensors are damaged; all are named.
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
            return [error, *self._unresumed]
        return self._unresumed


def read_by_record(record: Record | None) -> set[str]:
    """Finds the layers that list what they did not store: some would miss it when reading."""
    return {
        place.inner_path
        for place in (record.exact_values if record else ())
        if listed_only(place.attribute)
        and not str(place.dataset_path).startswith(f"{place.inner_path}/vars/".lstrip("/"))
    }


def nothing_stored(walk: Walk, record: Record | None, source: Opened) -> LoadError | None:
    """The error for what has variables, and nothing in the file."""
    if source.is_by_position:  # whose lists were compared already
        return None
    by_record = read_by_record(record)
    lacking = {
        walk.label(visit.inner_path): f"{count} variables, received 0 variables"
        for visit in walk.parts
        if visit.inner_path not in by_record
        and not len(source.store(visit.inner_path))
        and (count := len(walk.stored.get(visit.inner_path, ())))
    }
    return unloadable(lacking, f"`{source.filepath}` has none for them")


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


def slots_error(
    inner_path: str, saveable: Any, store: Store, is_by_position: bool = False
) -> LoadError | None:
    """Compares what an optimizer holds with what is stored, before any of it is changed.

    Args:
        inner_path: Where the optimizer is.
        saveable: The optimizer; anything else has no slots.
        store: What is stored for it.
        is_by_position: Whether the file lists what it stores, as Keras 2 does.
    """
    if not isinstance(saveable, keras.optimizers.Optimizer):
        return None
    expected = [tuple(variable.shape) for variable in saveable.variables]
    received = store.shapes()
    if received == expected:
        return None
    advice = "Load the file in the version it was saved with, or pass `strict=False`."
    if is_by_position:
        advice = (
            "The model may have had ties or flags that this format does not keep: pass "
            "`strict=False` to start the optimizer anew, or `compile=False`."
        )
    return LoadError(
        f"Cannot resume `{inner_path}`: its variables are not those of the file.\n"
        f"Expected: {len(expected)} of shapes {sorted(set(expected))}. "
        f"Received: {len(received)} of shapes {sorted(set(received))}.\n{advice}"
    )


def make_room(weights: WeightsFile, model: keras.Model) -> None:
    """Lets a tensor declare as many bytes as the largest of the model has."""
    largest = max((math.prod(variable.shape) for variable in model.variables), default=0)
    weights.room = _ROOM + 8 * largest


def _finalize(walk: Walk) -> None:
    """Lets layers take up what they computed from their variables, as normalization does."""
    for layer in walk.layers.values():
        if hasattr(layer, "finalize_state") and layer.weights:
            layer.finalize_state()
