"""Compare the config that a user gives with the file that has none: it may be another model's."""

from collections.abc import Iterator

from tiedio.checkpoints.checkpoint import Checkpoint
from tiedio.errors import ArgumentError, listed
from tiedio.keras_versions import layer_outline
from tiedio.keras_versions.layer_outline import Part


def check(checkpoint: Checkpoint) -> None:
    """Raises `ArgumentError` if the config is not that of the model in the file.

    What layers of the user's own hold, no config tells.
    """
    outline = layer_outline.layers(checkpoint.translated.config)
    if not outline:  # the model is made by a class of its own
        return
    stored = {one.name.partition("/")[0] for one in checkpoint.variables}
    linked = tuple(f"{path}/" for path in checkpoint.links)
    needed = {
        name
        for name, parts in outline.items()
        if any(one.variables and not f"{one.inner_path}/".startswith(linked) for one in parts)
    }
    more, fewer = stored - outline.keys(), needed - stored
    if more or fewer:
        expected = f"layers {listed(more)}" if more else "no more layers"
        raise _error(checkpoint, expected, listed(fewer) or "none")
    parts = {one.inner_path: one for held in outline.values() for one in held}
    if wrong := dict(_misfits(checkpoint, parts)):
        raise _error(checkpoint, "; ".join(wrong), "; ".join(wrong.values()))


def _misfits(checkpoint: Checkpoint, parts: dict[str, Part]) -> Iterator[tuple[str, str]]:
    """Yields the variables whose last axis is another one than the config says, and both."""
    for one in checkpoint.variables:
        part = parts.get(one.place.inner_path) if one.place else None
        if part is None or not one.name.endswith(("/kernel", "/embeddings")):
            continue
        if part.width is not None and one.shape[-1:] != (part.width,):
            yield f"`{one.name}` of shape {one.shape}", f"`{part.name}` of {part.width}"


def _error(checkpoint: Checkpoint, expected: str, received: str) -> ArgumentError:
    return ArgumentError(
        f"The config that was given is not that of the model in `{checkpoint.filepath}`.\n"
        f"Expected: {expected}. Received: {received}.\n"
        "Pass the config of the model that was saved; its layers have the names of then."
    )
