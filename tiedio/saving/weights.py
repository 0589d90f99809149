"""`save_tied_weights` and `load_tied_weights`: weights into, and out of, a model that exists."""

import collections
import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from tiedio.errors import LoadError, SaveError, TiedioWarning
from tiedio.formats import table
from tiedio.formats.content import Content, Opened
from tiedio.formats.hdf5_reader import damaged
from tiedio.model import renewal
from tiedio.model.places import find_places, find_shared
from tiedio.model.walk import Visit, walk
from tiedio.record.record import Record
from tiedio.record.ties import merged
from tiedio.saving import fitting, inference, keras2_layout, old_ties, retying
from tiedio.saving.capture import capture
from tiedio.saving.deferral import Deferral
from tiedio.saving.model import check_built, may_replace, metadata
from tiedio.saving.optimizers import match_optimizers
from tiedio.saving.restoration import Restoration, make_room, report
from tiedio.storage.locating import at
from tiedio.storage.open_file import OpenFile
from tiedio.storage.progress import shown

# As in Keras.
_ONE_FILE, _SHARDED = ".weights.h5", ".weights.json"
_SHARD_SIZE = 5  # GB


def save_tied_weights(
    model: keras.Model,
    filepath: Any,
    overwrite: bool = True,
    max_shard_size: float | None = None,
    *,
    objects_to_skip: Iterable[Any] | None = None,
    durable: bool = True,
    progress: bool = False,
) -> None:
    """Saves the weights of a model, each shared tensor once, and what they share.

    Takes the place of `model.save_weights`; the file is one that Keras itself can load. As
    in Keras, the state of the optimizer is among the weights.

    Args:
        model: A built model.
        filepath: Path of the file, ending in `.weights.h5`, or with `max_shard_size` in
            `.weights.json`; also a URL that fsspec knows, or a file that is open for writing.
        overwrite: Whether to replace an existing file without asking at the
            prompt, as in Keras.
        max_shard_size: How large one file may be, in GB (2**30 bytes). The tensors then lie
            in files beside the JSON, which says what is in which.
        objects_to_skip: Layers, or the optimizer, whose state is left out.
        durable: Whether to wait until the files are on disk, as in `save_tied`.
        progress: Whether to show a progress bar, by bytes.

    Raises:
        ModelNotBuiltError: If the model has no variables yet.
        SaveError: If the path has another ending, a tensor is larger than a shard, or an
            optimizer was built for variables that were replaced since. All are named.
        OSError: If the file cannot be written.

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
        warnings.warn(
            f"`max_shard_size` needs a path ending in `{_SHARDED}`: saving to `{target.name}`.",
            TiedioWarning,
            stacklevel=2,
        )
    container = table.format_to_save(target, holds_model=False)
    check_built(model, "saving")
    if not may_replace(target, overwrite):
        return
    layout, record = capture(walk(model, objects_to_skip or ()), None, walk(model))
    shard_bytes = (max_shard_size or _SHARD_SIZE) * 2**30
    content = Content(layout, record, metadata(), shard_bytes=shard_bytes)
    with shown(f"Saving {target.label}", progress) as advance:
        container.write(target, content, durable, advance)


def load_tied_weights(
    model: keras.Model,
    filepath: Any,
    skip_mismatch: bool = False,
    *,
    objects_to_skip: Iterable[Any] | None = None,
    by_name: bool = False,
    strict: bool = True,
    verify: bool = True,
    progress: bool = False,
) -> None:
    """Loads weights into a model, and shares what was shared when they were saved.

    Takes the place of `model.load_weights`, also for files that Keras wrote, and for the
    weights in a file of a whole model. Afterwards variables are one that were one in the file,
    or are in the model already; layers keep their names and `trainable` flags. If the model
    has the optimizer of the file, that resumes. All is checked before anything is changed.

    Args:
        model: A built model, like the one that was saved.
        filepath: Path of a file in any format of Keras; also a URL, or an open file.
        skip_mismatch: Whether to leave out, with a `TiedioWarning`, what does not fit.
        objects_to_skip: Layers, or the optimizer, that are left as they are.
        by_name: Of a file in the layout of Keras 2, whether to go by the names of layers instead
            of by their order, and to leave out those that only one of the two has.
        strict: Whether it is an error if ties or the optimizer state cannot be restored.
        verify: Whether to read all of the file first, and compare it with the digests in
            its record.
        progress: Whether to show a progress bar, by bytes.

    Raises:
        ModelNotBuiltError: If the model has no variables yet.
        MissingFileError: If there is no such file, or shards are missing.
        FileFormatError: If the file is not a Keras file, or is damaged. All damaged
            variables are named.
        RecordError: If its record is malformed, newer than this tiedio, or says that
            variables are one that the model does not have, or that have other shapes.
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
    strict = strict and not skip_mismatch
    check_built(model, "loading its weights")
    place = at(filepath)
    skipped = list(objects_to_skip or ())
    with (
        table.reading(place) as source,
        shown(f"Loading {place.label}", progress) as source.weights.advance,
    ):
        make_room(source.weights, model)
        if by_name or source.old_layout:
            _load_old_layout(model, source, by_name, skip_mismatch, bool(skipped), strict, verify)
            return
        record = source.read_record(verify)
        if damaged_paths := source.weights.find_damaged():
            raise damaged(place.name, damaged_paths, "others")

        def saveables(left_out: Iterable[Any] = skipped) -> Sequence[Visit]:
            return inference.located(walk(model, left_out), source.weights)

        visits, everything = saveables(), saveables([])
        paths, all_paths = (
            {path for visit in some for path in visit.inner_paths} for some in (visits, everything)
        )
        inferred = inference.of_model(record, visits, source.weights)
        wanted = fitting.fitted(inferred, visits, all_paths - paths)
        for error in fitting.check(wanted, source.weights, visits):
            report(error, strict)
        report(retying.disagreement(visits, inferred, source.weights), strict=True)
        report(fitting.conflict(wanted, source.weights, visits), strict=True)
        if record:
            report(inference.unrecorded_links(visits, source.weights, wanted), strict)
        unresumable = fitting.find_unresumable(wanted, source.weights, visits, everything)
        for error in unresumable.values():
            report(error, strict)
        wanted = dataclasses.replace(
            wanted,
            optimizer_variables={
                path: trained
                for path, trained in wanted.optimizer_variables.items()
                if path not in unresumable
            },
        )
        with Deferral(source.weights.size) as deferral:
            # What it cannot restore `fitting.check` has told, but for what only LoRA has.
            retying.retie(saveables, wanted, source.weights, deferral, in_use=True)
            restoration = Restoration(source.weights, None, record and wanted, deferral)
            restoration.read(renewal.without_optimizers(saveables()))
            if wanted.optimizer_variables or len(source.weights.store("optimizer")):
                match_optimizers(model, saveables(), wanted, deferral, saveables([]))
            restoration.read(
                [
                    visit
                    for visit in renewal.only_optimizers(saveables())
                    if len(source.weights.store(visit.inner_path))
                    and not f"{visit.inner_path}/".startswith(tuple(f"{p}/" for p in unresumable))
                ]
            )
            restoration.finish(strict)
        renewal.renew_functions(model)


def _load_old_layout(
    model: keras.Model,
    source: Opened,
    by_name: bool,
    skip_mismatch: bool,
    skips_objects: bool,
    strict: bool,
    verify: bool,
) -> None:
    """Loads weights that Keras stored by position, as Keras does; the optimizer is left alone.

    What was one is one tensor there, or listed under the name of the layer that made it.
    """
    if source.old_layout is None or skips_objects:
        option, files = (
            ("objects_to_skip", "other files")
            if skips_objects
            else ("by_name", "files of Keras itself in the layout of Keras 2")
        )
        raise LoadError(
            f"`{option}` cannot be used for `{source.filepath}`.\n"
            f"Expected: it for {files} only, as in Keras. Received: {option}.\n"
            f"Leave `{option}` out."
        )
    weights, old = source.weights, source.old_layout
    source.read_record(verify)
    matches = keras2_layout.fitting(model, old, by_name, skip_mismatch)
    pairs = [pair for one in matches for pair in one.pairs]
    owners: dict[int, str] = {}
    aliases = {}
    for variable, weight in pairs:
        path = weight.dataset_path
        if owners.setdefault(id(variable), path) != path:
            aliases[path] = owners[id(variable)]
    report(fitting.conflict_error(weights, aliases), strict=True)
    visits = walk(model)
    places = collections.defaultdict(list)
    for place, (_, variable) in find_places(visits).items():
        places[id(variable)].append(place)
    own = (group for group, _ in find_shared(visits))
    ties = merged([*old_ties.find(model, old, matches, places, weights), *own])
    shared = Record(tie_groups=tuple(ties))
    report(retying.error_of(retying.find_problems(visits, shared)), strict)
    values = [(variable, weights.read(weight.dataset_path)) for variable, weight in pairs]
    for variable, value in values:
        variable.assign(value)
    with Deferral(weights.size) as deferral:
        retying.retie(lambda: walk(model), shared, weights, deferral, in_use=True)
    keras2_layout.finalize(model)
    renewal.renew_functions(model)
