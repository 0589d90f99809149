"""Build an optimizer for other variables, and let it stay the object that it is.

Keras builds an optimizer once. One made from its config would be another object than the script
holds, and without what it keeps outside of its config: so what `build` made is taken back.

The attributes that every optimizer of Keras has, and that have no public name, are used here.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import keras

from tiedio.errors import TieError, first_line
from tiedio.model.keras_internals import Uninitialized, has_value

T = TypeVar("T")

# How many variables a class of its own may make in its constructor.
_MOST = 8

# An optimizer's variables, by shape and dtype.
_Layout = list[list[tuple[tuple[int, ...], str]]]


class Rebuilding:
    """An optimizer that can be built for other variables, or be put back as it was.

    What `build` had made is found by trial: without it, `build` makes the same again.

    Raises:
        TieError: If it does not; the optimizer is as it was.
    """

    def __init__(self, optimizer: Any):
        self._optimizer = optimizer
        self._attributes: list[tuple[Any, dict[str, Any]]] = []
        self._contents: list[tuple[Any, Any]] = []
        for part in family(optimizer):
            self._keep(part)
        self._made_first = self._find_made_first() if optimizer.built else 0

    def _keep(self, part: Any) -> None:
        """Notes how an optimizer is now, to make it that again."""
        if not any(part is known for known, _ in self._attributes):
            self._attributes.append((part, dict(vars(part))))
            containers = _containers([*vars(part).values(), part._tracker.stored_ids])
            self._contents += [(container, container.copy()) for container in containers]

    def _find_made_first(self) -> int:
        """Finds how many variables a class of its own had made before it was built."""
        expected, trained = _layout(self._optimizer), optimizer_variables(self._optimizer) or []
        received: Any = None
        attempts = 1 if all(map(_is_of_keras, family(self._optimizer))) else 1 + _MOST
        for made_first in range(attempts):
            self._made_first = made_first
            try:
                received = self.told(trained, _layout)
            except Exception as error:  # the code of optimizers may raise anything
                received = received or error
                continue
            if received == expected:
                return made_first
        why = first_line(received) if isinstance(received, Exception) else "other variables"
        raise TieError(
            f"Cannot build the optimizer `{self._optimizer.name}` for other variables: its class "
            "does not make its own anew.\n"
            f"Expected: a `build` that makes the same again. Received: {why}.\n"
            "Tie before the optimizer is built, or compile again after it with another one."
        )

    def told(self, trained: list[Any], look: Callable[[Any], T]) -> T:
        """Returns what `look` tells of it if it was built for these; it stays as it is."""
        try:
            try:
                with Uninitialized(), keras.StatelessScope(initialize_variables=False):
                    self.build(trained)
            except Exception:  # its class wants to see a value
                self.build(trained)
            return look(self._optimizer)
        finally:
            self.restore()

    def build(self, trained: list[Any]) -> None:
        """Builds the optimizer for these variables, its own ones anew."""
        choose = getattr(self._optimizer, "_optimizer_map", None)
        if callable(choose):  # a function may know optimizers that nobody else does yet
            for variable in trained:
                self._keep(choose(variable))
        self.unbuild()
        self._optimizer.build(trained)

    def restart(self) -> None:
        """Sets the iterations to zero, as the slots are."""
        for part in family(self._optimizer):
            if has_value(part._iterations):
                part._iterations.assign(0)

    def restore(self) -> None:
        """Makes it what it was, whatever was done with it since."""
        for part, attributes in self._attributes:
            vars(part).clear()
            vars(part).update(attributes)
        for container, content in self._contents:
            _fill(container, content)

    def unbuild(self) -> None:
        """Makes it what it was before it was built."""
        self.restore()
        for part, _ in self._attributes:
            if part.built:
                self._unbuild(part)

    def _unbuild(self, part: Any) -> None:
        variables, attributes = part._variables, vars(part)
        own = {id(v) for v in (part._iterations, part._learning_rate)}
        first = sum(id(variable) in own for variable in variables)
        if not _is_of_keras(part):
            first += self._made_first
        kept, made = variables[:first], {id(variable) for variable in variables[first:]}
        for name, value in attributes.items():
            if id(value) in made:
                attributes[name] = None
        for container in list(_containers(attributes.values())):
            _remove(container, made)
        part._tracker.stored_ids["variables"] = {id(variable) for variable in kept}
        attributes.update(built=False, _trainable_variables=[], _trainable_variables_indices={})
        if hasattr(part, "_inner_optimizers") and not hasattr(part._optimizer_map, "values"):
            # A function names them while it is built, and may make others.
            attributes["_inner_optimizers"] = []


def optimizer_variables(optimizer: Any) -> list[Any] | None:
    """Lists the variables that `optimizer` was built for, in its order."""
    if optimizer is None or not optimizer.built:
        return None
    # In Keras 3.10, loss scaling leaves the list to the optimizer inside.
    inner = getattr(optimizer, "inner_optimizer", None)
    return list(optimizer._trainable_variables) or optimizer_variables(inner) or []


def family(optimizer: Any) -> list[Any]:
    """Lists an optimizer, and those inside it, as for loss scaling."""
    found = [optimizer]
    for part in found:  # which grows
        values = list(vars(part).values())
        values += [item for container in _containers(values) for item in _items(container)]
        for value in values:
            is_known = any(value is known for known in found)
            if isinstance(value, keras.optimizers.Optimizer) and not is_known:
                found.append(value)
    return found


def _is_of_keras(optimizer: Any) -> bool:
    return type(optimizer).__module__.split(".")[0] == "keras"


def _layout(optimizer: Any) -> _Layout:
    return [
        [(tuple(variable.shape), str(variable.dtype)) for variable in part._variables]
        for part in family(optimizer)
    ]


def _items(container: Any) -> list[Any]:
    return list(container.values() if isinstance(container, dict) else container)


def _containers(values: Iterable[Any], entered: tuple[int, ...] = ()) -> Iterator[Any]:
    """Yields the containers that can be changed, and those inside them."""
    for value in values:
        if isinstance(value, (list, dict, set, tuple)) and id(value) not in entered:
            if not isinstance(value, tuple):
                yield value
            yield from _containers(_items(value), (*entered, id(value)))


def _remove(container: Any, made: set[int]) -> None:
    """Empties a container of what `build` put there, and of what it put for none of it."""
    items = _items(container)
    if not any(id(item) in made for item in items):
        return
    if isinstance(container, dict):
        _fill(container, {k: item for k, item in container.items() if id(item) not in made})
    else:
        left = [item for item in items if item is not None and id(item) not in made]
        _fill(container, left)


def _fill(container: Any, content: Any) -> None:
    """Gives a container another content, which its tracker need not know of."""
    tracker = getattr(container, "tracker", None)
    with contextlib.ExitStack() as afterwards:
        if tracker is not None:
            container.tracker = None
            afterwards.callback(setattr, container, "tracker", tracker)
        container.clear()
        if isinstance(container, list):
            container.extend(content)
        else:
            container.update(content)
