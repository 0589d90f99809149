"""Make one again of the layers, optimizers and seed generators that were one object when saved."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tiedio.formats.hdf5_reader import WeightsFile
from tiedio.model import substitution
from tiedio.model.substitution import facts_of
from tiedio.model.walk import Walk, walk
from tiedio.record.record import Record


def share_layers(
    model: Walk, shared_layers: Sequence[Sequence[str]], weights: WeightsFile
) -> tuple[bool, dict[str, str]]:
    """Makes one object of the layers that the record shares; whether any were two."""
    problems: dict[str, str] = {}
    pairs = []
    for first, *others in shared_layers:
        new = model.by_path.get(first)
        for inner_path in others:
            old = model.by_path.get(inner_path)
            if new is None or old is None:
                missing = first if new is None else inner_path
                problems[model.label(missing)] = "no such layer"
            elif old is new:
                continue
            elif _kind(old) != _kind(new):
                problems[model.label(inner_path)] = f"another layer than `{model.label(first)}`"
            elif _holds(old, new) or _holds(new, old):
                problems[model.label(inner_path)] = f"inside or around `{model.label(first)}`"
            elif weights.disagreements(weights.twins(first, inner_path)):
                problems[model.label(inner_path)] = (
                    f"stored with other values than `{model.label(first)}`"
                )
            else:
                pairs.append((old, new))
    substitution.substitute_layers(pairs, model.layers.values())
    return bool(pairs), problems


def share_optimizers(model: Walk, record: Record) -> bool:
    """Gives models one optimizer that had one when saved; whether any had two."""
    shares_anew = False
    for first, *others in record.shared_optimizers:
        optimizer = model.optimizers.get(first)
        for inner_path in others if optimizer else ():
            holder, _, attribute = inner_path.rpartition("/")
            if model.optimizers.get(inner_path) is not None and holder in model.layers:
                setattr(model.layers[holder], attribute, optimizer)
                shares_anew = True
    return shares_anew


def _kind(layer: keras.Layer) -> tuple[type, list[str]]:
    return type(layer), [facts_of(variable) for variable in layer.weights]


def _holds(layer: keras.Layer, part: keras.Layer) -> bool:
    return any(visit.saveable is part for visit in walk(layer).visits)


def share_generators(found: Walk, record: Record) -> bool:
    """Makes one seed generator of those that the record shares; whether any were two."""
    shares_anew = False
    for random_state in record.random_states:
        first, *others = random_state.places
        for place in others:
            if place in found.generators and first in found.generators:
                layer, generator = found.generators[place]
                shared = found.generators[first].item
                if generator is not shared:
                    substitution.substitute(layer, generator, shared)
                    shares_anew = True
    return shares_anew


def restore_generators(found: Walk, record: Record) -> None:
    """Gives seed generators the state that they had; those of another kind keep theirs."""
    for random_state in record.random_states:
        place = next((p for p in random_state.places if p in found.generators), None)
        state = place and found.generators[place].item.state
        if state is not None and fits(random_state.state, state):
            state.assign(np.array(random_state.state))


def fits(words: Sequence[int], state: Any) -> bool:
    """Whether a seed generator of this kind may have had this state."""
    limits = np.iinfo(keras.backend.standardize_dtype(state.dtype))
    return (len(words),) == tuple(state.shape) and all(
        limits.min <= word <= limits.max for word in words
    )
