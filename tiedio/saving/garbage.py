"""Let Python look for garbage later: what is made for a save or a load stays until its end."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Lets Python look for no garbage inside.

    It would look through all objects of the process again and again, the more of them the
    longer: with thousands of layers, that is a quarter of the time.
    """
    was_enabled = gc.isenabled()
    try:
        gc.disable()
        yield
    finally:
        if was_enabled:
            gc.enable()
