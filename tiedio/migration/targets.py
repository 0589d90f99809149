"""Choose what a migration writes, and where: a whole model, or weights only.

What a user asked for is never exchanged without a note, and what is in the way never replaced.
"""

from tiedio.checkpoints.checkpoint import Checkpoint
from tiedio.errors import MigrationError, OptionNeededError, listed
from tiedio.formats import table
from tiedio.formats.tensorflow_paths import NOT_OF_KERAS
from tiedio.migration.destination import check_free
from tiedio.storage.base import Storage

# Where to write, whether the whole model, and what to say of it.
Chosen = tuple[Storage, bool, tuple[str, ...]]

# Endings of files in the layout of Keras 2.
_OLD = (".h5", ".hdf5")


def chosen(wanted: Storage, checkpoint: Checkpoint, source: Storage) -> Chosen:
    """Chooses where to write, and whether the whole model.

    Args:
        wanted: What the user asks for.
        checkpoint: The file that is migrated.
        source: Where that lies.

    Returns:
        Where to write, whether the whole model, and what to say of it.

    Raises:
        MigrationError: If nothing can be written there, or is to be replaced that nobody allowed.
    """
    destination, holds_model, notes = _destination(wanted, checkpoint)
    if destination.name != wanted.name:  # which nobody allowed to be replaced
        told = f"It would be written there, and not to `{wanted.label}`."
        instead = f"Pass `{destination.name}` with `--overwrite` to replace that"
        kept = "another path, or `--skip-existing` to keep it."
        check_free(destination, f"{told} {instead}, {kept}")
    _check_apart(destination, source)
    return destination, holds_model, notes


def refusal(checkpoint: Checkpoint) -> MigrationError | None:
    """The error for variables of which nothing tells where Keras 3 would store them.

    It is an `OptionNeededError` if the config of the model would tell it.
    """
    unplaced = [one.name for one in checkpoint.variables if one.place is None]
    if not unplaced or checkpoint.old_layout:  # in which they can be written
        return None
    name = checkpoint.filepath
    if not checkpoint.is_of_keras:
        return MigrationError(
            f"Cannot migrate `{name}`: it was written to be run, as `model.export` does.\n"
            "Expected: what `model.save` or `save_weights` wrote. "
            "Received: a SavedModel without layers.\n"
            f"{NOT_OF_KERAS}"
        )
    has_config = checkpoint.config is not None
    return (MigrationError if has_config else OptionNeededError)(
        f"Cannot tell how Keras 3 would store {listed(unplaced)} of `{name}`.\n"
        "Expected: the config of the model, made of layers of Keras. "
        f"Received: {'one of other layers' if has_config else 'none'}.\n"
        + (
            "Restore it by TensorFlow."
            if has_config
            else "Pass the config of the model as `--config`."
        )
    )


def _destination(wanted: Storage, checkpoint: Checkpoint) -> Chosen:
    weights_only = wanted.name.endswith(table.WEIGHTS_SUFFIXES)
    if wanted.name.endswith(_OLD) and not weights_only and not checkpoint.is_by_position:
        raise MigrationError(
            f"Cannot write `{wanted.name}`: Keras reads such files by position and loses ties.\n"
            f"Expected: a path ending in `.keras`, or in {listed(table.WEIGHTS_SUFFIXES)}. "
            f"Received: {wanted.label}.\n"
            "Change the ending."
        )
    has_places = not checkpoint.is_by_position
    if has_places and (weights_only or checkpoint.is_model):
        return wanted, not weights_only, ()
    # Weights in the layout that they have, as nothing tells how Keras 3 would store them.
    ending = ".weights.h5" if has_places else ".h5"
    stem = wanted.label
    for suffix in (*table.WEIGHTS_SUFFIXES, ".keras", *_OLD):
        stem = stem.removesuffix(suffix)
    if wanted.name.endswith(ending) and (has_places or not weights_only):
        return wanted, False, ()
    if checkpoint.translated.untranslated:
        why = "Keras 3 cannot load the model"
    elif checkpoint.config is None:
        why = "the file holds no config of the model (`--config` gives one)"
    else:
        why = "it does not tell how Keras 3 would store them"
    found = wanted.sibling(stem + ending)
    what = "only" if has_places else "in the layout of Keras 2, for which Keras wants such a name"
    return found, False, (f"Written to `{found.label}`, as weights {what}: {why}.",)


def _check_apart(destination: Storage, source: Storage) -> None:
    if destination.is_same_as(source):
        told = "is the file that is migrated"
    elif destination.exists() and destination.holds(source):
        told = "holds the file that is migrated"
    elif destination.exists() and source.holds(destination):
        told = "is a part of the one that is migrated"
    else:
        return
    raise MigrationError(
        f"`{destination.name}` {told}.\n"
        "Expected: another one, as a source is never changed. Received: the same.\n"
        "Pass another path."
    )
