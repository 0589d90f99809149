"""Show on request how far a save or a load has come, by bytes."""

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Advance(Protocol):
    """Told how many more bytes are done, how many there are in all, and what is done now."""

    def __call__(self, count: int, total: int, what: str | None = None, /) -> None: ...


@contextlib.contextmanager
def bar(what: str, wanted: bool, meanwhile: str = "") -> Iterator[Advance]:
    """Shows a bar while inside, if `wanted`; until bytes are known, it says what is done first."""
    if not wanted:
        yield lambda count, total, what=None, /: None
        return
    from tiedio.storage import bars  # which take their time to import

    made = bars.here()
    try:
        with contextlib.suppress(RuntimeError):  # no thread to draw it, as Python ends: its end is
            made.start()
        task = made.add_task(what, total=None, meanwhile=meanwhile)

        def advance(count: int, total: int, what: str | None = None, /) -> None:
            made.update(task, advance=count, total=total, description=what)

        yield advance
        # A file is more than its tensors, and not all of these may have been asked for.
        total = made.tasks[0].total or 0
        made.update(task, total=total, completed=total)
    finally:
        made.stop()
