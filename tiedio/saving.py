"""`save_tied` and `load_tied`: where a live model and a file meet.

On its way out: the saveables are visited, ties found, every array laid out
once, and streamed. On its way in: the model is built *uncompiled*, retied, then
compiled, so that its optimizer sees the shared variables, and last the state is
read into place. Reader and writer mirror each other, step by step.
"""

import collections
import contextlib
import dataclasses
import datetime
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras

from tiedio import archive, hdf5, retying, state, ties, variables
from tiedio.errors import (
    CustomObjectsError,
    FileFormatError,
    LoadError,
    ModelNotBuiltError,
    SaveError,
    TiedioError,
    first_line,
    listed,
)
from tiedio.ties import Record

# Bytes that any tensor may have, however small the model's are.
_ROOM = 1 << 20

# How Keras says in a config that several layers are one object.
_MARK = "shared_object_id"


def save_tied(
    model: keras.Model,
    filepath: str | os.PathLike[str],
    overwrite: bool = True,
    zipped: bool | None = None,
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
        with variables.ObjectSharingScope():
            config = _without_marks(keras.saving.serialize_keras_object(model))
            if (config.get("compile_config") or {}).get("optimizer"):
                # Not the one given to `compile`: Keras wraps that for loss scaling, and wraps
                # it again only where the policy in force is the same.
                optimizer = keras.saving.serialize_keras_object(model.optimizer)
                config["compile_config"]["optimizer"] = optimizer

        def metadata(digests: dict[str, str]) -> dict[str, Any]:
            return {
                "keras_version": keras.__version__,
                "date_saved": datetime.datetime.now().strftime("%Y-%m-%d@%H:%M:%S"),
                ties.METADATA_KEY: dataclasses.replace(record, digests=digests).to_json(),
            }

        archive.write_archive(path, metadata, config, layout, Path(assets))


def load_tied(
    filepath: str | os.PathLike[str],
    custom_objects: Mapping[str, Any] | None = None,
    compile: bool = True,
    safe_mode: bool = True,
    *,
    strict: bool = True,
    verify: bool = True,
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
    with archive.open_archive(path) as source, tempfile.TemporaryDirectory() as folder:
        recorded = source.metadata.get(ties.METADATA_KEY)
        # A file that Keras wrote has no record: it loads as in Keras, warnings included.
        record = None if recorded is None else Record.from_json(recorded)
        if verify and record and record.digests:
            source.weights.expect(record.digests)
        elif verify:
            source.verify_weights()
        with _explained(source.config, path):
            config = _without_marks(source.config)
        compile_config = config.pop("compile_config", None)
        with (
            variables.ObjectSharingScope(),
            variables.SafeModeScope(safe_mode),
            keras.saving.CustomObjectScope(dict(custom_objects or {})),
        ):
            with _explained(source.config, path):
                model = keras.saving.deserialize_keras_object(config)
            if not isinstance(model, keras.Layer):
                raise LoadError(
                    f"`{path}` holds no model.\n"
                    f"Expected: a model. Received: {type(model).__name__}.\n"
                    "Load it with `keras.saving.load_model`."
                )
            source.weights.room = _ROOM + 8 * max(
                (math.prod(variable.shape) for variable in model.variables), default=0
            )
            if record is None:
                inferred = retying.infer_shared_layers(model, source.weights)
                retying.retie(model, Record(shared_layers=inferred), source.weights)
            else:
                state.report(retying.retie(model, record, source.weights), strict)
                _check_links(model, record, source.weights)
            if compile and compile_config:
                with _explained(source.config, path):
                    model.compile_from_config(compile_config)
                model.compiled = True
            if record:
                error = retying.match_optimizers(model, record)
                state.report(error if compile and compile_config else None, strict)
        source.extract_assets(Path(folder))
        state.restore(
            variables.walk(model), source.weights, Path(folder) / archive.ASSETS, record, strict
        )
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


def _check_links(model: keras.Model, record: Record, weights: hdf5.WeightsFile) -> None:
    """Checks the ties of a model against the values: they must be equal in the file."""
    places = variables.find_places(variables.walk(model))
    owners = {
        path: group.dataset_paths[0]
        for group in record.tie_groups
        if all(place in places for place in group.places)
        for path in group.dataset_paths[1:]
    }
    if differing := weights.disagreements(owners):
        raise hdf5.damaged(weights.filepath, differing, "other values than at their owners")


@contextlib.contextmanager
def _explained(config: Any, path: Path) -> Iterator[None]:
    """Turns what Keras says of a config that it cannot read into errors of tiedio."""
    try:
        yield
    except TiedioError:
        raise
    except Exception as error:  # a config may lead Keras anywhere
        missing = _unregistered(config) if "ould not locate" in str(error) else set()
        if missing:
            raise CustomObjectsError(
                f"`{path}` needs classes or functions that are not registered: "
                f"{listed(missing)}.\n"
                "Expected: all of them in `custom_objects`. Received: not these.\n"
                "Pass `custom_objects`, or register them with "
                "`keras.saving.register_keras_serializable`."
            ) from error
        # Keras wraps the error of a layer once for each model around it.
        kind = type(error).__name__
        cause = str(error).rpartition("Exception encountered: ")[2]
        raise LoadError(
            f"Cannot build the model of `{path}`: {first_line(Exception(cause or kind))}\n"
            f"Expected: a config that Keras {keras.__version__} reads. Received: {kind}.\n"
            "Load the file with the same classes, in the version it was saved with."
        ) from error


def _without_marks(config: Any) -> Any:
    """Copies a config without Keras' marks of layers that are shared by several graphs.

    A graph finds the calls of its layers by number: made one object by such a mark, a
    layer that was called in another graph before would answer with that call.
    """
    marked = collections.Counter()

    def copied(part: Any) -> Any:
        if isinstance(part, (list, tuple)):
            return [copied(item) for item in part]
        if not isinstance(part, dict):
            return part
        marked.update(mark for mark in map(_mark, _graph_layers(part)) if mark is not None)
        return {key: copied(value) for key, value in part.items()}

    def clean(part: Any) -> None:
        for item in part.values() if isinstance(part, dict) else part:
            if isinstance(item, (list, dict)):
                clean(item)
        for layer in _graph_layers(part):
            if marked[_mark(layer)] > 1:
                layer.pop(_MARK, None)

    config = copied(config)
    clean(config)
    return config


def _graph_layers(config: Any) -> list[dict[str, Any]]:
    layers = config.get("layers") if isinstance(config, dict) else None
    return [one for one in layers if isinstance(one, dict)] if isinstance(layers, list) else []


def _mark(layer: dict[str, Any]) -> Any:
    mark = layer.get(_MARK)
    return mark if isinstance(mark, int) else None


def _unregistered(config: Any) -> set[str]:
    """Names the classes and functions in a config that Keras cannot find."""
    found = set()
    parts = [config]
    while parts:
        part = parts.pop()
        if isinstance(part, list):
            parts += part
        if not isinstance(part, dict):
            continue
        parts += part.values()
        name = part.get("class_name")
        if name == "function":
            try:  # only Keras knows all the modules in which it looks a function up
                keras.saving.deserialize_keras_object(part)
            except Exception:
                found.add(str(part.get("config")))
        elif name and str(part.get("module", "keras")).split(".")[0] != "keras":
            registered = str(part.get("registered_name") or name)
            if keras.saving.get_registered_object(registered) is None:
                found.add(str(name))
    return found
