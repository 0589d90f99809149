"""A backup: the weights of a model, and in the same file where its training run is.

One file, as it is replaced at once: whoever is killed leaves a run that is that of its weights.
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tiedio.errors import MissingFileError, warn
from tiedio.formats import hdf5_writer, table
from tiedio.formats.content import Content
from tiedio.formats.hdf5_reader import WeightsFile
from tiedio.model.own_state import to_numpy
from tiedio.model.walk import walk
from tiedio.record.json_fields import Fields, parse
from tiedio.record.ties import Place
from tiedio.saving import inference, several
from tiedio.saving.background import Buffer, buffer_for, catch_up, write
from tiedio.saving.capture import capture, metadata
from tiedio.storage.locating import at

# As tensors, not in the record: they have digests, and no layer has such a path.
GROUP = "tiedio_run"
_RUN = f"{GROUP}/state"
_WEIGHTS = GROUP + "/weights/{}/{}"


@dataclasses.dataclass(frozen=True)
class Run:
    """What a backup holds of a training run, beside the model.

    Attributes:
        state: What JSON can say.
        weights: Further values for `variables`, in that order, by name: the best ones, say.
            `None` where a file has others than those of the model.
        variables: The variables of the model that is trained.
    """

    state: Mapping[str, Any]
    weights: Mapping[str, Sequence[np.ndarray] | None]
    variables: Sequence[Any]


def save_backup(
    model: keras.Model,
    filepath: Any,
    run: Run,
    strict: bool = True,
    background: bool | Buffer = False,
) -> None:
    """Saves weights as `save_tied_weights` does, and a run.

    Raises:
        SaveError: As from `save_tied_weights`.
    """
    target = at(filepath)
    found = walk(model)
    layout, record, lost = capture(found, None, strict=strict)
    held = [found.places_of.get(id(variable), [])[:1] for variable in run.variables]
    places = [place.to_json() for one in held for place in one]
    text = json.dumps({"state": run.state, "weights": list(run.weights), "places": places})
    layout.groups[hdf5_writer.NO_VARIABLES.format(GROUP)] = {}
    layout.tensors[_RUN] = hdf5_writer.Tensor.of(np.frombuffer(text.encode(), "uint8"))
    for name, values in enumerate(run.weights.values()):
        stored = [value for value, one in zip(values or (), held, strict=False) if one]
        for number, value in enumerate(stored):
            path = _WEIGHTS.format(name, number)
            layout.tensors[path] = hdf5_writer.Tensor.of(to_numpy(value))
    container = table.format_to_save(target, holds_model=False)
    content = Content(layout, record, metadata())
    buffer = buffer_for(background, model)
    if not buffer:
        catch_up()  # with what the run knows of them: a checkpoint that is the best one, say
    write(container, target, content, durable=True, buffer=buffer)
    warn(lost)


def load_run(model: keras.Model, filepath: Any, variables: Sequence[Any]) -> Run | None:
    """Returns the run in a backup that the model has just loaded, `None` if it has none.

    Args:
        model: The model, or `Models`.
        filepath: The backup.
        variables: The variables of the model that is trained.

    Raises:
        FileFormatError: If it is damaged, where `load_tied_weights` could not tell.
    """
    with contextlib.suppress(MissingFileError), table.reading(at(filepath)) as source:
        record = source.read_record(verify=False)  # what was loaded has been
        if record is None or source.weights.address(_RUN) is None:
            return None
        text = source.weights.read(_RUN).tobytes()
        fields = Fields(parse(source.filepath, _RUN, text), "a run")
        found = walk(several.as_saved(model, record.models, source))
        moved = inference.by_name(found, record)
        held = inference.located(inference.renamed(found, moved), source.weights).places
        # By their places: a model may list them in another order than that of the file.
        numbers = {
            id(held[place].item): number
            for number, place in enumerate(fields.each("places", Place.from_json))
            if place in held
        }
        weights = {
            name: _values(variables, source.weights, index, numbers)
            for index, name in enumerate(fields.get("weights", list))
        }
        return Run(fields.get("state", dict), weights, variables)
    return None


def _values(
    variables: Sequence[Any], file: WeightsFile, index: int, numbers: Mapping[int, int]
) -> list[np.ndarray] | None:
    paths = [_WEIGHTS.format(index, numbers.get(id(variable))) for variable in variables]
    fits = all(
        file.address(path) and file.shape(path) == tuple(variable.shape)
        for path, variable in zip(paths, variables, strict=True)
    )
    return [*map(file.read, paths)] if fits else None
