"""Every layer and model of this process: a layer knows nothing of those that use it.

Each is listed when it is made, by weak reference. What was made before this module was imported
is asked of the garbage collector, once; what `gc.freeze` hides from it is thawed for that.
Afterwards a search goes through layers only, and depends on no collector.
"""

import functools
import gc
import weakref
from typing import Any

import keras

# By `id()`, as classes may say what is equal.
_listed: weakref.WeakValueDictionary[int, keras.Layer] = weakref.WeakValueDictionary()


def live_layers() -> list[keras.Layer]:
    """Lists every layer and model in this process."""
    # Another thread may make one meanwhile: this is a copy.
    return [layer for one in _listed.valuerefs() if (layer := one()) is not None]


def _list_when_made() -> None:
    make = keras.Layer.__new__

    @functools.wraps(make)
    def listing(cls: Any, *args: Any, **kwargs: Any) -> Any:
        layer = make(cls, *args, **kwargs)
        _listed[id(layer)] = layer
        return layer

    keras.Layer.__new__ = staticmethod(listing)


def _list_made() -> None:
    is_frozen = gc.get_freeze_count() > 0
    if is_frozen:
        gc.collect()  # not of what is frozen; garbage would stay for good if it was frozen, too
        gc.unfreeze()
    for thing in gc.get_objects():
        if issubclass(type(thing), keras.Layer):
            _listed[id(thing)] = thing
    if is_frozen:
        gc.freeze()


_list_when_made()  # first, so that nothing is made in between
_list_made()
