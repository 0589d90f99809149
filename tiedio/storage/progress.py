"""Show on request how far a save or a load has come, by bytes."""

import contextlib
from collections.abc import Callable, Iterator

from rich import progress


@contextlib.contextmanager
def shown(what: str, wanted: bool) -> Iterator[Callable[[int, int], None]]:
    """Shows a bar while inside, if `wanted`.

    Yields:
        A function to tell how many more bytes are done, and how many there are in all.
    """
    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        disable=not wanted,
    )
    try:
        with contextlib.suppress(RuntimeError):  # no thread to draw it, as Python ends: its end is
            bar.start()
        task = bar.add_task(what, total=None)
        yield lambda count, total: bar.update(task, advance=count, total=total)
        # A file is more than its tensors, and not all of these may have been asked for.
        bar.update(task, completed=bar.tasks[0].total)
    finally:
        bar.stop()
