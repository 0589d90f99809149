"""Open any file of Keras as a checkpoint, of whatever version, format and name."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tiedio.checkpoints import keras2_files, keras3_files, tensorflow_files, tensorflow_walk
from tiedio.checkpoints.checkpoint import Checkpoint
from tiedio.formats import damage, table
from tiedio.keras_versions import config_translation
from tiedio.storage.locating import at


@contextlib.contextmanager
def reading(
    filepath: Any,
    config: Mapping[str, Any] | None = None,
    given: Sequence[tuple[str, str]] = (),
) -> Iterator[Checkpoint]:
    """Opens a file.

    Args:
        filepath: The file, as `save_tied` takes it.
        config: The config of its model, for a file that has none.
        given: What is tied, and to what, as `given_ties.parsed` reads it.

    Raises:
        MissingFileError: If there is no such file.
        FileFormatError: If it is not one of Keras, or damaged.
    """
    source = at(filepath)
    if saved := tensorflow_files.find(source):
        with tensorflow_walk.reading(saved, config) as checkpoint:
            yield checkpoint
        return
    with table.reading(source) as opened:
        title = table.format_of(source).title
        old = opened.old_layout
        if old is None:
            found = opened.config or config
            version = opened.keras_version
            translated = (
                config_translation.translated(dict(found), None, version) if found else None
            )
            checkpoint = keras3_files.described(opened, translated, _kind(title, opened.config))
        else:
            found = old.model_config or config
            translated = (
                config_translation.translated(dict(found), old.training_config, old.keras_version)
                if found
                else None
            )
            kind = _kind(f"{title} in the layout of Keras 2", old.model_config)
            checkpoint = keras2_files.described(opened, old, translated, kind, given)
        checkpoint.verify = functools.partial(damage.check, opened)
        yield checkpoint


def _kind(title: str, config: Any) -> str:
    return f"{title} of a {'whole model' if config else 'weights only'}".replace(
        "of a weights", "of weights"
    )
