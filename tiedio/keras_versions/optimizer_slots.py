"""Read the state of an optimizer that any version of Keras wrote, and order it as Keras 3 does.

An optimizer keeps arrays beside each variable that it trains, its slots. Versions of Keras
differ in their names, in their order, and in which of them they make though nobody asked.
An optimizer is added as a row of `_OPTIMIZERS`, a version that stores otherwise as an `_Era`
and its order in `_parts`.
"""

import dataclasses
import enum
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tiedio.formats.content import Weight
from tiedio.keras_versions.keras_version import KerasVersion
from tiedio.keras_versions.public_names import with_public_names

_ITERATION = "iteration"
_LEARNING_RATE = "learning_rate"
_PRODUCT = "u_product"  # of Nadam's momenta so far


@dataclasses.dataclass(frozen=True)
class Slots:
    """State of an optimizer.

    Attributes:
        variables: The slots of each variable that has some, as stored: kind, in the terms of
            Keras 3, to array. The first one has the variable's shape. Adafactor's `r` and `c` are
            missing for variables of less than two dimensions in Keras 2.
        hints: What the names of these say of the variable's name, such as `conv1/kernel` in
            Keras 2 and `conv1_kernel` in Keras 3; empty where they say nothing.
        scalars: `iteration`, `learning_rate`, `u_product`, as far as stored.
    """

    variables: tuple[Mapping[str, Weight], ...]
    hints: tuple[str, ...]
    scalars: Mapping[str, Weight]


# What a file has for an optimizer that has no state yet, or whose state it does not hold.
NONE = Slots((), (), {})


class _Era(enum.Enum):
    """How slots are named, and in which order they are stored."""

    MULTI_BACKEND = enum.auto()  # to 2.3: numbered; all of one kind, then all of the next
    OPTIMIZER_V2 = enum.auto()  # of tf.keras, later `legacy`: `Adam/conv1/kernel/m:0`
    KERAS_2 = enum.auto()  # from 2.11: `Adam/m/conv1/kernel:0`
    KERAS_3_0 = enum.auto()  # `adam/conv1_kernel_momentum`
    KERAS_3_10 = enum.auto()  # the same; moved what stands at the sides


_KERAS_3 = (_Era.KERAS_3_0, _Era.KERAS_3_10)


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of slot.

    Attributes:
        name: In Keras 3, where names of slots end in it.
        old: Its other names in Keras 2.
        option: What the optimizer's config must say to have it; empty if it always does.
        spare: Eras that make it even if not.
    """

    name: str
    old: tuple[str, ...] = ()
    option: str = ""
    spare: tuple[_Era, ...] = ()

    def is_asked(self, config: Mapping[str, Any]) -> bool:
        return not self.option or bool(config.get(self.option))


# The kinds of a group take turns, variable by variable; then comes the next group.
_Group = tuple[_Kind, ...]

_MOMENTUM = _Kind("momentum", ("m",))
_VELOCITY = _Kind("velocity", ("v",))
_ACCUMULATOR = _Kind("accumulator")
_GRAD = _Kind("accumulated_grad", ("accum_grad",))
_DELTA = _Kind("accumulated_delta_var", ("accum_var",))
_ADAM = (
    (_MOMENTUM, _VELOCITY),
    (_Kind("velocity_hat", ("vhat",), "amsgrad", (_Era.MULTI_BACKEND,)),),
)

_OPTIMIZERS: dict[str, tuple[_Group, ...]] = {
    "SGD": ((_Kind("momentum", ("m",), "momentum", (_Era.MULTI_BACKEND, _Era.KERAS_2)),),),
    "RMSprop": (
        (_Kind("velocity", ("rms",)),),
        (_Kind("momentum", option="momentum"),),
        (_Kind("average_gradient", ("mg",), "centered"),),
    ),
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "Adamax": ((_MOMENTUM, _Kind("norm", ("u", "v"))),),
    "Nadam": ((_MOMENTUM, _VELOCITY),),
    "Adagrad": ((_ACCUMULATOR,),),
    "Adadelta": ((_GRAD, _DELTA),),
    "Ftrl": ((_ACCUMULATOR, _Kind("linear")),),
    "Lion": ((_MOMENTUM,),),
    "Lamb": ((_MOMENTUM, _VELOCITY),),
    "Adafactor": ((_Kind("r"), _Kind("c"), _VELOCITY),),
    "ScheduleFreeAdamW": ((_MOMENTUM, _VELOCITY),),
    # Not Muon: only its code says which variables it leaves to Adam. Not LossScaleOptimizer:
    # it has another optimizer inside, and Keras 2 does not store its scale.
}

# The learning rates that are not 0.001 unless given, as in Keras 2.
_DEFAULT_RATES = {"SGD": 0.01, "Lion": 0.0001}

# Slots that any optimizer may have before its own.
_AVERAGE = _Kind("average", option="use_ema")
_GRADIENT = _Kind("gradient_accumulator", option="gradient_accumulation_steps")

# Adafactor's, which are of matrices only.
_FACTORS = ("r", "c")

# A scalar, or kinds that take turns.
_Part = str | tuple[_Kind, ...]


def read(
    optimizer: Mapping[str, Any], stored: Sequence[Weight], keras_version: str
) -> Slots | None:
    """Reads the state of an optimizer.

    Args:
        optimizer: Its `class_name` and `config`, as the file has them.
        stored: Its arrays in the order of the file; their names are empty or numbers where
            the file has none.
        keras_version: Of the Keras that wrote it.

    Returns:
        What it is, or `None` if it is not understood: an optimizer that is unknown, or arrays
        whose number, shapes or names do not fit it.
    """
    known = _known(optimizer)
    if known is None:
        return None
    if not stored:
        return NONE
    class_name, config = known
    era = _era(stored[0].name, keras_version)
    if era is None or (era in _KERAS_3 and class_name != optimizer["class_name"]):
        return None  # of no known Keras, or registered by a user: only Keras 2 registers its own
    first = [_stem(one.name) for one in stored[:2]]
    # Not before Keras 2.1.3 had Adam a third row to spare, which is of one element each.
    for with_spare in (False, True):
        parts = _parts(class_name, config, era, first, with_spare=with_spare)
        collected = _collected(parts, _with_gaps(stored, parts, era))
        if collected and all(_fits(held, config) for held in collected[1]):
            break
    else:
        return None
    scalars, variables = collected
    hints = [_hint(held, era, stored[0].name.rpartition("/")[0]) for held in variables]
    if None in hints:
        return None
    return Slots(
        tuple(
            {kind.name: held[kind] for kind in sorted(held, key=lambda one: one.name in _FACTORS)}
            for held in variables
        ),
        tuple(hint or "" for hint in hints),
        scalars,
    )


def of_model(config: Any) -> Mapping[str, Any] | None:
    """Returns the config of the optimizer in that of a model; `compile` takes its name as well."""
    compiled = config.get("compile_config") if isinstance(config, Mapping) else None
    optimizer = compiled.get("optimizer") if isinstance(compiled, Mapping) else None
    if isinstance(optimizer, str):
        names = {name.lower(): name for name in _OPTIMIZERS}
        name = names.get(optimizer.lower(), optimizer)
        return {"class_name": name, "config": {"learning_rate": _DEFAULT_RATES.get(name, 0.001)}}
    return optimizer if isinstance(optimizer, Mapping) else None


def ordered(
    slots: Slots, order: Sequence[int], optimizer: Mapping[str, Any]
) -> list[Weight | np.ndarray]:
    """Returns what Keras 3 keeps as `optimizer/vars/0`, `1` and so on.

    Args:
        slots: What `read` returned.
        order: Which of its variables Keras 3 trains, in its order.
        optimizer: The optimizer's `class_name` and `config`, as stored or translated.
    """
    known = _known(optimizer)
    if known is None:
        return []
    class_name, config = known
    not_stored = {
        _ITERATION: np.zeros((), np.int64),  # as Keras 2.2 itself begins again after a load
        _LEARNING_RATE: np.array(_constant_rate(class_name, config), np.float32),
        # It begins at one, and is next to nothing after some dozen steps.
        _PRODUCT: np.array(0.0 if slots.variables else 1.0, np.float32),
    }
    result: list[Weight | np.ndarray] = []
    for part, index in _labels(_parts(class_name, config, _Era.KERAS_3_10), order):
        if isinstance(part, str):
            result.append(slots.scalars.get(part, not_stored[part]))
        elif part.name in _FACTORS:  # Keras 3 has something to hold the place of absent ones
            result.append(slots.variables[index].get(part.name, np.zeros((), np.float32)))
        else:
            result.append(slots.variables[index][part.name])
    return result


def _known(optimizer: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """Returns the name of an optimizer of Keras, and its config; `None` for others."""
    optimizer = with_public_names(optimizer)
    name, config = optimizer.get("class_name"), optimizer.get("config")
    if not isinstance(name, str) or optimizer.get("registered_name") is not None:
        return None
    name = name.removeprefix("Custom>")
    return (name, config if isinstance(config, Mapping) else {}) if name in _OPTIMIZERS else None


def _constant_rate(class_name: str, config: Mapping[str, Any]) -> float | None:
    """Returns the learning rate, unless it is a schedule, which `decay` is too."""
    rate = config.get("learning_rate", config.get("lr"))
    # What Nadam called so concerns its momenta.
    decays = bool(config.get("decay")) and class_name != "Nadam"
    return rate if isinstance(rate, float) and not decays else None


def _era(name: str, keras_version: str) -> _Era | None:
    """Tells the era by the name of the first array; by the version where it says nothing."""
    told = {
        "iterations": _Era.MULTI_BACKEND,  # also the first tf.keras
        "iter": _Era.OPTIMIZER_V2,
        "iteration": _Era.KERAS_2 if name.endswith(":0") else None,
    }
    if era := told.get(_stem(name)):
        return era
    version = KerasVersion(keras_version)
    if not version.numbers:
        return None
    if version.is_of_keras_3:
        return _Era.KERAS_3_0 if version.numbers < (3, 10) else _Era.KERAS_3_10
    return _Era.MULTI_BACKEND if version.is_multi_backend else _Era.KERAS_2


def _stem(name: str) -> str:
    """Returns the end of a name, without the number that made it unique."""
    return re.sub(r"(_\d+)?(:\d+)?$", "", name.rpartition("/")[2])


def _parts(
    class_name: str,
    config: Mapping[str, Any],
    era: _Era,
    first: Sequence[str] = (),
    *,
    with_spare: bool = True,
) -> list[_Part]:
    """Lists what an optimizer has in the order of an era.

    The ends of the first names tell which scalars the older ones store.
    """

    def made(*kinds: _Kind) -> _Part:
        spare = era if with_spare else None
        return tuple(kind for kind in kinds if kind.is_asked(config) or spare in kind.spare)

    groups = ((_AVERAGE,), (_GRADIENT,), *_OPTIMIZERS[class_name])
    slots = [made(*group) for group in groups]
    front = [_ITERATION]
    if _constant_rate(class_name, config) is not None:
        front.append(_LEARNING_RATE)
    product = [_PRODUCT] if class_name == "Nadam" else []
    match era:
        case _Era.KERAS_3_10:
            return [*front, *slots, *product]
        case _Era.KERAS_3_0:
            return [*front, made(_AVERAGE, _GRADIENT), *product, *slots[2:]]
        case _Era.KERAS_2:
            return [_ITERATION, *slots]
    told = {
        "iter": _ITERATION,
        "iterations": _ITERATION,
        "momentum_cache": _PRODUCT,
        "m_schedule": _PRODUCT,
    }
    if class_name != "Ftrl":
        slots = [made(kind) for group in groups for kind in group]
    return [*(told[name] for name in first if name in told), *slots]


def _labels(parts: Sequence[_Part], indexes: Sequence[int]) -> Iterator[tuple[str | _Kind, int]]:
    """Yields what each array is: a scalar, or of a kind and a variable."""
    for part in parts:
        if isinstance(part, str):
            yield part, 0
        else:
            yield from ((kind, index) for index, kind in itertools.product(indexes, part))


def _kinds(parts: Sequence[_Part]) -> list[_Kind]:
    return [kind for part in parts if not isinstance(part, str) for kind in part]


def _with_gaps(stored: Sequence[Weight], parts: Sequence[_Part], era: _Era) -> list[Weight | None]:
    """Puts `None` where Keras 2 has no factors: for variables of less than two dimensions.

    Adafactor keeps `r`, `c` and the velocity of each variable in turn, at the end. So it is read
    from there: the velocity, which is always stored, tells whether its factors are.
    """
    kinds = [kind.name for kind in _kinds(parts)]
    if era is not _Era.KERAS_2 or kinds[-3:-1] != list(_FACTORS):
        return [*stored]
    averages = len(kinds) - 3  # of each variable, in front of all of these
    front: list[Weight | None] = [*stored]
    turns: list[Weight | None] = []  # from the last to the first
    variables = 0
    while len(front) > 1 + averages * variables:
        velocity = front.pop()
        is_matrix = velocity is not None and len(velocity.shape) > 1
        turns += [velocity, *(front.pop() if is_matrix and front else None for _ in _FACTORS)]
        variables += 1
    return [*front, *reversed(turns)]


def _collected(
    parts: Sequence[_Part], arrays: Sequence[Weight | None]
) -> tuple[dict[str, Weight], list[dict[_Kind, Weight]]] | None:
    """Collects scalars, and the slots of each variable; `None` if there is another number."""
    width = len(_kinds(parts))
    height, left = divmod(len(arrays) - sum(isinstance(one, str) for one in parts), width or 1)
    if height < 0 or left or (height and not width):
        return None
    scalars: dict[str, Weight] = {}
    variables: list[dict[_Kind, Weight]] = [{} for _ in range(height)]
    for (part, index), one in zip(_labels(parts, range(height)), arrays, strict=True):
        if one is None:
            continue
        if isinstance(part, _Kind):
            variables[index][part] = one
        elif one.shape:
            return None
        else:
            scalars[part] = one
    return scalars, variables


def _fits(held: Mapping[_Kind, Weight], config: Mapping[str, Any]) -> bool:
    """Whether the slots' shapes fit one variable. Slots the config did not ask for are ignored."""
    shape = next(one.shape for kind, one in held.items() if kind.name not in _FACTORS)
    factors = {
        "r": shape[:-1] if len(shape) > 1 else (),
        "c": (*shape[:-2], *shape[-1:]) if len(shape) > 1 else (),
    }
    return all(
        one.shape == factors.get(kind.name, shape)
        for kind, one in held.items()
        if kind.is_asked(config)
    )


def _hint(held: Mapping[_Kind, Weight], era: _Era, prefix: str) -> str | None:
    """Returns what the names of a variable's slots say of its own; `None` if that differs."""
    hints = {_variable_name(one.name, kind, era, prefix) for kind, one in held.items()} - {""}
    return None if len(hints) > 1 else next(iter(hints), "")


def _variable_name(name: str, kind: _Kind, era: _Era, prefix: str) -> str | None:
    """Returns what the name of a slot says of its variable's; `None` if it is of another kind."""
    if not name or name.isdigit() or era is _Era.MULTI_BACKEND:
        return ""
    own = name.removeprefix(f"{prefix}/")
    if era in _KERAS_3:
        suffix = f"_{kind.name}"
        return own.removesuffix(suffix) if own.endswith(suffix) else ""
    names = (kind.name, *kind.old)
    if era is _Era.OPTIMIZER_V2:
        return own.rpartition("/")[0] if _stem(own) in names else None
    path = re.sub(r":\d+$", "", name).split("/")
    first = next((number for number, one in enumerate(path) if one in names), len(path))
    return "/".join(path[first + 1 :]) or None
