"""Name classes of Keras so that every backend finds them.

On torch, Keras makes subclasses of its own for most optimizers, and says in a config where these
are. No other backend can import them. Made by its public name, an optimizer is of the class that
the backend in force has for it.
"""

import re
from typing import Any

_OF_ONE_BACKEND = re.compile(r"keras\.src\.backend\.\w+\.optimizers\.\w+")


def with_public_names(config: Any) -> Any:
    """Copies a config, with optimizers of one backend under their public names."""
    if isinstance(config, (list, tuple)):
        return type(config)(map(with_public_names, config))
    if not isinstance(config, dict):
        return config
    copied = {key: with_public_names(value) for key, value in config.items()}
    if _OF_ONE_BACKEND.fullmatch(str(config.get("module"))):
        copied |= {"module": "keras.optimizers", "registered_name": None}
    return copied
