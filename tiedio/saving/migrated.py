"""Read a file of an older Keras as Keras 3 stores it: as what a migration makes of it.

Keras 3 reads the layout of Keras 2 by position: the classes, and how a model is compiled, were
called otherwise, and slots of optimizers stood in another order. `checkpoints` knows all of that.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tiedio.checkpoints import evidence, opening, rewriting
from tiedio.checkpoints.checkpoint import Checkpoint
from tiedio.checkpoints.stated_ties import Evidence
from tiedio.errors import FileFormatError, LoadError, OptionNeededError
from tiedio.formats import table, zip_archive
from tiedio.formats.content import Opened
from tiedio.formats.hdf5_writer import untold
from tiedio.keras_versions.keras_version import KerasVersion, check_known
from tiedio.storage.base import Storage
from tiedio.storage.locating import at


@contextlib.contextmanager
def reading(place: Storage, folder: Path, verify: bool) -> Iterator[tuple[Opened, list[str]]]:
    """Opens a file for `load_tied`.

    Args:
        place: The file.
        folder: Where what is made of it is put meanwhile.
        verify: Whether to find out first whether it is damaged.

    Yields:
        The file, or what is made of it where it would not load as it was otherwise; and what
        training does not go on with.

    Raises:
        FileFormatError: If it is not a file of Keras 2 or later, or damaged.
    """
    with table.reading(place) as source:
        check_known(source.filepath, source.keras_version)
        checkpoint = _old_model(source, place)
        if checkpoint is None:
            with _by_its_weights(source.keras_version):
                yield source, []
            return
        if verify:
            checkpoint.verify()
        ties = evidence.find(checkpoint, ())
        sure = [one for one in ties.ties if one.evidence is not Evidence.CONTENTS]
        content, lost = rewriting.content(
            checkpoint,
            [*sure, *ties.transposed],
            reconcile="error",
            holds_model=True,
            assets=folder,
        )
        target = at(folder / "migrated.keras")
        zip_archive.write(target, content, durable=False, advance=untold)
    with table.reading(target) as made:
        made.filepath = made.weights.filepath = source.filepath
        yield made, [*checkpoint.translated.lost, *lost]


@contextlib.contextmanager
def _by_its_weights(keras_version: str) -> Iterator[None]:
    """Says what helps where what Keras 2 wrote cannot be rewritten, and so may not load."""
    try:
        yield
    except LoadError as error:
        of_keras_2 = keras_version and not KerasVersion(keras_version).is_of_keras_3
        if not of_keras_2 or "`tiedio migrate" in str(error):
            raise
        what, told, *_ = str(error).splitlines()
        raise LoadError(
            f"{what}\n{told}\n"
            f"Keras {keras_version} wrote it: build the model, and load the weights that "
            "`tiedio migrate` writes."
        ) from error


def _old_model(source: Opened, place: Storage) -> Checkpoint | None:
    """Describes a file that has to be rewritten, if it can be; `None` for others."""
    old, version = source.old_layout, KerasVersion(source.keras_version)
    is_of_keras_2 = bool(version.numbers) and not version.is_of_keras_3
    has_config = bool(old.model_config if old else source.config)
    if source.record is not None or not has_config or not (old or is_of_keras_2):
        return None
    try:
        checkpoint = opening.described(source, table.format_of(place).title)
    except (FileFormatError, OptionNeededError):  # of which loading, by position, tells more
        return None
    is_as_it_loads = not is_of_keras_2 and _is_plain(checkpoint)
    return checkpoint if checkpoint.is_model and not is_as_it_loads else None


def _is_plain(checkpoint: Checkpoint) -> bool:
    """Whether its lists say what was tied: by names, and not by what they lack."""
    slots, owners = checkpoint.slots, checkpoint.owners
    trained = [one.name for one in checkpoint.variables if one.trainable is not False]
    variables = {owners.get(name, name) for name in trained}
    fits = slots is None or len(slots.variables) in (0, len(variables))
    return fits and not checkpoint.layout_ties
