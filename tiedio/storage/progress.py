"""Show on request how far a save or a load has come, by bytes."""

import contextlib
from collections.abc import Iterator
from typing import Protocol

# Rich is imported for a bar, and takes its time.


class Advance(Protocol):
    """Told how many more bytes are done, how many there are in all, and what is done now."""

    def __call__(self, count: int, total: int, what: str | None = None, /) -> None: ...


@contextlib.contextmanager
def shown(what: str, wanted: bool) -> Iterator[Advance]:
    """Shows a bar while inside, if `wanted`."""
    if not wanted:
        yield lambda count, total, what=None, /: None
        return
    from rich import progress

    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TimeRemainingColumn(),
    )
    try:
        with contextlib.suppress(RuntimeError):  # no thread to draw it, as Python ends: its end is
            bar.start()
        task = bar.add_task(what, total=None)

        def advance(count: int, total: int, what: str | None = None, /) -> None:
            bar.update(task, advance=count, total=total, description=what)

        yield advance
        # A file is more than its tensors, and not all of these may have been asked for.
        bar.update(task, completed=bar.tasks[0].total)
    finally:
        bar.stop()
