"""Which variables an optimizer leaves out of its weight decay: no config of Keras says so.

There is a public way to exclude variables, `exclude_from_weight_decay`, and none to ask for them.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from tiedio.model.substitution import Substitution


def excluded_among(optimizer: Any, variables: Iterable[Any]) -> list[Any]:
    """Lists those that `optimizer` was told to exclude, one by one or by a pattern of names."""
    told = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
    if not any(getattr(optimizer, name, None) for name in told):
        return []
    # TensorFlow's own way looks for the pattern in the name of the variable inside, a path.
    own_way = type(optimizer)._apply_weight_decay is keras.optimizers.Optimizer._apply_weight_decay
    inside = own_way and keras.backend.backend() == "tensorflow"
    return [v for v in variables if not optimizer._use_weight_decay(v.value if inside else v)]


def exclude_instead(optimizer: Any, pending: Sequence[Substitution], held: set[int]) -> None:
    """Lets what takes the place of a variable be excluded if that was.

    Args:
        optimizer: The optimizer.
        pending: What takes the place of what.
        held: The `id()` of the variables that are still in use.
    """
    # What it noted of single variables, by what may be the id of others soon.
    vars(optimizer).pop("_exclude_from_weight_decay_cache", None)
    excluded = getattr(optimizer, "_exclude_from_weight_decay", None)
    if not excluded:
        return
    keys = [(one, optimizer._var_key(one.old), optimizer._var_key(one.new)) for one in pending]
    excluded |= {new for _, old, new in keys if old in excluded}
    excluded -= {old for one, old, _ in keys if id(one.old) not in held}
