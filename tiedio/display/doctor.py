"""`doctor`: what is installed, and what this process does with it."""

import sys
from typing import Any

from tiedio.tools.installation import Part, installation


def doctor() -> None:
    """Prints what is installed, and what of it is missing, broken or untested.

    An issue should contain it. `tiedio doctor` prints the same for a process of its own. A last
    line says of this process which Keras it has imported, on which backend, and whether `patch`
    is in force. Nothing is imported that takes seconds, and nothing is raised.

    Example:

    >>> import tiedio
    >>> tiedio.doctor()  # doctest: +ELLIPSIS
    tiedio            ...
    python            ...
    """
    print(*installation().parts, _this_process(), sep="\n")


def _this_process() -> Part:
    keras: Any = sys.modules.get("keras")
    if not hasattr(keras, "Model"):  # or its import failed halfway
        return Part("this process", "without Keras")
    from tiedio.hooks.patching import is_patched

    patched = "patched" if is_patched() else "not patched"
    return Part("this process", f"keras {keras.__version__} on {keras.config.backend()}", patched)
