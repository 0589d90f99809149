"""Tell how two files differ: in their ties, and in the values of their variables.

How variables of two files are matched, and what their difference is, is decided here.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tiedio.checkpoints import opening
from tiedio.checkpoints.checkpoint import Checkpoint
from tiedio.checkpoints.stated_ties import gathered
from tiedio.checkpoints.variables import StoredVariable
from tiedio.record import runs
from tiedio.record.notebook import Reported
from tiedio.record.report import Report, Table

# Elements that are compared at once: in their largest type they take eight times as many bytes.
_PART = 1 << 20

_INTEGERS = "biu"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """How a variable differs between two files.

    Attributes:
        name: Its name in the first file.
        name_in_b: Its name in the second.
        shape: Its shape in the first file.
        shape_in_b: Its shape in the second.
        dtype: Its dtype in the first file.
        dtype_in_b: Its dtype in the second.
        elements: How many of its elements differ; those of other shapes are not compared.
        infinite: How many of these differ by no number: one is not a number, or infinite.
        largest: Largest difference of the others.
        mean: Mean difference over all elements but the infinite ones.
    """

    name: str
    name_in_b: str
    shape: tuple[int, ...]
    shape_in_b: tuple[int, ...]
    dtype: str
    dtype_in_b: str
    elements: int = 0
    infinite: int = 0
    largest: float = 0.0
    mean: float = 0.0

    @property
    def row(self) -> tuple[Sequence[str], str, str, str]:
        """The cells of a table for people: names, largest difference, mean, elements."""
        name = self.name if self.name == self.name_in_b else f"{self.name} ({self.name_in_b})"
        if self.shape != self.shape_in_b:
            return (name,), f"shapes {self.shape}, {self.shape_in_b}", "", ""
        infinite = f", {self.infinite} of them by no number" if self.infinite else ""
        kinds = f" ({self.dtype}, {self.dtype_in_b})" if self.dtype != self.dtype_in_b else ""
        elements = f"{self.elements:,}{infinite}"
        return (name,), f"{self.largest:.3g}{kinds}", f"{self.mean:.3g}", elements


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison(Reported):
    """How two files differ.

    Attributes:
        a: The first file.
        b: The second.
        compared: How many variables both have.
        differences: Those of them that differ.
        only_in_a: Variables that only the first file has.
        only_in_b: Variables that only the second has.
        ties_only_in_a: Tie groups, by names, that only the first file states.
        ties_only_in_b: Those that only the second states, by the names of the first.
        is_of_one_model: Whether all names are equal, or half of the variables of one file have a
            counterpart of their shape in the other. If not, nothing is compared.
    """

    a: str
    b: str
    compared: int
    differences: tuple[Difference, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    ties_only_in_a: tuple[tuple[str, ...], ...]
    ties_only_in_b: tuple[tuple[str, ...], ...]
    is_of_one_model: bool = True

    @property
    def is_equal(self) -> bool:
        """Whether the files have the same variables, values and ties."""
        in_one = self.only_in_a, self.only_in_b, self.ties_only_in_a, self.ties_only_in_b
        return self.is_of_one_model and not (self.differences or any(in_one))

    def report(self) -> Report:
        if self.is_equal:
            return [f"{self.compared} variables and all ties are equal."]
        if not self.is_of_one_model:
            return [
                "These are different models: fewer than half of the variables of "
                f"{self.a} or {self.b} have a counterpart of their name and shape. "
                "Nothing was compared."
            ]
        told: Report = []
        for file, ties, names in (
            (self.a, self.ties_only_in_a, self.only_in_a),
            (self.b, self.ties_only_in_b, self.only_in_b),
        ):
            told += (f"Tied only in {file}: {' = '.join(runs.told(held))}" for held in ties)
            told += (f"Only in {file}: {name}" for name in runs.told(names))
        if self.differences:
            titles = ("variable", "largest difference", "mean", "elements")
            told.append(Table(titles, [one.row for one in self.differences]))
            told.append(f"{len(self.differences)} of {self.compared} variables differ.")
        return told

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "is_equal": self.is_equal}


def diff(a: Any, b: Any) -> Comparison:
    """Compares the layers' variables of two files, and the ties that the files state.

    Variables are matched by name, or, where the names differ, by the place where Keras 3 keeps
    them, if their shapes are equal. Of two models that have little in common nothing is compared.
    Elements that are not a number in both files are equal.

    Args:
        a: A file that any version of Keras from 2.0 on wrote, whatever it is called.
        b: Another one.

    Returns:
        What differs.

    Raises:
        ArgumentError: If something else is passed than paths, URLs or open files.
        MissingFileError: If there is no such file.
        FileFormatError: If one is not of Keras, or damaged.

    Example:

    >>> import keras, tiedio
    >>> from tiedio.files import diff
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="dense")])
    >>> tiedio.save_tied(model, "before.keras")
    >>> _ = model.layers[0].bias.assign_add([0, 0, 0.5, 0])
    >>> tiedio.save_tied(model, "after.keras")
    >>> [(one.name, one.largest) for one in diff("before.keras", "after.keras").differences]
    [('dense/bias', 0.5)]
    """
    with contextlib.ExitStack() as opened:
        first, second = (opened.enter_context(opening.reading(filepath)) for filepath in (a, b))
        pairs = list(_matched(first, second))
        is_of_one_model = _is_of_one_model(first, second, pairs)
        if not is_of_one_model:
            pairs = []
        in_a, in_b = {one.name for one, _ in pairs}, {other.name for _, other in pairs}
        found = (_difference(first, second, one, other) for one, other in pairs)
        ties = _ties(first, {})
        others = _ties(second, _names_in_a(first, second, pairs))
        return Comparison(
            a=first.filepath,
            b=second.filepath,
            compared=len(pairs),
            differences=tuple(one for one in found if one),
            only_in_a=tuple(one.name for one in first.variables if one.name not in in_a),
            only_in_b=tuple(one.name for one in second.variables if one.name not in in_b),
            ties_only_in_a=tuple(names for held, names in ties.items() if held not in others),
            ties_only_in_b=tuple(names for held, names in others.items() if held not in ties),
            is_of_one_model=is_of_one_model,
        )


def _matched(a: Checkpoint, b: Checkpoint) -> Iterator[tuple[StoredVariable, StoredVariable]]:
    """Yields the variables that both files have, in the order of the first."""
    by_name = a.by_name, b.by_name
    by_place = _by_place(a), _by_place(b)
    # Numbers in names that Keras gave may be those of another layer in the other file.
    keys = [by_name, by_place]
    places = [{path for path, _ in held} for held in by_place]
    if by_name[0].keys() != by_name[1].keys() and places[0] == places[1]:
        keys.reverse()
    matched: dict[str, StoredVariable] = {}
    taken: set[str] = set()
    for of_a, of_b in keys:
        for key, one in of_a.items():
            other = of_b.get(key)
            if other and one.name not in matched and other.name not in taken:
                matched[one.name] = other
                taken.add(other.name)
    return ((one, matched[one.name]) for one in a.variables if one.name in matched)


def _is_of_one_model(
    a: Checkpoint, b: Checkpoint, pairs: Sequence[tuple[StoredVariable, StoredVariable]]
) -> bool:
    alike = sum(one.shape == other.shape for one, other in pairs)
    of_smaller = min(len(a.variables), len(b.variables))
    return a.by_name.keys() == b.by_name.keys() or 2 * alike >= of_smaller


def _by_place(checkpoint: Checkpoint) -> dict[Any, StoredVariable]:
    """Returns its variables by where Keras 3 keeps them, and their shape."""
    return {(one.place.dataset_path, one.shape): one for one in checkpoint.variables if one.place}


def _names_in_a(
    a: Checkpoint, b: Checkpoint, pairs: Sequence[tuple[StoredVariable, StoredVariable]]
) -> dict[str, str]:
    """Maps the names in the second file to those in the first."""
    shown, shown_in_b = (
        {place: str(place) for tie in one.transposed_ties for place in tie.aliases}
        for one in (a, b)
    )
    # What is shown transposed need not be stored, and then is in no pair.
    unpaired = {name: shown[place] for place, name in shown_in_b.items() if place in shown}
    return {**unpaired, **{other.name: one.name for one, other in pairs}}


def _ties(
    checkpoint: Checkpoint, renamed: Mapping[str, str]
) -> dict[frozenset[str], tuple[str, ...]]:
    """Returns the tie groups that a file states, whatever their owner.

    Each has all names of one variable; those that show it transposed say so, and how.
    """
    owners = checkpoint.owners
    groups = {
        owner: [renamed.get(one.name, one.name) for one in members]
        for owner, members in gathered(checkpoint.variables, owners).items()
    }
    for tie in checkpoint.transposed_ties:
        name = str(tie.owner)
        places = [dataclasses.replace(p, name=renamed.get(str(p), str(p))) for p in tie.places]
        owner, *aliases = tie.at(places).names
        groups.setdefault(owners.get(name, name), [owner]).extend(aliases)
    return {frozenset(names): tuple(names) for names in groups.values()}


def _difference(
    a: Checkpoint, b: Checkpoint, one: StoredVariable, other: StoredVariable
) -> Difference | None:
    found = Difference(
        name=one.name,
        name_in_b=other.name,
        shape=one.shape,
        shape_in_b=other.shape,
        dtype=one.dtype.name,
        dtype_in_b=other.dtype.name,
    )
    if one.shape == other.shape:
        values = _compared(a.tensors.read(one.source), b.tensors.read(other.source))
        found = dataclasses.replace(found, **values)
    alike = (found.shape, found.dtype) == (found.shape_in_b, found.dtype_in_b)
    return None if alike and not found.elements else found


def _compared(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Compares two arrays of one shape, a part at a time."""
    a, b = a.reshape(-1), b.reshape(-1)
    elements = infinite = 0
    largest = total = 0.0
    for start in range(0, a.size, _PART):
        part = slice(start, start + _PART)
        unlike, distances = _distances(a[part], b[part])
        finite = np.isfinite(distances)
        elements += int(np.count_nonzero(unlike))
        infinite += int(np.count_nonzero(unlike & ~finite))
        largest = max(largest, float(distances[finite].max(initial=0.0)))
        total += float(distances[finite].sum())
    count = a.size - infinite
    return {
        "elements": elements,
        "infinite": infinite,
        "largest": largest,
        "mean": total / count if count else 0.0,
    }


def _distances(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which elements differ, and by how much."""
    if "S" in (a.dtype.kind, b.dtype.kind):
        unlike = a != b if a.dtype.kind == b.dtype.kind else np.ones(a.shape, bool)
        return unlike, np.where(unlike, np.inf, 0.0)
    if a.dtype.kind in _INTEGERS and a.dtype == b.dtype:
        # As large as they are, which a float may not hold: modulo 2^64 it is exact.
        larger, smaller = (f(a, b).astype(np.uint64) for f in (np.maximum, np.minimum))
        distance = larger - smaller
        return distance > 0, distance.astype(np.float64)
    kind = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    a, b = a.astype(kind), b.astype(kind)
    unlike = (a != b) & ~(np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", over="ignore"):
        return unlike, np.where(unlike, np.abs(a - b), 0.0)
