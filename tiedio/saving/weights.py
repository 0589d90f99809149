"""`save_tied_weights` and `load_tied_weights`: weights into, and out of, a model that exists."""

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras

from tiedio.errors import LoadError, SaveError, unfit, warn
from tiedio.formats import table
from tiedio.formats.content import Content, Opened
from tiedio.model.arguments import as_one, check_built, saveables_in
from tiedio.model.walk import walk
from tiedio.saving import orbax, several
from tiedio.saving.background import Buffer, Saving, buffer_for, catch_up, ended, settle, write
from tiedio.saving.capture import capture, metadata
from tiedio.saving.deferral import Deferral
from tiedio.saving.fitting import has_all
from tiedio.saving.garbage import uncollected
from tiedio.saving.loading import Loading
from tiedio.saving.model import may_replace
from tiedio.saving.reports import Reports
from tiedio.storage.locating import at
from tiedio.storage.open_file import OpenFile
from tiedio.storage.progress import bar

# As in Keras.
_ONE_FILE, _SHARDED = ".weights.h5", ".weights.json"
_SHARD_SIZE = 5  # GB


def save_tied_weights(
    model: keras.Model | Mapping[str, keras.Model],
    filepath: Any,
    overwrite: bool = True,
    max_shard_size: float | None = None,
    *,
    objects_to_skip: Iterable[Any] | None = None,
    strict: bool = True,
    stock_readable: bool = True,
    durable: bool = True,
    progress: bool = False,
    background: bool | Buffer = False,
) -> Saving | None:
    """Saves the weights of a model, each shared tensor once, and what they share.

    Takes the place of `model.save_weights`; the file is one that Keras itself can load. As
    in Keras, the state of the optimizer is among the weights.

    Args:
        model: A built model, or several by name, as in `save_tied`.
        filepath: Path of the file, ending in `.weights.h5`, or with `max_shard_size` in
            `.weights.json`; also a URL that fsspec knows, or a file that is open for writing.
        overwrite: Whether to replace an existing file without asking at the
            prompt, as in Keras.
        max_shard_size: How large one file may be, in GB (2**30 bytes). The tensors then lie
            in files beside the JSON, which says what is in which.
        objects_to_skip: Layers, or the optimizer, whose state is left out.
        strict: Whether it is an error if training could not resume, as in `save_tied`.
        stock_readable: Whether stock Keras can load the file, as in `save_tied`.
        durable: Whether to wait until the files are on disk, as in `save_tied`.
        progress: Whether to show a progress bar, by bytes.
        background: Whether to write while the program goes on, as in `save_tied`.

    Returns:
        With `background`, a `tiedio.Saving`, as from `save_tied`.

    Raises:
        ArgumentError: If something else is passed than a model, a path and the like.
        ModelNotBuiltError: If the model has no variables yet.
        SaveError: If the path has another ending, a tensor is larger than a shard, or an
            optimizer was built for variables that were replaced since. All are named.
        OSError: If the file cannot be written; `MissingFileError` if there is no such folder.

    Example:

    >>> import keras, tiedio
    >>> encoder, decoder = keras.layers.Dense(4), keras.layers.Dense(4)
    >>> model = keras.Sequential([keras.Input((4,)), encoder, decoder])
    >>> _ = tiedio.tie(decoder, to=encoder)
    >>> tiedio.save_tied_weights(model, "model.weights.h5")
    >>> untied = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(4)])
    >>> tiedio.load_tied_weights(untied, "model.weights.h5")
    >>> untied.layers[0].kernel is untied.layers[1].kernel
    True

    Source: the file formats are those of `keras.saving.save_weights`; for the record see
    `tiedio/record/record.py`.
    """
    root = as_one(model)
    check_built(root, "saving")
    skipped = saveables_in(objects_to_skip)
    if max_shard_size is not None and not (
        isinstance(max_shard_size, numbers.Real) and max_shard_size > 0
    ):
        raise unfit(
            {"max_shard_size": max_shard_size},
            "a number of GB, above 0",
            "Pass such a number, or leave it out to write one file.",
        )
    target = at(filepath)
    if isinstance(target, OpenFile) and (max_shard_size is not None or target.has_begun()):
        received = "a file with other content" if max_shard_size is None else "`max_shard_size`"
        raise SaveError(
            f"Cannot save weights to `{target.name}`, which is open.\n"
            f"Expected: an empty file, for one file of weights. Received: {received}.\n"
            "Pass a path, or an empty file."
        )
    if max_shard_size is not None and target.name.endswith(_ONE_FILE):
        target = target.sibling(target.label.removesuffix(_ONE_FILE) + _SHARDED)
        warn([f"`max_shard_size` needs a path ending in `{_SHARDED}`: saving to `{target.name}`."])
    container = table.format_to_save(target, holds_model=False)
    settle(target)
    if not may_replace(target, overwrite):
        return ended(target) if background else None
    with uncollected():
        everything = walk(root)
        found = walk(root, skipped) if skipped else everything
        layout, record, lost = capture(
            found, None, everything, strict=strict, stock_readable=stock_readable
        )
        shard_bytes = (max_shard_size or _SHARD_SIZE) * 2**30
        content = Content(layout, record, metadata(), shard_bytes=shard_bytes)
        saving = write(
            container,
            target,
            content,
            durable=durable,
            progress=progress,
            buffer=buffer_for(background, root),
        )
    warn(lost)
    return saving


def load_tied_weights(
    model: keras.Model | Mapping[str, keras.Model],
    filepath: Any,
    skip_mismatch: bool = False,
    *,
    objects_to_skip: Iterable[Any] | None = None,
    by_name: bool = False,
    strict: bool = True,
    verify: bool = True,
    random_state: bool | None = None,
    progress: bool = False,
) -> None:
    """Loads weights into a model, and shares what was shared when they were saved.

    Takes the place of `model.load_weights`, also for files that Keras wrote, and for the
    weights in a file of a whole model. Afterwards variables are tied that are tied in the file,
    or in the model already; layers keep their names and `trainable` flags. If the model
    has the optimizer of the file, that resumes. All is checked before anything is changed.
    Layers that have names in the file of `save_tied` and in the model, the same ones, are found
    by them, in whatever order they come; others go by their order, as in Keras.

    Args:
        model: A built model, like the one that was saved; or several, by the names of then.
        filepath: Path of a file in any format of Keras; also a URL, or an open file.
        skip_mismatch: Whether to leave out, with a `TiedioWarning`, what does not fit.
        objects_to_skip: Layers, or the optimizer, that are left as they are.
        by_name: Of a file in the layout of Keras 2, as any `.h5` of a whole model, whether to go
            by the names of layers instead of by their order, and to leave out those that only
            one of the two has.
        strict: Whether it is an error if the model has no place for what the file describes:
            layers, variables, ties. Training state (of optimizers, of seed generators) that has
            none is told by a `TiedioWarning` either way.
        verify: Whether to read all of the file first, and compare it with the digests in
            its record.
        random_state: Whether random numbers that are drawn without a seed go on as when the
            weights were saved, as in `load_tied`.
        progress: Whether to show a progress bar, by bytes.

    Raises:
        ArgumentError: If something else is passed than a model, a path and the like.
        ModelNotBuiltError: If the model has no variables yet.
        MissingFileError: If there is no such file, or shards are missing.
        FileFormatError: If the file is not a Keras file, or is damaged. All damaged
            variables are named.
        RecordError: If its record is malformed, newer than this tiedio, or says that
            variables are tied that the model does not have, or that have other shapes.
        LoadError: If the weights are not those of this model. All are named.

    Example:

    >>> import keras, numpy, tiedio
    >>> tables = [keras.layers.Embedding(8, 2) for _ in range(2)]
    >>> model = keras.Sequential([keras.Input((3,)), tables[0]])
    >>> outer = keras.Sequential([keras.Input((3,)), tables[1]])
    >>> tiedio.save_tied_weights(model, "table.weights.h5")
    >>> tiedio.load_tied_weights(outer, "table.weights.h5")
    >>> bool(numpy.array_equal(tables[0].embeddings, tables[1].embeddings))
    True

    Source: `keras.saving.load_weights`, with the identity that
    [keras#18821](https://github.com/keras-team/keras/issues/18821) asks for.
    """
    given = as_one(model)
    check_built(given, "loading its weights")
    place = at(filepath)
    skipped = saveables_in(objects_to_skip)
    catch_up(place)
    with (
        uncollected(),
        table.reading(place) as source,
        bar(f"Loading {place.label}", progress) as advance,
        Deferral(source.weights.size) as deferral,
    ):
        reports = Reports(strict=strict, skip_mismatch=skip_mismatch, exists=True)
        orbax.place(source, given, reports, skipped)
        source.weights.advance = advance
        record = source.read_record(verify)
        root = several.as_saved(given, record.models if record else {}, source)
        loading = Loading(source, deferral, reports, skipped)
        loading.into(root)
        has_lists = source.read_lists is not None
        if by_name or (has_lists and not (skip_mismatch or has_all(source, walk(root)))):
            source.go_by_lists()
        _check_options(source, by_name, skipped)
        loading.describe(record, by_name, skip_mismatch)
        loading.fit()
        loading.retie()
        loading.read()
        loading.resume()
        loading.finish()
    loading.go_on_drawing(random_state)
    reports.warn()


def _check_options(source: Opened, by_name: bool, skipped: Sequence[Any]) -> None:
    """Refuses what Keras, too, takes for other files only."""
    if source.is_by_position and skipped:
        option, files = "objects_to_skip", "other files"
    elif by_name and not source.is_by_position:
        option, files = "by_name", "files in the layout of Keras 2"
    else:
        return
    raise LoadError(
        f"`{option}` cannot be used for `{source.filepath}`.\n"
        f"Expected: it for {files} only, as in Keras. Received: {option}.\n"
        f"Leave `{option}` out."
    )
