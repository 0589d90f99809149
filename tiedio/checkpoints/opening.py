"""Open any file of Keras as a checkpoint, of whatever version, format and name."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tiedio.checkpoints import given_config, keras2_files, keras3_files
from tiedio.checkpoints.checkpoint import Checkpoint
from tiedio.errors import FileFormatError, check_mapping, explained
from tiedio.formats import damage, table, tensorflow_paths
from tiedio.formats.content import Opened
from tiedio.keras_versions import config_translation, lambdas
from tiedio.keras_versions.config_translation import Translated
from tiedio.keras_versions.keras_version import INSTEAD, KerasVersion, check_known
from tiedio.storage.locating import at


@contextlib.contextmanager
def reading(
    filepath: Any,
    config: Mapping[str, Any] | None = None,
    given: Sequence[tuple[str, str]] = (),
    functions: Mapping[str, str] | None = None,
    *,
    of_keras_1: bool = False,
) -> Iterator[Checkpoint]:
    """Opens a file.

    Args:
        filepath: The file, as `save_tied` takes it.
        config: The config of its model, for a file that has none.
        given: What is tied, and to what, as `given_ties.parsed` reads it.
        functions: What takes the place of functions in it, as `lambdas.replace` has it.
        of_keras_1: Whether it may be one of Keras 1, which is described, and no more.

    Raises:
        MissingFileError: If there is no such file.
        FileFormatError: If it is not one of Keras, or damaged.
        ArgumentError: If `config` or `functions` are something else, or of another model.
    """
    lambdas.check(functions)
    check_mapping("config", config, "Pass what `json.loads` makes of the model's `to_json()`.")
    source = at(filepath)
    if saved := tensorflow_paths.find(source):
        # Few files are, and who opens others should not wait for it.
        from tiedio.checkpoints import tensorflow_walk

        with explained(saved.name, Exception):  # whatever TensorFlow raises
            checkpoint = tensorflow_walk.described(saved, config, functions)
        yield checkpoint
        return
    with table.reading(source) as opened:
        if not of_keras_1:
            check_known(opened.filepath, opened.keras_version)
        title = table.format_of(source).title
        yield described(opened, title, config, given, functions=functions)


def described(
    opened: Opened,
    title: str,
    config: Mapping[str, Any] | None = None,
    given: Sequence[tuple[str, str]] = (),
    *,
    functions: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Describes a file that is open, of that format, as `reading` does."""
    if opened.unplaced:
        raise FileFormatError(
            f"`{opened.filepath}` names values as Keras named the variables, and not where a "
            "model has them.\n"
            "Expected: the record of `tiedio.TiedOrbaxCheckpoint`. Received: none.\n"
            "Load it with `tiedio.load_tied`, or the weights into a model, and save that again."
        )
    title = opened.title or title
    old = opened.old_layout
    own = old.model_config if old else opened.config
    with explained(opened.filepath, RecursionError):  # a config may be deep
        translated = config_translation.translated(
            own or config or {}, old and old.training_config, opened.keras_version, functions
        )
        kind = f"{title} in the layout of Keras 2" if old else title
        if KerasVersion(opened.keras_version).is_of_keras_1:
            translated, kind = Translated({}, (INSTEAD,)), f"{title} of Keras 1"
        if old:
            checkpoint = keras2_files.described(opened, translated, kind, given)
        else:
            checkpoint = keras3_files.described(opened, translated, kind)
    models = checkpoint.record.models if checkpoint.record else ()
    held = f"{len(models)} models" if models else "a whole model"
    checkpoint.kind += f" of {held if own else 'weights only'}"
    if config and not own:
        given_config.check(checkpoint)
    checkpoint.verify = functools.partial(damage.check, opened)
    return checkpoint
