"""One load of a file into a model, step by step: for whole models and for weights, of every format.

build      the model of the file; or go `into` one that exists
describe   the record of the file, in the attributes of the model, whoever wrote it
fit        of a model that exists: what it keeps, and all that can be known to fail
retie      sharing, order and flags; a model that was built for this is compiled after it
read       values; then `resume`: optimizers are built, and read, for what is shared by then
finish     what failed, and functions that were compiled for other variables

`capture` mirrors `read`: variables and assets of each saveable in the order of the walk, then
what Keras itself does not store.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tiedio.errors import FileFormatError, LoadError, NoModelError
from tiedio.formats import damage
from tiedio.formats.content import Opened
from tiedio.formats.store import Store
from tiedio.model import process_random, renewal, several
from tiedio.model.visits import Visit
from tiedio.model.walk import Walk, walk
from tiedio.record.record import Record
from tiedio.saving import (
    fitting,
    inference,
    keras2_record,
    optimizers,
    retying,
    shared_objects,
    stored_places,
    unresumable,
)
from tiedio.saving.capture import unreached_error
from tiedio.saving.configs import Config
from tiedio.saving.deferral import Deferral
from tiedio.saving.keras2_config import OldConfig
from tiedio.saving.reports import Reports
from tiedio.saving.several import ModelsConfig


class Loading:
    """The load of a file into a model. The steps are its methods, in their order.

    Args:
        source: The file.
        deferral: The variables of the model that have no value yet.
        reports: What takes the errors.
        skipped: Saveables that are left as they are.

    Attributes:
        model: The model: built for this and not compiled, or one that exists.
    """

    def __init__(
        self,
        source: Opened,
        deferral: Deferral,
        reports: Reports,
        skipped: Sequence[Any] = (),
    ):
        self.model: Any = None
        self._reports = reports
        self._source = source
        self._weights = source.weights
        self._deferral = deferral
        self._skipped = skipped
        self._exists = False
        self._written: Record | None = None
        self._record = Record()
        self._walk = Walk(())
        self._assets: Path | None = None
        self._unresumable: tuple[str, ...] = ()
        self._moved: dict[str, str] = {}  # paths of the model, to those of the file
        self._stored_at: dict[str, str] = {}  # likewise, of optimizers

    def _look(self) -> Walk:
        """Walks over the saveables that are to be loaded, as they are now."""
        self._walk = self._located(self._skipped)
        return self._walk

    @property
    def _everything(self) -> Walk:
        """All saveables of the model, as they are now."""
        return self._located(()) if self._skipped else self._walk

    def _located(self, skipped: Iterable[Any]) -> Walk:
        found = walk(self.model, skipped)
        if self._source.is_by_position:
            return found
        return inference.located(inference.renamed(found, self._moved), self._weights)

    def build(self, config: Config | ModelsConfig | OldConfig) -> None:
        """Builds the model of the file, uncompiled and without values."""
        if isinstance(config, OldConfig):
            self._reports.described(config.problem())
        try:
            self.model = config.build(self._deferral)
        except NoModelError:
            self._weights.check_sizes()  # Keras, which may be asked next, does not
            raise

    def into(self, model: keras.Model) -> None:
        """Takes a model that exists."""
        self.model = model
        self._exists = True

    def describe(
        self, written: Record | None, by_name: bool = False, skip_mismatch: bool = False
    ) -> None:
        """Finds out what the file says of this model.

        Args:
            written: The record in the file, if it has one.
            by_name: Whether layers are found by their names, where a file has them in an order.
            skip_mismatch: Whether to leave out those that do not fit there.
        """
        self._weights.make_room([math.prod(variable.shape) for variable in self.model.variables])
        if written and self._exists and not self._source.is_by_position:
            self._moved = inference.by_name(walk(self.model), written)
        found = self._look()
        self._written = written
        if written and self._weights.digests:  # the file is to be verified
            try:
                added = list(damage.added(self._weights, written))
            except FileFormatError as error:  # raised once all that is damaged is known
                self._reports.unreadable = error
            else:
                if error := damage.error_of(self._weights.filepath, added):
                    raise error
        old = self._source.old_layout
        if old is None:
            told = inference.of_model(written, found, self._weights)
            self._record = stored_places.beside_what_is_shown(told, found)
            return
        self._written = None  # whose paths are others
        matches, left_out = keras2_record.fitting(self.model, old, by_name, skip_mismatch)
        self._reports.warnings += map(str, left_out)
        self._record = keras2_record.recorded(found, old, matches, self._weights)
        if self._exists:
            self._record = keras2_record.in_use(self._record, found, old)

    def fit(self) -> None:
        """Fits the record to a model that exists, and checks it; nothing is changed."""
        weights, described = self._weights, self._record
        by_position = self._source.is_by_position
        also = [str(p.dataset_path) for p in described.exact_values] if by_position else []
        if paths := weights.find_damaged(also):
            raise damage.error_at(weights.filepath, paths, "others")
        if self._reports.unreadable:
            raise self._reports.unreadable
        left_out = _paths(self._everything) - _paths(self._walk)
        if not by_position:
            self._reports.described(unreached_error(self._everything, LoadError, "load"))
        self._record = fitting.fitted(described, self._walk, left_out)
        self._record, error = fitting.without_state(self._record, weights, self._walk)
        self._reports.unresumed(error)
        if not by_position:
            self._record, error = fitting.without_lora(self._record, weights, self._walk)
            self._reports.described(error)
        self._reports.mismatch(fitting.nothing_stored(self._walk, self._record, self._source))
        differing = fitting.other_shapes(self._walk, self._record, self._source)
        self._reports.mismatching.update(differing)
        self._reports.described(fitting.misfit(self._walk, self._record, differing))
        self._reports.described(fitting.unbuilt(self._walk, self._record, self._source))
        self._reports.mismatch(fitting.unfit(self._walk, self._record, weights, exists=True))
        shapes_must_match = ": their shapes must match the model"
        self._reports.mismatch(fitting.unloadable(differing, shapes_must_match))
        self._reports.unresumed(retying.generators_error(self._walk, self._record))
        self._check_values(described)
        if not by_position and (error := fitting.conflict(self._record, weights, self._walk)):
            raise error
        if self._written:
            self._reports.described(inference.unrecorded_links(self._walk, weights, self._record))
        self._record = retying.restorable(self._walk, self._record)
        retying.check_optimizers(self._walk, self._record)
        self._find_optimizers()
        self._leave_unresumable(described)

    def _leave_unresumable(self, then: Record) -> None:
        """Leaves optimizers as they are that cannot go on as the file says."""
        found = unresumable.find(
            self._record,
            self._stored,
            self._walk,
            self._everything,
            then=then,
            in_other_order=self._in_other_order,
        )
        self._reports.unresumed(*found.values())
        self._unresumable = tuple(f"{path}/" for path in found)
        trained = self._record.optimizer_variables.items()
        resumable = {path: places for path, places in trained if path not in found}
        self._record = dataclasses.replace(self._record, optimizer_variables=resumable)

    def _check_values(self, record: Record) -> None:
        """Raises an error if the file has several values for what it shares."""
        if self._source.is_by_position:  # whose values `keras2_record` has compared
            return
        if error := retying.disagreement(self._walk, record, self._weights):
            weights = self._weights
            if paths := weights.find_damaged():  # which says better where it is
                raise damage.error_at(weights.filepath, paths, "others") from error
            raise error

    def retie(self) -> None:
        """Restores what layers share."""
        retied = retying.retie(
            self._walk, self._look, self._record, weights=self._weights, in_use=self._exists
        )
        self._deferral.forget(retied.replaced)
        self._reports.warnings += retied.warnings
        if not self._exists:  # `fit` has told what does not fit, but for what only LoRA has
            if retied.error:  # the cause of which may be this
                self._reports.mismatch(
                    fitting.left_unbuilt(self._look(), self._record, self._source)
                )
            self._reports.described(retied.error)

    def read(self, assets: Path | None = None) -> None:
        """Reads the state of all but optimizers into place; every variable has a value then.

        Args:
            assets: Folder with the assets, which need not exist; `None` to leave them as they are.
        """
        found, record = self._look(), self._record
        by_position = self._source.is_by_position
        if not self._exists:
            self._check_values(record)
            self._reports.mismatch(fitting.nothing_stored(found, record, self._source))
            self._reports.described(unreached_error(found, LoadError, "load"))
            self._reports.mismatch(fitting.unfit(found, record, self._weights))
        self._assets = assets
        left_out = set() if by_position else stored_places.read_by_record(record, found)
        if self._exists:
            left_out |= fitting.find_unbuilt(found)
        for visit in found.parts:
            with self._reports.reading(found.label(visit.inner_path)):
                is_left_out = by_position or visit.inner_path in left_out
                self._load(visit, None if is_left_out else self._weights.store(visit.inner_path))
        self._assign_exact_values()
        with self._reports.reading("values on a card"):
            self._deferral.settle()
        if not self._reports.has_failed:
            self._reports.mismatch(fitting.without_value(self._walk))
        self._deferral.finish()
        if by_position:  # layers have not loaded themselves
            for layer in found.layers.values():
                if hasattr(layer, "finalize_state") and layer.weights:
                    layer.finalize_state()
        shared_objects.restore_generators(found, record)

    def _assign_exact_values(self) -> None:
        """Reads the variables of which their layer stores another value, or none."""
        found, record = self._walk, self._record
        incomplete = stored_places.find_incomplete(record, found)
        stored = incomplete and {p for p in found.stored_places if p.inner_path in incomplete}
        assigned = set()
        for place in record.exact_values:
            held = found.places.get(place) or found.raw.get(place)
            if held is None or not place.dataset_path or place in stored:
                continue
            if id(held.item) not in assigned:  # a shared one has equal values at all of its places
                assigned.add(id(held.item))
                name = str(found.place(place.inner_path, place.attribute))
                with self._reports.reading(name):
                    _assign(held.item, self._weights.read_once(place.dataset_path))

    def resume(self, compiled: bool = True, wanted: bool = True) -> None:
        """Builds optimizers for the variables that are shared by now, and reads their state.

        Args:
            compiled: Whether the model is compiled.
            wanted: Whether it is wanted compiled; it needs no optimizer if not.
        """
        source, old = self._source, self._source.old_layout
        if not self._exists:
            if shared_objects.share_optimizers(self._walk, self._record):
                self._look()
            self._find_optimizers()
            if not self._reports.strict:  # otherwise training stops where it had stopped
                self._leave_unresumable(self._record)
        if old is None:
            trained = self._record.optimizer_variables or len(source.store("optimizer"))
            is_trained = not self._exists or trained
        elif self._exists:
            is_trained = bool(self._record.optimizer_variables)
        elif not compiled:
            return
        else:
            is_trained = len(old.optimizer) > len(self.model.optimizer.variables)
        record = self._record
        if self._in_other_order:
            record = optimizers.in_order_of_model(self._walk, record, self._everything)
        if is_trained:
            rebuilt, error = optimizers.match_optimizers(
                self._walk, record, self._deferral, self._everything if self._exists else None
            )
            if error and wanted and not compiled:  # as Keras leaves classes with their `compile`
                self._reports.note(error)
            elif compiled and not self._exists:
                self._reports.described(error)
            if rebuilt:
                self._look()
        if self._exists:
            self._reports.warnings += optimizers.decays_otherwise(
                self._walk, self._record, self._everything
            )
        else:
            with self._reports.reading("optimizer", training=True):  # it may be code of its own
                optimizers.exclude_from_weight_decay(self._walk, self._record)
        reordered = {}
        if self._in_other_order:
            reordered = optimizers.reordered(
                self._walk, self._record, self._everything, lambda path: self._stored(path).store
            )
        for visit in self._walk.optimizer_parts:
            with self._reports.reading(self._walk.label(visit.inner_path), training=True):
                self._resume(visit, reordered.get(visit.inner_path))
        with self._reports.reading("optimizer", training=True):
            self._deferral.settle()
        self._deferral.finish()

    def _find_optimizers(self) -> None:
        """Finds where the file has each optimizer, and what it says of them."""
        if self._source.is_by_position:
            return
        self._stored_at = optimizers.stored_at(self._walk, self._weights)
        here = {stored: inner_path for inner_path, stored in self._stored_at.items()}
        excluded = self._record.excluded_from_weight_decay
        excluded = {here.get(path, path): places for path, places in excluded.items()}
        self._record = dataclasses.replace(self._record, excluded_from_weight_decay=excluded)

    @property
    def _in_other_order(self) -> bool:
        return bool(self._moved) or (self._exists and self._source.is_by_position)

    def _stored(self, inner_path: str) -> unresumable.StoredState:
        """Returns what the file has for an optimizer."""
        store = self._source.store(self._stored_at.get(inner_path, inner_path))
        unrecorded = None if self._written else self._source
        return unresumable.StoredState(self._walk.label(inner_path), store, unrecorded)

    def _resume(self, visit: Visit, reordered: Store | LoadError | None) -> None:
        path, stored = visit.inner_path, self._stored(visit.inner_path)
        by_position = self._source.is_by_position
        starts_anew = self._record.optimizer_variables.get(path, ()) is None
        may_lack = self._exists or by_position or starts_anew or path in self._stored_at
        is_left = may_lack and not len(stored.store)
        is_untold = by_position and starts_anew
        if f"{path}/".startswith(self._unresumable) or is_untold or is_left:
            return
        if isinstance(reordered, LoadError):
            error = reordered
        else:
            stored = stored if reordered is None else dataclasses.replace(stored, store=reordered)
            error = stored.error_for(visit.saveable)
            if error and stored.unrecorded and not stored.has_begun:
                return
        if error and not (self._written and self._written.tells_of(path)):
            self._reports.note(error)  # as it is no fault of the file's that it does not tell
        elif error:
            self._reports.unresumed(error)
        self._load(visit, None if error else stored.store)

    def _load(self, visit: Visit, store: Store | None) -> None:
        """Lets a saveable load what is stored for it, if that is asked for, and its assets."""
        if store is not None and hasattr(visit.saveable, "load_own_variables"):
            self._deferral.load(visit.saveable, store)
        if hasattr(visit.saveable, "load_assets") and self._assets and self._assets.exists():
            folder = self._assets / visit.inner_path
            visit.saveable.load_assets(str(folder) if folder.exists() else None)

    def finish(self) -> None:
        """Tells what failed, and renews what was compiled for other variables.

        Raises:
            FileFormatError: If tensors are damaged; all are named.
        """
        self._reports.finish(self._weights)
        if self._written and not self._exists:
            self._reports.described(
                inference.unrecorded_links(self._walk, self._weights, self._record)
            )
        self._deferral.finish()
        for model in several.each(self.model):
            renewal.renew_functions(model)

    def go_on_drawing(self, random_state: bool | None) -> None:
        """Lets the generators of the process go on as when saved, or tells that they do not."""
        self._reports.warnings += process_random.go_on(
            several.each(self.model),
            self._walk,
            self._written.process_random_states if self._written else {},
            random_state,
            filepath=self._source.filepath,
            call=f"tiedio.load_tied{'_weights' * self._exists}",
        )


def _assign(item: Any, value: np.ndarray) -> None:
    """Gives a variable its value: one of Keras, or of the backend."""
    if hasattr(item, "assign"):
        item.assign(value)
    else:  # of torch, whose module must keep the object
        item.data.copy_(keras.ops.convert_to_tensor(value))


def _paths(found: Walk) -> set[str]:
    return {path for visit in found.visits for path in visit.inner_paths}
