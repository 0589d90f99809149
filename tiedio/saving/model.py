"""`save_tied` and `load_tied`: where a live model and a file meet.

On its way out: the saveables are visited, ties found, every array laid out
once, and streamed. On its way in: the model is built *uncompiled* and without
values, retied, compiled, and its state read into place; last its optimizers are
built, so that they see the shared variables, and their state is read.
"""

import contextlib
import dataclasses
import posixpath
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from tiedio.errors import FileFormatError, SaveError, check_mapping, listed, warn
from tiedio.formats import table
from tiedio.formats.content import ASSETS, Content, Opened
from tiedio.model.arguments import as_one, check_built
from tiedio.model.several import Models, as_given
from tiedio.model.walk import Walk, walk
from tiedio.saving import configs, keras2_config, keras2_layout, migrated, orbax, several, unsaved
from tiedio.saving.background import Buffer, Saving, buffer_for, catch_up, ended, settle, write
from tiedio.saving.capture import capture, metadata
from tiedio.saving.deferral import Deferral
from tiedio.saving.garbage import uncollected
from tiedio.saving.loading import Loading
from tiedio.saving.reports import Reports
from tiedio.storage.base import Storage
from tiedio.storage.hub import Hub
from tiedio.storage.locating import at, path_of
from tiedio.storage.progress import bar


def save_tied(
    model: keras.Model | Mapping[str, keras.Model],
    filepath: Any,
    overwrite: bool = True,
    zipped: bool | None = None,
    *,
    include_optimizer: bool = True,
    strict: bool = True,
    stock_readable: bool = True,
    durable: bool = True,
    progress: bool = False,
    background: bool | Buffer = False,
) -> Saving | None:
    """Saves a model, with its shared variables, as a `.keras` file or in another format.

    Takes the place of `model.save`. The file is one that Keras itself can load,
    without the sharing. Each shared tensor is stored once: its other paths are
    HDF5 hard links. The tie groups are recorded in the file's metadata. The old file
    is replaced once the new one is complete and on disk, or left untouched.

    Args:
        model: The model. One that is not built is saved without weights, with a warning. Or
            several models by name, to one file, with what they share: layers, models that are
            part of others, variables. Stock Keras opens it as one model that holds them.
        filepath: Path of the file: it ends in `.keras`, or for the format of Keras 2 in
            `.h5` or `.hdf5`. Also a URL that fsspec knows, such as `s3://bucket/model.keras`,
            a file that is open for writing (`.keras` goes there), or `hf://namespace/name`.
        overwrite: Whether to replace an existing file without asking at the
            prompt, as in Keras.
        zipped: `False` saves to a folder, whose other files are kept. `None` does so on the
            Hugging Face Hub only.
        include_optimizer: Whether to save how the model, and models in it, were compiled, with
            their optimizers.
        strict: Whether it is an error if training could not resume: an optimizer was built for
            variables that were replaced since, or the model uses variables that saving does not
            reach. Else these are left out, with a `TiedioWarning`.
        stock_readable: Whether variables that layers show transposed (`tie(..., transpose=True)`)
            are stored once more for each, as stock Keras needs them. Without, the file is
            smaller, and stock Keras says that variables are missing.
        durable: Whether to wait until the file is on disk. Without, saving is quicker, and
            a crash of the process still leaves the old file or the new one, but after a
            power failure the file may be incomplete, or missing.
        progress: Whether to show a progress bar, by bytes.
        background: Whether to return once all is checked and the values are copied, and to write
            meanwhile: the file gets the values of the call, whatever is trained next. The copy
            takes as much memory as the file, which the next save of the model uses again. If it
            would take more than half of the memory that is free, or the file is an open one,
            the call returns when all is written.

    Returns:
        With `background`, a `tiedio.Saving`: `wait()` waits, and raises what the save fails with.

    Raises:
        ArgumentError: If something else is passed than a model, or models by name, and a path.
        ModelNotBuiltError: If one of several models has no variables yet.
        SaveError: If the path names no format, an optimizer was built for variables that were
            replaced since, something that training uses would be lost, or HDF5 is asked for and
            cannot hold the model, or several. All is named.
        OSError: If the file cannot be written; `MissingFileError` if there is no such folder
            (for `.h5` it is made, as by Keras).

    Example:

    >>> import keras, tiedio
    >>> encoder, decoder = keras.layers.Dense(4), keras.layers.Dense(4)
    >>> model = keras.Sequential([keras.Input((4,)), encoder, decoder])
    >>> _ = tiedio.tie(decoder, to=encoder)
    >>> tiedio.save_tied(model, "model.keras")
    >>> loaded = tiedio.load_tied("model.keras")
    >>> loaded.layers[0].kernel is loaded.layers[1].kernel
    True

    Source: the file format is that of `keras.saving.save_model`; for the record
    see `tiedio/record/record.py`.
    """
    root = as_one(model)
    target = at(filepath)
    if zipped is None:
        zipped = not isinstance(target, Hub)
    container = table.format_to_save(target, holds_model=True, zipped=zipped)
    if isinstance(root, Models):
        check_built(root, "saving")
        if container.has_old_layout:
            raise SaveError(
                f"Cannot save {listed(root.models)} to `{target.name}`.\n"
                "Expected: one model, as there is a place for one optimizer in this format. "
                f"Received: {len(root.models)}.\n"
                "Save them to a path ending in `.keras`."
            )
    if not (root.built or root.weights):
        warn(
            [
                f"Model `{root.name}` is saved without weights: it is not built yet. Build it, or "
                "call it on data, before saving."
            ]
        )
    settle(target)
    if not may_replace(target, overwrite):
        return ended(target) if background else None
    with uncollected(), contextlib.ExitStack() as resources:
        found = walk(root)
        if not include_optimizer:
            found = Walk(found.parts)
        assets = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        layout, record, lost = capture(found, assets, strict=strict, stock_readable=stock_readable)
        config = several.write(root)
        if not include_optimizer:
            config = configs.uncompiled(config)
        content = Content(layout, record, metadata(), config=config, assets=assets)
        if container.has_old_layout:
            target.make_folder()
            old = keras2_layout.capture(root, layout, include_optimizer)
            content = dataclasses.replace(content, old_layout=old)
        saving = write(
            container,
            target,
            content,
            durable=durable,
            progress=progress,
            buffer=buffer_for(background, root),
            resources=resources,
        )
    warn([*lost, *unsaved.warnings_for(found, config, record, container.has_old_layout)])
    return saving


def load_tied(
    filepath: Any,
    custom_objects: Mapping[str, Any] | None = None,
    compile: bool = True,
    safe_mode: bool = True,
    *,
    strict: bool = True,
    verify: bool = True,
    random_state: bool | None = None,
    step: int | None = None,
    progress: bool = False,
) -> keras.Model:
    """Loads a model and shares again the variables that it shared when saved.

    Takes the place of `keras.saving.load_model`, also for files that Keras wrote; those of
    Keras 2 are read as `tiedio migrate` would write them.
    The optimizer resumes with its slots, iterations and learning rate, and seed
    generators (dropout) with their state: training goes on as if it had not
    stopped.

    Args:
        filepath: Path of a file or folder in any format that `save_tied` writes, whatever
            it is called; also a URL, an open file, or `hf://namespace/name`. Or the folder of
            `TiedOrbaxCheckpoint`, or of Keras' own `OrbaxCheckpoint`.
        custom_objects: Maps names to classes and functions of your own.
        compile: Whether to compile the model as it was.
        safe_mode: Whether to refuse Python lambdas, which can run any code. As in Keras,
            `keras.config.enable_unsafe_deserialization` allows them in any case.
        strict: Whether it is an error if ties or optimizer state cannot be restored, or the
            model's class compiles it otherwise than it was; else it is a `TiedioWarning`. One
            in any case is what a file without a record does not tell of its optimizer, and that a
            class with a `compile` of its own is not compiled, as Keras leaves it.
        verify: Whether to compare what is read with the digests in the record; of a
            file without digests, the checksum of the zip archive is compared.
        random_state: Whether random numbers that are drawn without a seed (by functions of
            `keras.random`, or by `Dropout` on torch) go on as when the model was saved. They
            come from generators of the process, which other models draw from, too: by default
            these are left alone, with a `TiedioWarning` if training would not resume exactly.
        step: The step of an Orbax checkpoint; the last that was finished, unless given.
        progress: Whether to show a progress bar, by bytes.

    Returns:
        The model; if several were saved by name, a dict of them.

    Raises:
        ArgumentError: If something else is passed than a path, or a mapping of custom objects.
        MissingFileError: If there is no such file.
        FileFormatError: If the file is not a Keras file, or is damaged. All damaged
            variables are named.
        RecordError: If its record is malformed, newer than this tiedio, or names
            variables that the model does not have.
        CustomObjectsError: If `custom_objects` lacks classes of the file.
        LoadError: If some state cannot be restored. All is named.

    Example:

    >>> import keras, numpy, tiedio
    >>> layers = [keras.layers.Conv2D(2, 3, padding=padding) for padding in ("same", "valid")]
    >>> model = keras.Sequential([keras.Input((9, 9, 2)), *layers])
    >>> _ = tiedio.tie(layers[1], to=layers[0])
    >>> model.compile(optimizer="adam", loss="mse")
    >>> _ = model.fit(numpy.ones((1, 9, 9, 2)), numpy.ones((1, 7, 7, 2)), epochs=3, verbose=0)
    >>> tiedio.save_tied(model, "model.keras")
    >>> resumed = tiedio.load_tied("model.keras")
    >>> first, second = resumed.layers
    >>> first.kernel is second.kernel, int(resumed.optimizer.iterations)
    (True, 3)

    Source: identity of variables after loading is what
    [keras#18821](https://github.com/keras-team/keras/issues/18821) asks for.
    """
    place = at(filepath if step is None else posixpath.join(path_of(filepath), str(step)))
    check_mapping("custom_objects", custom_objects, "Map names to the classes and functions.")
    catch_up(place)
    with (
        uncollected(),
        tempfile.TemporaryDirectory() as folder,
        migrated.reading(place, Path(folder), verify) as (source, lost),
        bar(f"Loading {place.label}", progress, "building") as advance,
    ):
        reports = Reports(strict=strict)
        reports.warnings += lost if compile else []
        if source.unplaced and source.config:
            with configs.reading(custom_objects, safe_mode) as scopes:
                orbax.place_by_config(source, _config(source, scopes, {}), reports, compile)
        source.weights.advance = advance
        record = source.read_record(verify)
        with (
            Deferral(source.weights.size) as deferral,
            configs.reading(custom_objects, safe_mode) as scopes,
        ):
            config = _config(source, scopes, record.models if record else {})
            loading = Loading(source, deferral, reports)
            loading.build(config)
            loading.describe(record)
            loading.retie()
            compiled = compile and config.compile(loading.model, deferral)
            for error in config.differences:
                reports.described(error)
            source.extract_assets(Path(folder))
            loading.read(Path(folder) / ASSETS)
            # Optimizers last: TensorFlow's cannot be built for variables without values.
            loading.resume(compiled, compile)
            loading.finish()
    loading.go_on_drawing(random_state)
    reports.warn()
    return as_given(loading.model)


def _config(
    source: Opened, scopes: contextlib.ExitStack, models: Mapping[str, str]
) -> configs.Config | several.ModelsConfig | keras2_config.OldConfig:
    """Returns the config of a file, which is read in these scopes."""
    if source.old_layout is not None and source.old_layout.model_config:
        return keras2_config.OldConfig(source.old_layout)
    if source.config is not None and models:
        return several.ModelsConfig(source.config, models, source.filepath, scopes)
    if source.config is not None:
        return configs.Config(source.config, source.filepath, scopes)
    raise FileFormatError(
        f"`{source.filepath}` holds the weights of a model only.\n"
        "Expected: a whole model. Received: no config.\n"
        "Build the model, and pass it to `tiedio.load_tied_weights`."
    )


def may_replace(target: Storage, overwrite: bool) -> bool:
    """Whether nothing is there, or it may be replaced; asks at the prompt, as Keras does."""
    if overwrite or not target.exists():
        return True
    answer = input(f"[WARNING] {target.name} already exists - overwrite? [y/n] ")
    return answer.strip().lower() == "y"
