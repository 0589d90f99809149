"""One load of a file into a model, step by step: for whole models and for weights, of every format.

build      the model of the file; or go `into` one that exists
describe   the record of the file, in the attributes of the model, whoever wrote it
fit        of a model that exists: what it keeps, and all that can be known to fail
retie      sharing, order and flags; a model that was built for this is compiled after it
read       values; then `resume`: optimizers are built, and read, for what is shared by then
finish     what failed, and functions that were compiled for other variables
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import keras

from tiedio.errors import FileFormatError, NoModelError
from tiedio.formats import damage
from tiedio.formats.content import Opened
from tiedio.formats.hdf5_reader import damaged
from tiedio.model import renewal
from tiedio.model.walk import Visit, Walk, walk
from tiedio.record.record import Record
from tiedio.saving import fitting, inference, keras2_record, retying
from tiedio.saving.configs import Config
from tiedio.saving.deferral import Deferral
from tiedio.saving.keras2_config import OldConfig
from tiedio.saving.optimizers import match_optimizers
from tiedio.saving.restoration import Restoration, make_room, nothing_stored


class Loading:
    """The load of a file into a model. The steps are its methods, in their order.

    Args:
        source: The file.
        deferral: The variables of the model that have no value yet.
        strict: Whether it is an error if ties or training state cannot be restored.
        skipped: Saveables that are left as they are.

    Attributes:
        model: The model: built for this and not compiled, or one that exists.
        warnings: What was given up, where it is no error.
    """

    def __init__(
        self,
        source: Opened,
        deferral: Deferral,
        *,
        strict: bool,
        skipped: Sequence[Any] = (),
    ):
        self.model: Any = None
        self.warnings: list[str] = []
        self._source = source
        self._weights = source.weights
        self._deferral = deferral
        self._strict = strict
        self._skipped = skipped
        self._written: Record | None = None
        self._record = Record()
        self._exists = False
        self._unreadable: FileFormatError | None = None
        self._unresumable: set[str] = set()
        self._latest: Walk | None = None  # none once it is untrue

    @property
    def _walk(self) -> Walk:
        """The saveables that are to be loaded, as they are now."""
        if self._latest is None:
            self._latest = self._located(self._skipped)
        return self._latest

    @property
    def _everything(self) -> Walk:
        """All saveables of the model, as they are now."""
        return self._located(()) if self._skipped else self._walk

    def _located(self, skipped: Iterable[Any]) -> Walk:
        found = walk(self.model, skipped)
        return found if self._source.is_by_position else inference.located(found, self._weights)

    def _again(self) -> Walk:
        self._latest = None
        return self._walk

    def report(self, error: Exception | None) -> None:
        """Raises, or with `strict=False` notes, that something cannot be restored."""
        if error and self._strict:
            raise error
        if error:
            self.warnings.append(str(error))

    def build(self, config: Config | OldConfig) -> None:
        """Builds the model of the file, uncompiled and without values."""
        self.report(config.problem())
        try:
            self.model = config.build(self._deferral)
        except NoModelError:
            self._weights.check_sizes()  # Keras, which may be asked next, does not
            raise
        make_room(self._weights, self.model)

    def into(self, model: keras.Model) -> None:
        """Takes a model that exists."""
        self.model = model
        self._exists = True
        make_room(self._weights, model)

    def describe(
        self, written: Record | None, matches: Sequence[keras2_record.Match] | None = None
    ) -> None:
        """Finds out what the file says of this model.

        Args:
            written: The record in the file, if it has one.
            matches: What is for which layer, if that is not told by order.
        """
        self._written = written
        if written and self._weights.digests:  # the file is to be verified
            try:
                added = list(damage.added(self._weights, written))
            except FileFormatError as error:  # raised once all that is damaged is known
                self._unreadable = error
            else:
                if error := damage.error_of(self._weights.filepath, added):
                    raise error
        old = self._source.old_layout
        if old is None:
            self._record = inference.of_model(written, self._walk, self._weights)
        else:
            if matches is None:
                matches, _ = keras2_record.fitting(self.model, old)
            self._record = keras2_record.recorded(self._walk, old, matches, self._weights)
            if self._exists:
                # Its optimizer is left alone, and may know variables by their order.
                self._record = dataclasses.replace(self._record, layers={})

    def fit(self) -> None:
        """Fits the record to a model that exists, and checks it; nothing is changed."""
        weights, described = self._weights, self._record
        by_position = self._source.is_by_position
        also = [str(p.dataset_path) for p in described.exact_values] if by_position else []
        if paths := weights.find_damaged(also):
            raise damaged(weights.filepath, paths, "others")
        if self._unreadable:
            raise self._unreadable
        left_out = _paths(self._everything) - _paths(self._walk)
        self._record = fitting.fitted(described, self._walk, left_out)
        for error in fitting.check(self._record, self._source, self._walk):
            self.report(error)
        self._check_values(described)
        if not by_position and (error := fitting.conflict(self._record, weights, self._walk)):
            raise error
        if self._written:
            self.report(inference.unrecorded_links(self._walk, weights, self._record))
        unresumable = fitting.find_unresumable(self._record, weights, self._walk, self._everything)
        for error in unresumable.values():
            self.report(error)
        self._unresumable = set(unresumable)
        trained = self._record.optimizer_variables.items()
        resumable = {path: places for path, places in trained if path not in unresumable}
        self._record = dataclasses.replace(self._record, optimizer_variables=resumable)

    def _check_values(self, record: Record) -> None:
        """Raises an error if the file has several values for what it shares."""
        if self._source.is_by_position:  # whose values `keras2_record` has compared
            return
        if error := retying.disagreement(self._walk, record, self._weights):
            raise error

    def retie(self) -> None:
        """Restores what layers share."""
        retied = retying.retie(
            self._walk,
            self._again,
            self._record,
            weights=self._weights,
            deferral=self._deferral,
            in_use=self._exists,
        )
        self._latest = None
        self.warnings += retied.warnings
        if not self._exists:  # `fit` has told what does not fit, but for what only LoRA has
            self.report(retied.error)

    def read(self, assets: Path | None = None) -> None:
        """Reads the state of all but optimizers into place.

        Args:
            assets: Folder with the assets; `None` to leave them as they are.
        """
        known = self._record if self._written or self._source.is_by_position else None
        if not self._exists:
            self._check_values(self._record)
            self.report(nothing_stored(self._walk, known, self._source))
        self._restoration = Restoration(self._source, assets, known, self._deferral)
        self._restoration.read(self._walk)

    def resume(self, compiled: bool = True) -> None:
        """Builds optimizers for the variables that are shared by now, and reads their state.

        Args:
            compiled: Whether the model is compiled; it needs no optimizer if not.
        """
        source, record = self._source, self._record
        if source.old_layout is not None:
            if self._exists or not compiled:  # Keras leaves the optimizer alone there
                return
            record = keras2_record.with_optimizer(record, source.old_layout, self.model.optimizer)
        if not self._exists or record.optimizer_variables or len(source.store("optimizer")):
            replaced, error = match_optimizers(
                self._walk, record, self._deferral, self._everything if self._exists else None
            )
            self.report(error if compiled and not self._exists else None)
            if replaced:
                self._latest = None
        self._restoration.resume(filter(self._is_resumed, self._walk.optimizer_parts))

    def _is_resumed(self, visit: Visit) -> bool:
        stored = len(self._source.store(visit.inner_path)) > 0
        if self._source.is_by_position:  # which lists what is inside an optimizer as its own
            return stored and visit.inner_path in self._walk.optimizers
        left = tuple(f"{path}/" for path in self._unresumable)
        return not self._exists or (stored and not f"{visit.inner_path}/".startswith(left))

    def finish(self) -> None:
        """Tells what failed, and renews what was compiled for other variables."""
        for error in self._restoration.failures():
            self.report(error)
        if self._unreadable:
            raise self._unreadable
        if self._written and not self._exists:
            self.report(inference.unrecorded_links(self._walk, self._weights, self._record))
        self._deferral.finish()
        renewal.renew_functions(self.model)


def _paths(found: Walk) -> set[str]:
    return {path for visit in found.visits for path in visit.inner_paths}
