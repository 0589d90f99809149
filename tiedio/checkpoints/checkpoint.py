"""A file of Keras as named variables, wherever its layout keeps them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiedio.checkpoints import stated_ties
from tiedio.checkpoints.stated_ties import Tie
from tiedio.checkpoints.values import Values
from tiedio.checkpoints.variables import StoredVariable, Tensors
from tiedio.formats.content import OldLayout
from tiedio.keras_versions import optimizer_slots
from tiedio.keras_versions.config_translation import Translated
from tiedio.keras_versions.keras_version import KerasVersion
from tiedio.keras_versions.optimizer_slots import Slots
from tiedio.record.record import Record
from tiedio.record.ties import Place, TransposedTie


@dataclasses.dataclass(kw_only=True)
class Checkpoint:
    """A file of Keras, open for reading.

    Attributes:
        filepath: Its name for messages.
        kind: What it is, in words.
        keras_version: The version that wrote it; empty if it does not say.
        tensors: Reads what it stores.
        translated: The config of the model as Keras 3 reads it; empty if there is none.
        variables: The variables of its layers.
        is_ordered: Whether they are in the order of the model.
        layout_ties: Ties that its layout states.
        slots: The state of its optimizer; `None` if it has none, or is not understood.
        record: The record, if it has one.
        metadata: Its metadata, the record included.
        left_out: Notes on parts that are not read.
        others: Its other tensors: the paths where Keras 3 would store them, to those here.
        groups: Attributes of its groups, by their paths in the layout of Keras 3.
        links: Second paths of groups, to the first ones: a layer that is used in several places.
        extract_assets: Puts its assets below a folder.
        verify: Reads all of it; `FileFormatError` if anything is not as it was saved.
        old_layout: Its lists and configs in the layout of Keras 2, if it has that.
        is_of_keras: Whether a config can say where its variables belong.
    """

    filepath: str
    kind: str
    keras_version: str
    tensors: Tensors
    translated: Translated
    variables: Sequence[StoredVariable] = ()
    is_ordered: bool = False
    layout_ties: Sequence[Tie] = ()
    slots: Slots | None = None
    record: Record | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    left_out: Sequence[str] = ()
    others: Mapping[str, str] = dataclasses.field(default_factory=dict)
    groups: Mapping[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    links: Mapping[str, str] = dataclasses.field(default_factory=dict)
    extract_assets: Callable[[Path], None] = lambda folder: None
    verify: Callable[[], None] = lambda: None
    old_layout: OldLayout | None = None
    is_of_keras: bool = True

    @property
    def version(self) -> KerasVersion:
        return KerasVersion(self.keras_version)

    @property
    def config(self) -> dict[str, Any] | None:
        """The config of the model as Keras 3 reads it; `None` if there is none."""
        return self.translated.config or None

    @property
    def optimizer(self) -> Mapping[str, Any] | None:
        """The config of the optimizer, as Keras 3 reads it."""
        return optimizer_slots.of_model(self.config)

    @property
    def is_model(self) -> bool:
        """Whether Keras 3 can load it as a whole model, with all of its variables."""
        is_known = self.config is not None and not self.translated.untranslated
        return is_known and not self.is_by_position

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user."""
        none = "It holds no weights: its model has none, or was saved before it was built."
        found = (*self.translated.notes, *self.left_out, *self.translated.untranslated)
        return found if self.variables else (*found, none)

    @functools.cached_property
    def values(self) -> Values:
        """The values of its variables, compared with one another when asked for."""
        return Values(self.tensors)

    @functools.cached_property
    def by_name(self) -> dict[str, StoredVariable]:
        return {variable.name: variable for variable in self.variables}

    @functools.cached_property
    def ties(self) -> list[Tie]:
        """The ties that it states: in a record, by hard links, by names or a graph."""
        return list(stated_ties.stated(self))

    @functools.cached_property
    def owners(self) -> dict[str, str]:
        """The name of the owner of each variable that is tied, by the variable's name."""
        return stated_ties.joined(self.ties)

    @functools.cached_property
    def transposed_ties(self) -> list[TransposedTie]:
        """The variables that its layers show transposed, by name as all of its variables.

        One that it does not store is called what its record calls it.
        """
        record = self.record or Record()
        names = {one.source: one.name for one in self.variables}

        def named(place: Place) -> Place:
            return dataclasses.replace(place, name=names.get(place.dataset_path or "", place.name))

        ties = map(record.named, record.transposed_ties)
        return [tie.at([*map(named, tie.places)]) for tie in ties]

    @functools.cached_property
    def untied(self) -> list[StoredVariable]:
        """Its variables without those that are tied to another one, or show one transposed."""
        copies = {place.dataset_path for tie in self.transposed_ties for place in tie.aliases}
        return [
            one
            for one in self.variables
            if self.owners.get(one.name, one.name) == one.name and one.source not in copies
        ]

    @functools.cached_property
    def is_by_position(self) -> bool:
        """Whether it does not tell where Keras 3 would store all of its variables."""
        return any(one.place is None for one in self.variables)

    @property
    def is_of_keras_3(self) -> bool:
        """Whether it is laid out as Keras 3 does, and not by its predecessors."""
        return self.old_layout is None and self.version.is_of_keras_3
