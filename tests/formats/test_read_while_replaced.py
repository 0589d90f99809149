"""Several files that are read together are of one save, whatever is saved meanwhile."""

import contextlib
import json
import os
import shutil
import threading
import time
from pathlib import Path

import generations
import pytest

from tiedio import errors
from tiedio.formats import folder, hdf5_reader, members, shards
from tiedio.storage.locating import at

TENSOR = generations.TENSOR_BYTES


def save_folder(filepath, generation):
    generations.save_folder(filepath, generation, durable=False)


def save_shards(filepath, generation):
    # An odd one has one shard, which Keras opens first; an even one has several.
    size = TENSOR * (8 if generation % 2 else 2)
    container = generations.SHARDS
    generations.save(filepath, generation, container, durable=False, shard_bytes=size)


SAVED = {"model": save_folder, "model.weights.json": save_shards}


@pytest.fixture(params=SAVED)
def saved(request, tmp_path):
    """Returns a path, and what saves to it."""
    return tmp_path / request.param, SAVED[request.param]


def meanwhile(monkeypatch, owner, name, act):
    """Does something before the first call of a function."""
    function, todo = getattr(owner, name), [act]

    def called(*arguments):
        if todo:
            todo.pop()()
        return function(*arguments)

    monkeypatch.setattr(owner, name, called)
    return todo


@pytest.mark.parametrize(
    ("name", "owner", "function"),
    [
        ("model", Path, "iterdir"),
        ("model", members, "parse"),
        ("model", hdf5_reader.WeightsFile, "find_damaged"),
        ("model.weights.json", shards, "parse"),
        ("model.weights.json", hdf5_reader.WeightsFile, "find_damaged"),
    ],
)
@pytest.mark.parametrize("first", [1, 2])
def test_a_save_in_the_middle_of_a_load(tmp_path, monkeypatch, name, owner, function, first):
    filepath, save = tmp_path / name, SAVED[name]
    save(filepath, first)
    todo = meanwhile(monkeypatch, owner, function, lambda: save(filepath, first + 1))
    assert generations.load(filepath) in (first, first + 1)
    assert not todo
    assert generations.load(filepath) == first + 1


@pytest.mark.slow
def test_loads_while_saves_go_on(saved):
    filepath, save = saved
    save(filepath, 1)
    done = threading.Event()

    def save_again_and_again():
        generation = 1
        while not done.is_set():
            generation += 1
            save(filepath, generation)

    saver = threading.Thread(target=save_again_and_again)
    saver.start()
    try:
        loaded = set()
        end = time.monotonic() + 2
        while time.monotonic() < end:
            loaded.add(generations.load(filepath))
    finally:
        done.set()
        saver.join()
    assert len(loaded) > 2


def test_a_shard_that_is_missing_whoever_reads(tmp_path):
    filepath = tmp_path / "model.weights.json"
    save_shards(filepath, 2)
    for shard in tmp_path.glob("*.weights.h5"):
        shard.unlink()
    with pytest.raises(errors.MissingFileError):
        generations.load(filepath)


# Where a folder is not replaced whole, as where its files are copied one by one


def other_config(folder):
    """Puts the config of another save into a folder; returns its path."""
    other = folder.with_name("other")
    save_folder(folder, 1)
    save_folder(other, 2)
    return Path(shutil.copy(other / "config.json", folder))


def test_a_config_of_another_save(tmp_path):
    other_config(tmp_path / "model")
    with pytest.raises(errors.FileFormatError) as error:
        generations.load(tmp_path / "model")
    assert str(error.value) == (
        f"`{tmp_path / 'model'}` is damaged.\n"
        "Expected: a complete file of Keras or tiedio. "
        "Received: `config.json` of another save.\n"
        "Restore it from a copy, or save the model again."
    )


@pytest.mark.parametrize("entry", [None, 1, {}, {"save": None}])
def test_a_config_that_does_not_say_of_which_save_it_is(tmp_path, entry):
    path = other_config(tmp_path / "model")
    config = json.loads(path.read_text()) | {"tiedio": entry, "generation": 1}
    path.write_text(json.dumps(config))
    assert generations.load(tmp_path / "model") == 1
    with folder.reading(at(tmp_path / "model")) as opened:
        assert opened.config == {"generation": 1}


def test_an_edited_config(tmp_path):
    save_folder(tmp_path / "model", 1)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "edited": True}))
    assert generations.load(tmp_path / "model") == 1


# Where systems differ


@pytest.mark.parametrize("first", [1, 2])
def test_where_a_folder_cannot_be_held(tmp_path, monkeypatch, first):
    filepath = tmp_path / "model"
    save_folder(filepath, first)
    monkeypatch.delattr(os, "O_DIRECTORY", raising=False)
    meanwhile(monkeypatch, Path, "iterdir", lambda: save_folder(filepath, first + 1))
    assert generations.load(filepath) == first + 1


def test_where_a_folder_has_another_number_each_time(tmp_path, monkeypatch):
    save_folder(tmp_path / "model", 1)
    other = contextlib.nullcontext(tmp_path.stat())
    monkeypatch.setattr(folder, "_held", lambda path: other)
    assert generations.load(tmp_path / "model") == 1


def test_where_a_folder_is_put_aside_for_a_moment(tmp_path, monkeypatch):
    filepath = tmp_path / "model"
    save_folder(filepath, 1)

    def put_aside():
        raise FileNotFoundError

    meanwhile(monkeypatch, Path, "iterdir", put_aside)
    with folder.reading(at(filepath)) as opened:
        assert opened.config == {"generation": 1}


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(errors.MissingFileError), folder.reading(at(tmp_path / "model")):
        pass
