"""What tiedio adds to the checkpoints of Orbax, and finds out where it was not added.

Keras keeps a tree of the values of variables, by the paths that these have. A tied variable is in
it once, and nothing says where else it belongs; and paths depend on how many models were made
before. So a record is added, and which leaf is which dataset of a weights file.
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras

from tiedio.errors import LoadError, SaveError, listed
from tiedio.formats.content import Opened
from tiedio.formats.hdf5_writer import Layout
from tiedio.formats.orbax_folder import PLACING, VALUES, Placing, Unplaced
from tiedio.model.walk import Walk, walk
from tiedio.record.record import Record
from tiedio.record.ties import METADATA_KEY
from tiedio.saving import several
from tiedio.saving.capture import capture, metadata
from tiedio.saving.deferral import Deferral, unnoticed
from tiedio.saving.reports import Reports

# The parts of Keras' tree that tiedio tells apart; metrics begin anew with each epoch.
_OPTIMIZER, _METRICS = "optimizer_variables", "metrics_variables"
_SEED = "/seed_generator_state"
_NUMBER = re.compile(r"_\d+$")


def addition(model: keras.Model, weights_only: bool, strict: bool) -> dict[str, Any]:
    """Returns what is stored beside the tree that Keras makes of a model.

    Args:
        model: The model.
        weights_only: Whether the state of optimizers is left out.
        strict: As for `save_tied`.

    Raises:
        SaveError: If something would be lost, or two variables have one path; all are named.
    """
    leaves = dict(_leaves(model, weights_only))
    layout, record = _captured(model, weights_only, strict)
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


def place(source: Opened, model: keras.Model, reports: Reports) -> None:
    """Finds which leaf is which dataset, where nothing in a checkpoint says so, by a model.

    Its record is then that of the model, with the seeds of the checkpoint.

    Args:
        source: The checkpoint.
        model: The model that it is loaded into, or one like it.
        reports: Takes the error for seeds that cannot be told from each other.

    Raises:
        LoadError: If leaves and variables do not belong to each other one by one; all are named.
    """
    unplaced: Unplaced = source.unplaced
    weights_only = not any(leaf.startswith(f"{_OPTIMIZER}/") for leaf in unplaced.shapes)
    layout, record = _captured(model, weights_only, strict=False)
    variables = dict(_leaves(model, weights_only, metrics=False))
    matched = _matched(source.filepath, variables, unplaced.shapes)
    _check_names(source, variables)
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
        dataclasses.replace(one, state=tuple(map(int, unplaced.value(leaf_of[id(seed)]))))
        for one, seed in seeds.items()
        if id(seed) in leaf_of
    )
    record = dataclasses.replace(record, random_states=random_states, process_random_states={})
    unplaced.place(_placing(layout, record, placed, unplaced.shapes))


def place_by_config(source: Opened, config: Any, reports: Reports) -> None:
    """Does the same for a whole model: one more is made of its config, to look at."""
    with unnoticed(), Deferral(0) as deferral:
        model = config.build(deferral)
        compiled = config.compile(model, deferral)
        deferral.finish()
        if compiled and model.optimizer:
            model.optimizer.build(model.trainable_variables)
    place(source, model, reports)


def _captured(model: keras.Model, weights_only: bool, strict: bool) -> tuple[Layout, Record]:
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


def _leaves(
    model: keras.Model, weights_only: bool, metrics: bool = True
) -> Iterator[tuple[str, Any]]:
    """Yields the leaves of the tree that Keras makes of a model, with their variables.

    Raises:
        SaveError: If variables have one path, or one that leads through another's.
    """
    parts = {
        "trainable_variables": model.trainable_variables,
        "non_trainable_variables": model.non_trainable_variables,
    }
    if not weights_only:
        parts[_OPTIMIZER] = model.optimizer.variables if model.optimizer else []
        parts[_METRICS] = model.metrics_variables if metrics else []
    for part, variables in parts.items():
        paths = sorted(f"{variable.path}/" for variable in variables)
        colliding = [
            path.removesuffix("/")
            for path, following in itertools.pairwise(paths)
            if following.startswith(path)
        ]
        if colliding:
            raise SaveError(
                f"Cannot save {listed(colliding)} to an Orbax checkpoint: Keras has one path for "
                "several variables.\n"
                f"Expected: a path for each. Received: {listed(colliding)} more than once.\n"
                "Give the layers names of their own; or save with `tiedio.TiedModelCheckpoint`, as "
                "some optimizers have one name for several variables."
            )
        yield from ((f"{part}/{variable.path}", variable) for variable in variables)


def _check_names(source: Opened, variables: Mapping[str, Any]) -> None:
    """Refuses names that Keras gave by number, in an order that a config does not tell.

    Raises:
        LoadError: If variables of one shape have paths that differ in such numbers; all are named.
    """
    names = set(_names(source.config)) if source.config else None
    alike = collections.defaultdict(list)
    for path, variable in variables.items():
        if names is None or path.startswith(_OPTIMIZER) or path.endswith(_SEED):
            continue
        parts = [p if p in names else _NUMBER.sub("", p) for p in path.split("/")]
        alike[tuple(parts), _shape(variable)].append(path)
    if ambiguous := [path for paths in alike.values() if len(paths) > 1 for path in paths]:
        raise LoadError(
            f"Cannot load `{source.filepath}`: Keras numbered {listed(ambiguous)} as they were "
            "made, and its config does not say in which order.\n"
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


def _matched(
    filepath: str, variables: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, str]:
    """Finds the leaf of each variable, as `_leaves` names it; seeds may have none.

    Those of one path belong to each other. Else one path is the end of the other: Keras leaves out
    the name of a `Sequential` model where it builds one of its config. Its seeds, if it has only
    one generator, are what is left.

    Raises:
        LoadError: If other variables, or other leaves, are left over; all are named.
    """

    def left(paths: Iterable[str], used: Collection[str]) -> list[str]:
        # Generators are numbered in a process, whatever layer holds them: paths tell nothing.
        told = [p for p in paths if not p.startswith(f"{_METRICS}/") and not p.endswith(_SEED)]
        return [path for path in told if path not in used]

    def pair(first: str, other: str) -> bool:
        return shapes[first] == _shape(variables[other])

    here = left(variables, ())
    found = {path: path for path in here if shapes.get(path) == _shape(variables[path])}
    here, there = left(here, found), left(shapes, found.values())
    found |= {path: leaf for leaf, path in _by_ends(there, here, pair).items()}
    here, there = left(here, found), left(there, found.values())
    found |= _by_ends(here, there, lambda path, leaf: pair(leaf, path))
    lacking, unread = left(here, found), left(there, found.values())
    seeds = [[path for path in paths if path.endswith(_SEED)] for paths in (variables, shapes)]
    if len(seeds[0]) == len(seeds[1]) == 1:
        found |= dict(zip(*seeds, strict=True))
    if lacking or unread:
        # Slots follow from what they belong to.
        lacking = [p for p in lacking if not p.startswith(_OPTIMIZER)] or lacking
        unread = [p for p in unread if not p.startswith(_OPTIMIZER)] or unread
        received = [f"no leaf for {listed(lacking)}"] if lacking else []
        received += [f"no variable for {listed(unread)}"] if unread else []
        raise LoadError(
            f"Cannot load `{filepath}`: nothing in it says what was tied, and its leaves are not "
            "the variables of this model.\n"
            f"Expected: a leaf for each variable. Received: {'; '.join(received)}.\n"
            "Tie the model as it was when it was saved, and load the weights into it; or save with "
            "`tiedio.TiedOrbaxCheckpoint`, which records ties."
        )
    return found


def _by_ends(
    longer: Iterable[str], shorter: Sequence[str], fits: Callable[[str, str], bool]
) -> dict[str, str]:
    """Finds for each path the one that it ends with, the longest, if no other ends with that."""
    found = {}
    for path in longer:
        ends = [end for end in shorter if _is_end(path, end) and fits(path, end)]
        if ends:
            found[path] = max(ends, key=len)
    times = collections.Counter(found.values())
    return {path: end for path, end in found.items() if times[end] == 1}


def _is_end(path: str, end: str) -> bool:
    part, _, path = path.partition("/")
    part_of_end, _, end = end.partition("/")
    if part != part_of_end:
        return False
    if part == _OPTIMIZER:  # `adam/dense_kernel_momentum`; `adam_1` is the next in one process
        path, end = f"_{path.rpartition('/')[2]}", end.rpartition("/")[2]
        return path.endswith(f"_{end}")
    return path.endswith(f"/{end}")


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(map(int, variable.shape))
