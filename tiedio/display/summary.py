"""`summary`: what a live model, or a file, shares, as a table."""

import math
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tiedio.record.ties import TieGroup

from tiedio.display import printing
from tiedio.record.report import Report, bytes_of
from tiedio.storage.locating import at
from tiedio.tools import inspection


def summary(
    model_or_filepath: Any,
    line_length: int | None = None,
    print_fn: Callable[[str], Any] | None = None,
    *,
    verbose: bool = False,
) -> None:
    """Prints which variables a model, or a file, shares, and what that saves.

    Each tie group has a row, with the owner first; variables are named by the layers that lead
    to them. Of names that count up, the first and the last one stand for all, as in `block_0 …
    block_59`; so do tie groups. Layers that stand in several places follow. A notebook shows it
    as HTML. `tiedio.find_ties` returns the tie groups of a model.

    Args:
        model_or_filepath: A model or any layer, or several by name; or a file that any version
            of Keras from 2.0 on wrote: a path, a URL or an open file. That is read without Keras.
            Equal copies in it are not looked for, as by `tiedio inspect`.
        line_length: Columns of the table, as in `keras.Model.summary`. Default: those of the
            terminal; elsewhere, lines are as long as names are.
        print_fn: Called with each line, instead of printing it.
        verbose: Whether to list every name, and every tie group.

    Raises:
        ArgumentError: If something else is passed than a layer, layers by name, or a file.
        MissingFileError: If there is no such file.
        FileFormatError: If the file is not one of Keras, or damaged.

    Example:

    >>> import keras, tiedio
    >>> encoder, decoder = (keras.layers.Dense(4, name=name) for name in ("encoder", "decoder"))
    >>> model = keras.Sequential([keras.Input((4,)), encoder, decoder], name="autoencoder")
    >>> _ = tiedio.tie(decoder, to=encoder, weights=("kernel",))
    >>> tiedio.summary(model)
    Tied variables of "autoencoder"
    ┏━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━┳━━━━━━━━━━┳━━━━━━━━━━━┓
    ┃ tied             ┃ shape, dtype ┃ saves    ┃ trainable ┃
    ┡━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━╇━━━━━━━━━━╇━━━━━━━━━━━┩
    │ encoder/kernel = │ (4, 4)       │ 64 bytes │ yes       │
    │ decoder/kernel   │ float32      │          │           │
    └──────────────────┴──────────────┴──────────┴───────────┘
    1 tie group of 2 variables; to store and hold them once saves 64 bytes.
    """
    if isinstance(model_or_filepath, Mapping) or _is_layer(model_or_filepath):
        name, found = _sharing(model_or_filepath)
        saves = "; to store and hold them once saves {}."
    else:
        name, found = at(model_or_filepath).name, inspection.sharing(model_or_filepath)
        saves = ", which makes the file {} smaller."  # it may have copies for stock Keras
    told = _report(name, found, saves, is_whole=verbose)
    console = printing.console_for(line_length, print_fn)
    if console.is_jupyter and not (line_length or print_fn):
        printing.in_notebook(told)
        return
    printing.report(told, console)
    if print_fn:
        for line in console.file.getvalue().splitlines():
            print_fn(line)


def _report(name: str, found: inspection.Sharing, saves: str, *, is_whole: bool) -> Report:
    """Says what a model shares, or a file, or several models if it has no name."""
    groups, layers, models = found
    *others, last = (f'"{one}"' for one in ([name] if name else models))
    subject = f"{', '.join(others)} and {last}" if others else last
    places = [inspection.in_places(names, models, is_whole=is_whole) for names in layers]
    if groups:
        total = sum(len(group.names) for group in groups)
        return [
            f"Tied variables of {subject}",
            inspection.groups_table("tied", "saves", groups, is_whole=is_whole),
            f"{len(groups)} tie group{'s'[: len(groups) > 1]} of {total:,} variables"
            + saves.format(bytes_of(sum(group.nbytes for group in groups))),
            *places,
        ]
    if layers:
        return [f"Shared in {subject}:", *places]
    return [f"{subject} {'have' if others else 'has'} no tied variables."]


def _is_layer(model_or_filepath: Any) -> bool:
    # Who has a layer has imported Keras, which takes seconds.
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model_or_filepath, keras.Layer)


def _sharing(model: Any) -> tuple[str, inspection.Sharing]:
    from tiedio.model.arguments import as_one
    from tiedio.model.walk import walk

    model = as_one(model)
    found = walk(model)
    shared_layers = [[found.label(path) for path in paths] for paths in found.shared_layers]
    name = "" if found.models else model.name
    ties = [_group(one) for one in (*found.ties, *found.transposed_ties)]
    return name, (ties, shared_layers, [*found.models])


def _group(group: "TieGroup") -> inspection.Group:
    # A layer that knows its variable by two attributes would hold it once anyway.
    spared = len({place.inner_path for place in group.places}) - 1
    return inspection.Group(
        names=group.names,
        shape=group.shape,
        dtype=group.dtype,
        evidence=(),
        nbytes=spared * math.prod(group.shape) * np.dtype(group.dtype).itemsize,
        trainable=group.trainable,
    )
