"""What tiedio adds to the checkpoints of Orbax, and finds out where it was not added.

Keras keeps a tree of the values of variables, by the paths that these have. A tied variable is in
it once, and nothing says where else it belongs; and paths depend on how many models were made
before. So a record is added, and which leaf is which dataset of a weights file.
"""

import collections
import contextlib
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tiedio.errors import LoadError, SaveError, listed, warn
from tiedio.formats.content import Opened
from tiedio.formats.hdf5_writer import Layout
from tiedio.formats.orbax_folder import PLACING, VALUES, Placing
from tiedio.model.walk import Walk, walk
from tiedio.record.record import Record
from tiedio.record.ties import METADATA_KEY
from tiedio.saving import several
from tiedio.saving.capture import capture, metadata
from tiedio.saving.deferral import Deferral, unnoticed
from tiedio.saving.reports import Reports

# The parts of Keras' tree that tiedio tells apart; metrics begin anew with each epoch.
_WEIGHTS = "trainable_variables", "non_trainable_variables"
_OPTIMIZER, _METRICS = "optimizer_variables", "metrics_variables"
_SEED = "/seed_generator_state"
_NUMBER = re.compile(r"_\d+$")

Shapes = Mapping[str, tuple[int, ...]]  # of variables, or leaves, by their paths


def addition(model: keras.Model, weights_only: bool, strict: bool) -> dict[str, Any]:
    """Returns what is stored beside the tree that Keras makes of a model.

    Args:
        model: The model.
        weights_only: Whether the state of optimizers is left out.
        strict: As for `save_tied`.

    Raises:
        SaveError: If something would be lost, or two variables have one path; all are named.
    """
    parts = _WEIGHTS if weights_only else (*_WEIGHTS, _OPTIMIZER, _METRICS)
    if repeated := _repeated(model, parts):
        raise SaveError(
            "Cannot save to an Orbax checkpoint: Keras has one path for several variables.\n"
            f"Expected: a path for each. Received: {repeated}.\n"
            "Give the layers names of their own; or save with `tiedio.TiedModelCheckpoint`, as "
            "some optimizers have one name for several variables."
        )
    leaves = _leaves(model, parts)
    layout, record, lost = _captured(model, weights_only, strict)
    warn(lost)
    leaf_of = {id(variable): leaf for leaf, variable in leaves.items()}
    placed, values = {}, {}
    for path, tensor in layout.tensors.items():
        leaf = leaf_of.get(id(tensor.source))
        if leaf is None:  # of no variable, or one that Keras does not list
            name = str(len(values))
            leaf, values[name] = f"{METADATA_KEY}/{VALUES}/{name}", tensor.read()
        placed[path] = leaf, tensor.dtype.name
    placing = dataclasses.replace(
        _placing(layout, record, placed, leaves),
        metadata=metadata(),
        config=None if weights_only else several.write(model),
    )
    return {PLACING: placing.to_json(), VALUES: values}


def place(
    source: Opened, model: keras.Model, reports: Reports, skipped: Iterable[Any] = ()
) -> None:
    """Finds which leaf is which dataset, where nothing in a checkpoint says so, by a model.

    Its record is then that of the model, with the seeds of the checkpoint.

    Args:
        source: The checkpoint; nothing is done if it says so.
        model: The model that it is loaded into, or one like it. Its optimizer is built.
        reports: Takes the errors for an optimizer that is another one, and for seeds that cannot
            be told from each other.
        skipped: What is not loaded, the optimizer perhaps.

    Raises:
        LoadError: If leaves and variables do not belong to each other one by one; all are named.
    """
    unplaced = source.unplaced
    if unplaced is None:
        return
    variables, matched = _matched_weights(source, model, unplaced.leaves)
    slots, optimizer = _shapes(unplaced.leaves, _OPTIMIZER), getattr(model, "optimizer", None)
    trained = bool(slots and optimizer) and not any(one is optimizer for one in skipped)
    if trained:
        held, found, error = _matched_slots(source, model, slots)
        variables, matched, trained = variables | held, matched | found, not error
        reports.unresumed(error)
    layout, record, _ = _captured(model, not trained, strict=False)
    leaf_of = {id(variables[path]): leaf for path, leaf in matched.items()}
    placed = {
        path: (leaf_of[id(tensor.source)], tensor.dtype.name)
        for path, tensor in layout.tensors.items()
        if id(tensor.source) in leaf_of
    }
    generators = walk(model).generators
    seeds = {state: generators[state.places[0]].item.state for state in record.random_states}
    if lacking := [str(one.places[0]) for one, seed in seeds.items() if id(seed) not in leaf_of]:
        reports.unresumed(
            LoadError(
                f"Cannot resume the seeds of {listed(lacking)} from `{source.filepath}`.\n"
                "Expected: a record that tells them from each other. Received: none.\n"
                "Save with `tiedio.TiedOrbaxCheckpoint`, which records them."
            )
        )
    random_states = tuple(
        dataclasses.replace(one, state=tuple(map(int, unplaced.leaves[leaf_of[id(seed)]])))
        for one, seed in seeds.items()
        if id(seed) in leaf_of
    )
    record = dataclasses.replace(record, random_states=random_states, process_random_states={})
    unplaced.place(_placing(layout, record, placed, unplaced.leaves))


def place_by_config(source: Opened, config: Any, reports: Reports, compiled: bool) -> None:
    """Does the same for a whole model: one more is made of its config, to look at."""
    with unnoticed(), Deferral(source.weights.size) as deferral:
        model = config.build(deferral)
        if compiled:
            config.compile(model, deferral)
        deferral.finish()
        place(source, model, reports)


def _captured(
    model: keras.Model, weights_only: bool, strict: bool
) -> tuple[Layout, Record, list[str]]:
    found = walk(model)
    saved = Walk(found.parts) if weights_only else found
    return capture(saved, None, found, strict=strict, stock_readable=False, by_orbax=True)


def _placing(
    layout: Layout,
    record: Record,
    placed: Mapping[str, tuple[str, str]],
    leaves: Iterable[str],
) -> Placing:
    used = {leaf for leaf, _ in placed.values()}
    return Placing(
        record=record.to_json(),
        groups=layout.groups,
        links=layout.links,
        leaves=placed,
        others=tuple(leaf for leaf in leaves if leaf not in used),
    )


def _leaves(model: keras.Model, parts: Iterable[str]) -> dict[str, Any]:
    """Maps the leaves of the tree that Keras makes of a model to their variables."""
    return {f"{part}/{variable.path}": variable for part in parts for variable in _in(model, part)}


def _in(model: keras.Model, part: str) -> list[Any]:
    if part == _OPTIMIZER:
        return model.optimizer.variables if getattr(model, "optimizer", None) else []
    return getattr(model, part)


def _repeated(model: keras.Model, parts: Iterable[str]) -> str:
    """Tells which paths several variables have, or lead through another's; empty if none."""
    found = set()
    for part in parts:
        paths = sorted(f"{variable.path}/" for variable in _in(model, part))
        pairs = itertools.pairwise(paths)
        found |= {path.removesuffix("/") for path, after in pairs if after.startswith(path)}
    return f"{listed(found)} more than once" if found else ""


def _check_names(source: Opened, model: keras.Model, shapes: Shapes) -> None:
    """Refuses names that Keras gave by number, in an order that no config tells.

    Raises:
        LoadError: If variables of one shape have paths that differ in such numbers; all are named.
    """
    config = source.config
    with contextlib.suppress(NotImplementedError):  # from a class without a config
        config = config or model.get_config()
    names = set(_names(config or {}))
    alike = collections.defaultdict(list)
    for path, shape in shapes.items():
        parts = [part if part in names else _NUMBER.sub("", part) for part in path.split("/")]
        alike[tuple(parts), shape].append(path)
    if ambiguous := [path for paths in alike.values() if len(paths) > 1 for path in paths]:
        raise LoadError(
            f"Cannot load `{source.filepath}`: Keras numbered {listed(ambiguous)} as they were "
            "made, and no config says in which order.\n"
            "Expected: names that the config has. Received: others.\n"
            "Save with `tiedio.TiedOrbaxCheckpoint`, which records what is what."
        )


def _names(config: Any) -> Iterator[str]:
    """Yields all names in a config."""
    items = config.items() if isinstance(config, dict) else enumerate(config)
    for key, value in items:
        if key == "name" and isinstance(value, str):
            yield value
        elif isinstance(value, (dict, list)):
            yield from _names(value)


def _matched_weights(
    source: Opened, model: keras.Model, leaves: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the weights, and the leaf of each; of seeds, only if there is one.

    Raises:
        LoadError: If variables, or leaves, are left over; all are named.
    """
    variables = _leaves(model, _WEIGHTS)
    # Generators are numbered in a process, whatever layer holds them: their paths tell nothing.
    both = [_shapes(held, *_WEIGHTS) for held in (variables, leaves)]
    seeds = [[path for path in shapes if path.endswith(_SEED)] for shapes in both]
    here, there = map(_without, both, seeds)
    found = _matched(here, there)
    if received := _repeated(model, _WEIGHTS) or _left_over(here, there, found):
        raise LoadError(
            f"Cannot load `{source.filepath}`: nothing in it says what was tied, and its leaves "
            "are not the variables of this model.\n"
            f"Expected: a leaf for each variable. Received: {received}.\n"
            "Tie the model as it was when it was saved, and load the weights into it; or save with "
            "`tiedio.TiedOrbaxCheckpoint`, which records ties."
        )
    _check_names(source, model, here)
    if len(seeds[0]) == len(seeds[1]) == 1:
        found |= dict(zip(*seeds, strict=True))
    return variables, found


def _matched_slots(
    source: Opened, model: Any, slots: Shapes
) -> tuple[dict[str, Any], dict[str, str], LoadError | None]:
    """Returns the variables of the optimizer, the leaf of each, and what if they are others."""
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    held = _leaves(model, [_OPTIMIZER])
    found = _matched(_shapes(held, _OPTIMIZER), slots)
    received = _repeated(model, [_OPTIMIZER]) or _left_over(held, slots, found)
    error = received and LoadError(
        f"Cannot resume the optimizer of `{source.filepath}`: the model has another one, or it "
        "trains other variables.\n"
        f"Expected: a leaf for each of its variables. Received: {received}.\n"
        "Compile the model as it was, with the same layers frozen."
    )
    return held, found, error or None


def _left_over(here: Mapping[str, Any], there: Mapping[str, Any], found: Mapping[str, str]) -> str:
    """Tells which variables have no leaf, and which leaves no variable; empty if none."""
    lacking, unread = here.keys() - found, there.keys() - found.values()
    received = [f"no leaf for {listed(lacking)}"] if lacking else []
    received += [f"no variable for {listed(unread)}"] if unread else []
    return "; ".join(received)


def _matched(here: Shapes, there: Shapes) -> dict[str, str]:
    """Finds the leaf of each variable, by paths and shapes.

    Those of one path belong to each other. Else one path is the end of the other, wherever what is
    frozen is listed: Keras leaves out the name of a `Sequential` model where it builds one of its
    config.
    """
    found = {path: path for path in here if there.get(path) == here[path]}
    here, there = _without(here, found), _without(there, found.values())
    found |= {path: leaf for leaf, path in _by_ends(there, here).items()}
    here, there = _without(here, found), _without(there, found.values())
    return found | _by_ends(here, there)


def _without(shapes: Shapes, paths: Iterable[str]) -> Shapes:
    left = dict.fromkeys(paths)
    return {path: shape for path, shape in shapes.items() if path not in left}


def _by_ends(longer: Shapes, shorter: Shapes) -> dict[str, str]:
    """Finds for each path the one that it ends with, the longest, if no other ends with that."""
    ends = collections.defaultdict(list)
    for path, shape in shorter.items():
        ends["/".join(_names_in(path)), shape].append(path)
    found = {}
    for path, shape in longer.items():
        names = _names_in(path)
        tails = (("/".join(names[number:]), shape) for number in range(len(names)))
        found[path] = next((tuple(ends[tail]) for tail in tails if tail in ends), ())
    times = collections.Counter(found.values())
    return {path: end[0] for path, end in found.items() if len(end) == 1 and times[end] == 1}


def _names_in(leaf: str) -> list[str]:
    part, _, path = leaf.partition("/")
    if part == _OPTIMIZER:  # `adam/dense_kernel_momentum`; `adam_1` is the next in one process
        return path.rpartition("/")[2].split("_")
    return path.split("/")


def _shapes(held: Mapping[str, Any], *parts: str) -> Shapes:
    """Returns the shapes of what is in some parts of a tree."""
    return {p: tuple(np.shape(one)) for p, one in held.items() if p.partition("/")[0] in parts}
