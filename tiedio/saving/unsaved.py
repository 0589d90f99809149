"""What training uses of a model, and its file does not say: told where the model is saved."""

import json
import re
from collections.abc import Iterator
from typing import Any

import keras

from tiedio.errors import listed
from tiedio.model.walk import Walk
from tiedio.record.record import Record

# What a policy of Keras for quantized layers says in a config, and no other does.
_SOURCE = '"source_name"'

# What a layer asks of its variables when it makes them, and a script may set on them later.
_WISHES = ("regularizer", "constraint")


def warnings_for(walk: Walk, config: Any, record: Record, has_old_layout: bool) -> Iterator[str]:
    """Yields a warning for each kind of it.

    Args:
        walk: The model.
        config: Its config.
        record: The record of the file.
        has_old_layout: Whether the file has the layout of Keras 2, which has no place for that.
    """
    if quantized := list(_quantized_inside(walk, config)):
        yield (
            f"{listed(quantized)} are quantized, and the config of the layer around them does "
            "not say so: neither Keras nor tiedio can build this model from the file. Build it, "
            "quantize it by `tiedio.quantize_tied`, and load the file by "
            "`tiedio.load_tied_weights`; or leave them out by `filters` when quantizing."
        )
    by_hand = sorted(_set_by_hand(walk))
    if by_hand:
        yield (
            f"{listed(by_hand)} of this model were set on variables, where no config of a layer "
            "says so: after loading they are as the layers make them. Pass them to the layers, "
            "or set them again after loading."
        )
    if has_old_layout and record.excluded_from_weight_decay:
        yield (
            "A file in the layout of Keras 2 does not say what "
            f"{listed(record.excluded_from_weight_decay)} excludes from weight decay: after "
            "loading, that decays all. Save to `.keras`."
        )


def _quantized_inside(walk: Walk, config: Any) -> Iterator[str]:
    """Yields the quantized layers that other layers made, if the config tells of fewer than all.

    So those in a `MultiHeadAttention`, which Keras makes anew, and does not quantize.
    """
    quantized = [p for p, layer in walk.layers.items() if getattr(layer, "quantization_mode", None)]
    if not quantized or len(quantized) <= json.dumps(config).count(_SOURCE):
        return
    for path in quantized:
        around = (walk.layers.get(path[: slash.start()]) for slash in re.finditer("/", path))
        holders = [layer for layer in around if layer is not None]
        if holders and not isinstance(holders[-1], (keras.Model, keras.layers.Wrapper)):
            yield walk.label(path)


def _set_by_hand(walk: Walk) -> Iterator[str]:
    """Yields what differs from what layers of Keras ask for; of others it cannot be known."""
    for places in walk.places_of.values():
        variable = walk.places[places[0]].item
        holders = [walk.places[place].layer for place in places]
        if not all(type(layer).__module__.split(".")[0] == "keras" for layer in holders):
            continue
        if any(getattr(layer, "quantization_mode", None) for layer in holders):
            continue  # which makes variables of its own
        names = [name for name in _WISHES if _is_other(variable, name, holders)]
        if getattr(variable, "overwrite_with_gradient", False):
            names.append("overwrite_with_gradient")
        yield from (f"{places[0]}.{name}" for name in names)


def _is_other(variable: Any, wish: str, holders: list[Any]) -> bool:
    value = getattr(variable, wish)
    if value is None:
        return all(getattr(layer, f"{variable.name}_{wish}", None) for layer in holders)
    return not any(value is asked for layer in holders for asked in vars(layer).values())
