"""Progress bars of rich; in a notebook without ipywidgets, which rich would need."""

import io
import time
from typing import Any

from rich import progress
from rich.console import Console
from rich.table import Column
from rich.text import Text

# How often a bar in a notebook looks otherwise, in seconds, and how many columns it has.
_PAUSE, _WIDTH = 0.1, 100


class _Bytes(progress.DownloadColumn):
    """How many bytes are done, of how many; or what is done before these are known."""

    def render(self, task: progress.Task) -> Any:
        return task.fields["meanwhile"] if task.total is None else super().render(task)


class _InNotebook(progress.Progress):
    """A bar as HTML that is replaced in its place, by whoever tells how far it is."""

    def start(self) -> None:
        from IPython import display  # pyright: ignore[reportMissingImports]

        self._shown = time.monotonic()
        self._place: Any = display.display(self, display_id=True)

    def update(self, task_id: progress.TaskID, **done: Any) -> None:
        super().update(task_id, **done)
        if time.monotonic() > self._shown + _PAUSE:
            self.refresh()

    def refresh(self) -> None:
        self._shown = time.monotonic()
        self._place.update(self)

    def stop(self) -> None:
        self.refresh()

    def _repr_html_(self) -> str:
        drawn = Console(file=io.StringIO(), record=True, width=_WIDTH, force_jupyter=False)
        drawn.print(self.get_renderable())
        look = "<pre style='white-space:pre;line-height:normal;margin:0'>{code}</pre>"
        return drawn.export_html(inline_styles=True, code_format=look)

    def _repr_mimebundle_(self, include: Any = (), exclude: Any = (), **_: Any) -> dict[str, str]:
        return {"text/html": self._repr_html_()}


class _Description(progress.ProgressColumn):
    """What is done, with the name of a file: without what a terminal takes for commands."""

    def render(self, task: progress.Task) -> Text:
        return Text("".join(one if one.isprintable() else "?" for one in task.description))


def here() -> progress.Progress:
    """Returns a bar for where this program runs."""
    kind = _InNotebook if Console().is_jupyter else progress.Progress
    return kind(
        _Description(Column(no_wrap=True)),
        progress.BarColumn(),
        _Bytes(),
        progress.TimeRemainingColumn(),
    )
