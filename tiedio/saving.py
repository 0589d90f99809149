"""`save_tied` and `load_tied`: where a live model and a file meet.

On its way out: the saveables are visited, ties found, every array laid out
once, and streamed. On its way in: the model is built *uncompiled* and without
values, retied, compiled, and its state read into place; last its optimizers are
built, so that they see the shared variables, and their state is read.
"""

import dataclasses
import datetime
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from tiedio import archive, configs, models, retying, state, ties, variables
from tiedio.deferral import Deferral
from tiedio.errors import (
    FileFormatError,
    ModelNotBuiltError,
    SaveError,
    TiedioError,
)
from tiedio.progress import shown
from tiedio.ties import Record
from tiedio.weights_file import WeightsFile, damaged

# Bytes that any tensor may have, however small the model's are.
_ROOM = 1 << 20


def save_tied(
    model: keras.Model,
    filepath: str | os.PathLike[str],
    overwrite: bool = True,
    zipped: bool | None = None,
    *,
    durable: bool = True,
    progress: bool = False,
) -> None:
    """Saves a model, with its shared variables, as a `.keras` file.

    Takes the place of `model.save`. The file is one that Keras itself can load,
    without the sharing. Each shared tensor is stored once: its other paths are
    HDF5 hard links. The tie groups are recorded in `metadata.json`. The old file
    is replaced once the new one is complete and on disk, or left untouched.

    Args:
        model: A built model.
        filepath: Path of the file, ending in `.keras`.
        overwrite: Whether to replace an existing file without asking at the
            prompt, as in Keras.
        zipped: `None` or `True`: only zip archives are written so far.
        durable: Whether to wait until the file is on disk. Without, saving is quicker, and
            a crash of the process still leaves the old file or the new one, but after a
            power failure the file may be incomplete, or missing.
        progress: Whether to show a progress bar, by bytes.

    Raises:
        ModelNotBuiltError: If the model has no variables yet.
        SaveError: If the path does not end in `.keras`, or an optimizer was built for
            variables that were replaced since. All are named.
        OSError: If the file cannot be written.

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
    see `tiedio/ties.py`.
    """
    path = _keras_path(filepath, SaveError, zipped)
    if not model.built:
        raise ModelNotBuiltError(
            f"Model `{model.name}` has no variables yet: it is not built.\n"
            "Expected: a built model. Received: an unbuilt one.\n"
            "Build it, or call it on data, before saving."
        )
    if path.exists() and not overwrite and not _may_overwrite(path):
        return
    visits = variables.walk(model)
    with tempfile.TemporaryDirectory() as assets:
        layout, record = state.capture(visits, Path(assets))
        config = configs.write(model)

        def metadata(digests: dict[str, str]) -> dict[str, Any]:
            return {
                "keras_version": keras.__version__,
                "date_saved": datetime.datetime.now().strftime("%Y-%m-%d@%H:%M:%S"),
                ties.METADATA_KEY: dataclasses.replace(record, digests=digests).to_json(),
            }

        with shown(f"Saving {path.name}", progress) as advance:
            archive.write_archive(
                path, metadata, config, layout, Path(assets), advance=advance, durable=durable
            )


def load_tied(
    filepath: str | os.PathLike[str],
    custom_objects: Mapping[str, Any] | None = None,
    compile: bool = True,
    safe_mode: bool = True,
    *,
    strict: bool = True,
    verify: bool = True,
    progress: bool = False,
) -> Any:
    """Loads a model and shares again the variables that it shared when saved.

    Takes the place of `keras.saving.load_model`, also for files that Keras wrote.
    The optimizer resumes with its slots, iterations and learning rate, and seed
    generators (dropout) with their state: training goes on as if it had not
    stopped.

    Args:
        filepath: Path of a `.keras` file.
        custom_objects: Maps names to classes and functions of your own.
        compile: Whether to compile the model as it was.
        safe_mode: Whether to refuse Python lambdas, which can run any code.
        strict: Whether it is an error if ties or optimizer state cannot be restored;
            otherwise it is a `TiedioWarning`, and they are left out.
        verify: Whether to compare what is read with the digests in the record; of a
            file without digests, the checksum of the zip archive is compared.
        progress: Whether to show a progress bar, by bytes.

    Returns:
        The model.

    Raises:
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
    path = _keras_path(filepath, FileFormatError)
    with (
        archive.open_archive(path) as source,
        tempfile.TemporaryDirectory() as folder,
        shown(f"Loading {path.name}", progress) as source.weights.advance,
    ):
        recorded = source.metadata.get(ties.METADATA_KEY)
        # A file that Keras wrote has no record: it loads as in Keras, warnings included.
        record = None if recorded is None else Record.from_json(recorded)
        source.weights.axis_orders = record.axis_orders if record else {}
        if verify and record and record.digests:
            source.weights.expect(record.digests)
        elif verify:
            source.verify_weights()
        with (
            Deferral(source.weights.size) as deferral,
            configs.reading(source.config, path, custom_objects, safe_mode) as config,
        ):
            model = config.build(deferral)
            source.weights.room = _ROOM + 8 * max(
                (math.prod(variable.shape) for variable in model.variables), default=0
            )
            inferred = record or Record(
                shared_layers=retying.infer_shared_layers(model, source.weights)
            )
            error = retying.retie(model, inferred, source.weights, deferral)
            state.report(error, strict or not record)
            _check_links(model, inferred, source.weights)
            compiled = compile and config.compile(model, deferral)
            source.extract_assets(Path(folder))
            restoration = state.Restoration(
                source.weights, Path(folder) / archive.ASSETS, record, deferral
            )
            # Optimizers last: TensorFlow's cannot be built for variables without values.
            visits = variables.walk(model)
            restoration.read(models.without_optimizers(visits))
            error = retying.match_optimizers(model, visits, inferred, deferral)
            state.report(error if compiled else None, strict)
            restoration.read(models.only_optimizers(variables.walk(model)))
            restoration.finish(strict)
        models.forget_functions(model)
    return model


def _keras_path(
    filepath: str | os.PathLike[str], error: type[TiedioError], zipped: bool | None = None
) -> Path:
    path = Path(filepath)
    if path.suffix != ".keras" or zipped is False:
        wanted = "a folder" if zipped is False else f"`{path.name}`"
        raise error(
            f"`{path}` is of a format that tiedio does not handle yet.\n"
            f"Expected: a path ending in `.keras`. Received: {wanted}.\n"
            "Use a `.keras` file."
        )
    return path


def _may_overwrite(path: Path) -> bool:
    answer = input(f"[WARNING] {path} already exists - overwrite? [y/n] ")
    return answer.strip().lower() == "y"


def _check_links(model: keras.Model, record: Record, weights: WeightsFile) -> None:
    """Checks the ties of a model against the values: they must be equal in the file."""
    places = variables.find_places(variables.walk(model))
    owners = {
        path: group.dataset_paths[0]
        for group in record.tie_groups
        if all(place in places for place in group.places)
        for path in group.dataset_paths[1:]
    }
    if differing := weights.disagreements(owners):
        raise damaged(weights.filepath, differing, "other values than at their owners")
