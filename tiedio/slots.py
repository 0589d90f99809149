"""Read the state of an optimizer that any version of Keras wrote, ordered as Keras 3 does.

An optimizer keeps arrays beside each variable that it trains, its slots. Versions of Keras
differ in their names, in their order, and in which of them they make though nobody asked.
What they mean was compared by taking one more step in Keras 3 from the state of each.
"""

import dataclasses
import enum
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tiedio.legacy import Weight

_ITERATION = "iteration"
_LEARNING_RATE = "learning_rate"
_PRODUCT = "u_product"  # of Nadam's momenta so far


@dataclasses.dataclass(frozen=True)
class Slots:
    """State of an optimizer.

    Attributes:
        kinds: Names of the slots of each variable, in the terms of Keras 3. Adafactor's `r`
            and `c` are missing for variables of less than two dimensions in Keras 2.
        variables: The slots of each variable that has some, as stored: kind to array.
        hints: What the names of these say of the variable's name, such as `conv1/kernel` in
            Keras 2 and `conv1_kernel` in Keras 3; empty where they say nothing.
        scalars: `iteration`, `learning_rate`, `u_product`, as far as stored.
    """

    kinds: tuple[str, ...]
    variables: tuple[Mapping[str, Weight], ...]
    hints: tuple[str, ...]
    scalars: Mapping[str, Weight]


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


# The kinds of a group take turns, variable by variable; then comes the next group.
_Groups = tuple[tuple[_Kind, ...], ...]

_MOMENTUM = _Kind("momentum", ("m",))
_ACCUMULATOR = _Kind("accumulator")
_ADAM_KINDS = (_MOMENTUM, _Kind("velocity", ("v",)))
_ADAM = (_ADAM_KINDS, (_Kind("velocity_hat", ("vhat",), "amsgrad", (_Era.MULTI_BACKEND,)),))
_ADAFACTOR = ((_Kind("r"), _Kind("c"), _Kind("velocity", ("v",))),)

_OPTIMIZERS: dict[str, _Groups] = {
    "SGD": ((_Kind("momentum", ("m",), "momentum", (_Era.MULTI_BACKEND, _Era.KERAS_2)),),),
    "RMSprop": (
        (_Kind("velocity", ("rms",)),),
        (_Kind("momentum", option="momentum"),),
        (_Kind("average_gradient", ("mg",), "centered"),),
    ),
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "Adamax": ((_MOMENTUM, _Kind("norm", ("u", "v"))),),
    "Nadam": (_ADAM_KINDS,),
    "Adagrad": ((_ACCUMULATOR,),),
    "Adadelta": (
        (
            _Kind("accumulated_grad", ("accum_grad",)),
            _Kind("accumulated_delta_var", ("accum_var",)),
        ),
    ),
    "Ftrl": ((_ACCUMULATOR, _Kind("linear")),),
    "Lion": ((_MOMENTUM,),),
    "Lamb": (_ADAM_KINDS,),
    "Adafactor": _ADAFACTOR,
    "ScheduleFreeAdamW": (_ADAM_KINDS,),
    # Not Muon: only its code says which variables it leaves to Adam. Not LossScaleOptimizer:
    # it has another optimizer inside, and Keras 2 does not store its scale.
}

# What any optimizer may have before its own.
_AVERAGE = _Kind("average", option="use_ema")
_GRADIENT = _Kind("gradient_accumulator", option="gradient_accumulation_steps")


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
        What it is, or `None` if it is not understood: an optimizer that is unknown, or whose
        state means something else in Keras 3, or arrays that do not fit it.
    """
    groups, config = _groups(optimizer), _config(optimizer)
    era = _era(stored, keras_version)
    if groups is None or (stored and era is None):
        return None
    if era is None or not stored:
        return Slots((), (), (), {})
    if era in _KERAS_3 and ">" in optimizer["class_name"]:
        return None  # registered by a user; only Keras 2 registers its own
    labels = _labels(stored, _stored_groups(groups, config, era), config, era)
    return None if labels is None else _collected(stored, labels, groups, config)


def ordered(
    slots: Slots, order: Sequence[int], optimizer: Mapping[str, Any]
) -> list[Weight | np.ndarray]:
    """Returns what Keras 3 keeps as `optimizer/vars/0`, `1` and so on.

    Args:
        slots: What `read` returned.
        order: Which of its variables Keras 3 trains, in its order.
        optimizer: The optimizer's `class_name` and `config`, as stored or translated.
    """
    config = _config(optimizer)
    rate = _constant_rate(config)
    result: list[Weight | np.ndarray] = [
        # Some optimizers of Keras 2.2 do not store it, and start again at zero.
        slots.scalars.get(_ITERATION, np.zeros((), np.int64))
    ]
    if _LEARNING_RATE in slots.scalars:
        result.append(slots.scalars[_LEARNING_RATE])
    elif rate is not None:
        result.append(np.array(rate, np.float32))
    groups = _stored_groups(_groups(optimizer) or (), config, _Era.KERAS_3_10)
    for group in groups:
        for index, kind in itertools.product(order, group):
            held = slots.variables[index]
            # Keras 3 has something to hold the place of Adafactor's absent factors.
            absent = kind.name in ("r", "c") and kind.name not in held
            result.append(np.zeros((), np.float32) if absent else held[kind.name])
    if _PRODUCT in slots.scalars:
        result.append(slots.scalars[_PRODUCT])
    return result


def _config(optimizer: Mapping[str, Any]) -> Mapping[str, Any]:
    config = optimizer.get("config")
    return config if isinstance(config, Mapping) else {}


def _groups(optimizer: Mapping[str, Any]) -> _Groups | None:
    """Returns all that an optimizer may have; `None` for one that is not of Keras."""
    class_name = optimizer.get("class_name")
    if not isinstance(class_name, str) or optimizer.get("registered_name") is not None:
        return None
    groups = _OPTIMIZERS.get(class_name.removeprefix("Custom>"))
    return groups and ((_AVERAGE,), (_GRADIENT,), *groups)


def _asked(kind: _Kind, config: Mapping[str, Any]) -> bool:
    return not kind.option or bool(config.get(kind.option))


def _stored_groups(groups: _Groups, config: Mapping[str, Any], era: _Era) -> _Groups:
    """Returns what an optimizer does have, arranged as in an era."""
    if era is _Era.MULTI_BACKEND:
        groups = tuple((kind,) for group in groups for kind in group)
    elif era is _Era.KERAS_3_0:
        groups = (groups[0] + groups[1], *groups[2:])
    return tuple(
        tuple(kind for kind in group if _asked(kind, config) or era in kind.spare)
        for group in groups
    )


def _constant_rate(config: Mapping[str, Any]) -> float | None:
    """Returns the learning rate, unless it is a schedule, which `decay` is too."""
    rate = config.get("learning_rate", config.get("lr"))
    constant = isinstance(rate, int | float) and abs(rate) <= np.finfo(np.float32).max
    return float(rate) if constant and not config.get("decay") else None


def _era(stored: Sequence[Weight], keras_version: str) -> _Era | None:
    """Tells the era by the name of the first array; by the version where it says nothing."""
    name = stored[0].name if stored else ""
    told = {
        "iterations": _Era.MULTI_BACKEND,  # also the first tf.keras
        "iter": _Era.OPTIMIZER_V2,
        "iteration": _Era.KERAS_2 if name.endswith(":0") else None,
    }
    if era := told.get(_stem(name)):
        return era
    number = re.match(r"(\d{1,9})\.(\d{1,9})", keras_version)
    if number is None:
        return None
    version = (int(number[1]), int(number[2]))
    if version >= (3, 0):
        return _Era.KERAS_3_0 if version < (3, 10) else _Era.KERAS_3_10
    old = version < (2, 4) and not keras_version.endswith("-tf")
    return _Era.MULTI_BACKEND if old else _Era.KERAS_2


def _stem(name: str) -> str:
    """Returns the end of a name, without the number that made it unique."""
    return re.sub(r"(_\d+)?(:\d+)?$", "", name.rpartition("/")[2])
