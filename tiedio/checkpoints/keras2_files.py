"""See a file in the layout of Keras 2 as a checkpoint: it lists weights by position.

Names in it are those that variables were made with. So a name that is another layer's tells
of a tie, and a weight that is missing in a list as well.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from tiedio.checkpoints.checkpoint import Checkpoint
from tiedio.checkpoints.given_ties import owner_given
from tiedio.checkpoints.stated_ties import Evidence, Tie
from tiedio.checkpoints.variables import StoredVariable, named_once
from tiedio.errors import FileFormatError, OptionNeededError, listed
from tiedio.formats.content import OldLayout, Opened, Weight
from tiedio.keras_versions import layer_outline, optimizer_slots
from tiedio.keras_versions.config_translation import Translated
from tiedio.keras_versions.layer_outline import Part
from tiedio.keras_versions.optimizer_slots import Slots
from tiedio.record.ties import Place

# The number of a name that was taken.
_TAKEN = re.compile(r"_\d+$")

# What Keras 3 calls otherwise than Keras 2.
_RENAMED = {"depthwise_kernel": "kernel", "u": "vector_u", "sn_u": "vector_u"}


@dataclasses.dataclass(frozen=True)
class _Expected:
    """A variable that a layer has by its config."""

    part: Part
    number: int
    name: str
    trainable: bool | None

    @property
    def path(self) -> str:
        return f"{self.part.name}/{self.name}"

    def stored(self, weight: Weight, opened: Opened) -> StoredVariable:
        inner_path, number = self.part.inner_path, str(self.number)
        place = Place(inner_path, number, f"{inner_path}/vars/{number}")
        return StoredVariable.of(
            weight, opened.weights, self.path, place=place, trainable=self.trainable
        )


def described(
    opened: Opened, translated: Translated, kind: str, given: Sequence[tuple[str, str]]
) -> Checkpoint:
    """Describes a file.

    Args:
        opened: The file, which has this layout.
        translated: The config of its model.
        kind: What it is, in words.
        given: What is tied, and to what, as `given_ties.parsed` reads it.

    Raises:
        OptionNeededError: If weights are missing, and nothing says what they are tied to.
    """
    old = cast(OldLayout, opened.old_layout)
    has_values = bool(old.top_level or any(old.layers.values()))
    parts = layer_outline.layers(translated.config) if has_values else {}
    variables, ties = _variables(opened, old, parts, given)
    return Checkpoint(
        filepath=old.filepath,
        kind=kind,
        keras_version=old.keras_version,
        tensors=opened.weights,
        variables=list(named_once(variables)),
        is_ordered=all(one.place for one in variables),
        layout_ties=ties,
        slots=_slots(old),
        translated=translated,
        record=opened.read_record(verify=False),
        groups={
            f"{part.inner_path}/vars": {"name": part.layer}
            for held in parts.values()
            for part in held
        },
        old_layout=old,
    )


def _slots(old: OldLayout) -> Slots | None:
    if not old.optimizer:
        return optimizer_slots.NONE
    told = (old.training_config or {}).get("optimizer_config")
    known = isinstance(told, dict)
    return optimizer_slots.read(told, old.optimizer, old.keras_version) if known else None


def _variables(
    opened: Opened,
    old: OldLayout,
    parts: Mapping[str, Sequence[Part]],
    given: Sequence[tuple[str, str]],
) -> tuple[list[StoredVariable], list[Tie]]:
    """Lists the variables, and the ties of those that are not listed again."""
    variables: list[StoredVariable] = []
    ties: list[Tie] = []
    unresolved: list[str] = []
    for layer, weights in old.layers.items():
        places = _expected(parts.get(layer, ()), weights)
        assigned = _assigned(places, weights) if places else None
        if places is None or assigned is None:
            variables += _by_name(layer, weights, old, opened)
            continue
        variables += (one.stored(weight, opened) for one, weight in assigned.items())
        for missing in [one for one in places if one not in assigned]:
            owner = _owner_of(missing, assigned, given)
            if owner is None:
                unresolved.append(missing.path)
                continue
            one = dataclasses.replace(missing.stored(assigned[owner], opened), listed="")
            variables.append(one)
            why = f"`{layer}` does not list it again"
            ties.append(Tie((owner.path, one.name), Evidence.FINGERPRINT, why))
    for number, weight in enumerate(old.top_level or ()):
        own = _Expected(Part("", "", ""), number, weight.listed, None)
        variables.append(own.stored(weight, opened))
    if empty := [one for one in unresolved if not old.layers[one.partition("/")[0]]]:
        raise FileFormatError(
            f"`{old.filepath}` has no values of {listed(empty)}.\n"
            "Expected: a value for every variable. Received: no value of their layers.\n"
            "Save the model again, with its weights."
        )
    if unresolved:
        raise OptionNeededError(
            f"`{old.filepath}` has no values of {listed(unresolved)}.\n"
            "Expected: a value for every variable. Received: fewer, as several were tied inside "
            "one nested model.\n"
            f'Say to `plan` or `migrate` what they are tied to: `--tie "{unresolved[0]}=..."`.',
            *(f'--tie "{one}=..."' for one in unresolved),
        )
    return variables, ties


def _expected(parts: Sequence[Part], weights: Sequence[Weight]) -> list[_Expected] | None:
    """Lists the variables of a layer in the order of this layout, if its config tells.

    Those that are trained come first, of all of its parts, then the others.
    """
    unknown = [part for part in parts if part.variables is None]
    known = sum(len(part.variables or ()) for part in parts)
    if not parts or len(unknown) > 1 or (unknown and _has_parts(unknown[0], weights)):
        return None
    names = {
        part: part.variables
        if part.variables is not None
        else tuple(map(str, range(max(len(weights) - known, 0))))
        for part in parts
    }
    places = [
        _Expected(part, number, name, name in part.trainable if part not in unknown else None)
        for part in parts
        for number, name in enumerate(names[part])
    ]
    places.sort(key=lambda one: one.trainable is False)
    return None if len(weights) > len(places) else places


def _has_parts(part: Part, weights: Sequence[Weight]) -> bool:
    """Whether a layer of a class that is not known seems to be made of others."""
    return any(part.layer in weight.maker.split("/")[:-1] for weight in weights)


def _assigned(
    places: Sequence[_Expected], weights: Sequence[Weight]
) -> dict[_Expected, Weight] | None:
    """Assigns the weights of a list to variables, as it lists them; `None` if names deny it.

    Fewer weights than variables were listed once each: what a layer's name leads is its own.
    """
    assigned: dict[_Expected, Weight] = {}
    left = dict.fromkeys(places)
    known = {one.name for one in places}
    for number, weight in enumerate(weights):
        named = _last(weight) in known
        fitting = [one for one in left if one.name == _last(weight)] if named else []
        if len(places) == len(weights):
            # A variable that took another's place may be listed behind those of its layer.
            here = places[number]
            near = [one for one in fitting if _kin(one) == _kin(here)]
            own = near if named else [here]
            if not own or own[0] not in left:
                return None
        else:
            makers = weight.maker.split("/")
            own = [one for one in fitting if one.part.layer in makers] or fitting
        if own:
            assigned[own[0]] = weight
            del left[own[0]]
    return assigned


def _kin(one: _Expected) -> tuple[Part, bool]:
    """A key of variables that are listed in a row, without another layer's in between."""
    return one.part, one.trainable is False


def _owner_of(
    missing: _Expected, assigned: Mapping[_Expected, Weight], given: Sequence[tuple[str, str]]
) -> _Expected | None:
    """Finds the variable that a missing one was tied to, if there is only one that fits."""
    fitting = [
        one
        for one in assigned
        if one.name == missing.name
        and one.part.class_name == missing.part.class_name
        and _sizes(one.part) == _sizes(missing.part)
    ]
    if owner := owner_given(missing.path, given):
        fitting = [one for one in assigned if one.path == owner]
    return fitting[0] if len(fitting) == 1 else None


def _sizes(part: Part) -> list[str]:
    sizes = ("units", "filters", "kernel_size", "input_dim", "output_dim", "num_heads", "key_dim")
    return [str(part.config.get(size)) for size in sizes]


def _by_name(
    layer: str, weights: Sequence[Weight], old: OldLayout, opened: Opened
) -> Iterator[StoredVariable]:
    """Names weights by what their list says only: where Keras 3 stores them is not known."""
    # A layer that made one of its weights contains no layers: what others made is tied.
    is_made_of_others = all(one.maker.split("/")[-1] != layer for one in weights)
    for weight in weights:
        *makers, name = weight.listed.split("/")
        if layer in makers:  # what stands before is the model that was built around it
            makers = makers[makers.index(layer) + 1 :]
        elif not is_made_of_others or not old.layers.keys().isdisjoint(makers):
            makers = []  # another layer made it
        yield StoredVariable.of(weight, opened.weights, "/".join((layer, *makers, name)))


def _last(weight: Weight) -> str:
    name = _TAKEN.sub("", weight.listed.rpartition("/")[2])
    return _RENAMED.get(name, name)
