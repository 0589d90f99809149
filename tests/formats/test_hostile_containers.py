"""Hostile shards, bare files and folders: each is refused with an error of tiedio, in time."""

import json
import os
import re
import sys
import time
import tracemalloc

import generations
import h5py
import numpy as np
import pytest

from tiedio.errors import MissingFileError, TiedioError

SECONDS = 5  # of a processor
MEMORY = 64 << 20  # bytes, beyond four times the file

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither links nor pipes")


def refusal(filepath, kind=TiedioError):
    """Loads what is refused; returns what is said of it."""
    size = os.path.getsize(filepath)
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(kind) as error:
            generations.load(filepath)
        seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seconds < SECONDS
    assert peak < MEMORY + 4 * size
    assert str(error.value).count("\n") == 2
    return str(error.value)


# Shards


@pytest.fixture
def shards(tmp_path):
    filepath = tmp_path / "model.weights.json"
    shard_bytes = 2 * generations.TENSOR_BYTES
    generations.save(filepath, 1, generations.SHARDS, shard_bytes=shard_bytes)
    (tmp_path.parent / "outside.weights.h5").write_bytes(b"outside")
    return filepath


def rewritten(filepath, edit):
    content = json.loads(filepath.read_text())
    filepath.write_text(json.dumps(edit(content) or content))
    return content


NAMES = {
    "../outside.weights.h5": "a shard '../outside.weights.h5' in another folder",
    "/etc/passwd": "a shard '/etc/passwd' in another folder",
    "sub/model.weights.h5": "in another folder",
    "sub\\model.weights.h5": "in another folder",
    "C:model.weights.h5": "in another folder",
    "model\0.weights.h5": "in another folder",
    "": "a shard '' in another folder",
    ".": "in another folder",
    "..": "in another folder",
    "missing.weights.h5": r"lacks `missing\.weights\.h5`",
    "\ud800.weights.h5": "lacks `",
    "n" * 10_000: "lacks `nnn",
    "model.weights.json": "is not an HDF5 file",
    "folder": "lacks `folder`",
    "pipe": "lacks `pipe`",
    "two\nlines": "lacks `two lines`",
}


@posix
@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:30])
@pytest.mark.parametrize("listed", [True, False])
def test_a_shard_of_a_strange_name(shards, name, listed):
    (shards.parent / "folder").mkdir()
    os.mkfifo(shards.parent / "pipe")
    known = next(iter(rewritten(shards, lambda content: None)["weight_map"].values()))
    named = [known, name] if listed else name
    rewritten(shards, lambda content: content["weight_map"].update({"/layers/0/vars": named}))
    assert re.search(NAMES[name], refusal(shards))


def test_all_missing_shards_are_named(shards):
    removed = sorted(path.name for path in shards.parent.glob("model_????????_*.weights.h5"))
    assert len(removed) == 2
    for name in removed:
        (shards.parent / name).unlink()
    message = refusal(shards, MissingFileError)
    assert all(f"`{name}`" in message for name in removed)


MAPS = [None, True, 7, "x", [], ["x"], {}, {"a": None}, {"a": 7}, {"a": [None]}, {"a": [["x"]]}]
MAPS += [{"a": {"b": "c"}}, {"a": []}]


@pytest.mark.parametrize("weight_map", MAPS, ids=json.dumps)
def test_a_map_that_is_none(shards, weight_map):
    rewritten(shards, lambda content: content.update(weight_map=weight_map))
    assert re.search(r"no map of weights|no shards", refusal(shards))


@pytest.mark.parametrize("metadata", [None, True, 7, "x", [1], [[1]]], ids=json.dumps)
def test_metadata_that_are_none(shards, metadata):
    rewritten(shards, lambda content: content.update(metadata=metadata))
    assert "no map of weights" in refusal(shards)


TEXTS = {
    "nothing": b"{",
    "no object": b'{"weight_map": {}} []',
    "a key twice": b'{"weight_map": {"a": "b"}, "weight_map": {"a": "c"}}',
    "no text": b"{\xff\xfe\xff}",
    "10 MB of nested objects": b'{"a":' * (2 << 20),
    "10 MB of nested lists": b'{"weight_map": ' + b"[" * (10 << 20),
    "a number of a million digits": b'{"weight_map": ' + b"1" * 1_000_000 + b"}",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_no_json(shards, name):
    shards.write_bytes(TEXTS[name])
    assert re.search(r"is not JSON|is not a JSON object|no map of weights", refusal(shards))


def test_a_shard_of_another_save(shards):
    old, *_ = sorted(shards.parent.glob("model_????????_00000.weights.h5"))
    content = old.read_bytes()
    generations.save(shards, 2, generations.SHARDS, shard_bytes=2 * generations.TENSOR_BYTES)
    new, *_ = sorted(shards.parent.glob("model_????????_00000.weights.h5"))
    new.write_bytes(content)
    assert f"shards of another save, `{new.name}`" in refusal(shards)


def test_a_shard_named_twice_is_read_once(shards):
    def doubled(content):
        for group, names in content["weight_map"].items():
            content["weight_map"][group] = [names, names]

    rewritten(shards, doubled)
    assert generations.load(shards) == 1


def test_a_shard_that_is_cut_short(shards):
    shard = sorted(shards.parent.glob("model_????????_*.weights.h5"))[1]
    os.truncate(shard, generations.TENSOR_BYTES)
    assert "an HDF5 file without its end; it was truncated" in refusal(shards)


# Bare files


@pytest.fixture(params=[generations.BARE, generations.WHOLE], ids=["weights", "model"])
def bare(tmp_path, request):
    filepath = tmp_path / "model.h5"
    generations.save(filepath, 1, request.param)
    return filepath


def replaced(make, name="tiedio"):
    def edit(file):
        if name in file:
            del file[name]
        make(file, name)

    return edit


def created(**options):
    return lambda file, name: file.create_dataset(name, **options)


def text(content):
    return created(data=np.array(content))


LONG = h5py.h5t.C_S1.copy()
LONG.set_size(1 << 31)


def huge_text(file, name):
    """Declares a text of two gigabytes, of which nothing is stored."""
    space, creation = h5py.h5s.create(h5py.h5s.SCALAR), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    h5py.h5d.create(file.id, name.encode(), LONG, space, creation)


def linked(link):
    return lambda file, name: file.__setitem__(name, link)


RECORDS = {
    "a number": (created(data=7), "has no text at `tiedio`"),
    "numbers": (created(data=[1.0, 2.0]), "has no text at `tiedio`"),
    "texts": (text([b"{}", b"{}"]), "has no text at `tiedio`"),
    "text of any length": (created(data="{}"), "has no text at `tiedio`"),
    "a text that is not stored": (created(shape=(), dtype="S8"), "`tiedio` is not JSON"),
    "a huge text": (huge_text, "has no text at `tiedio`"),
    "no JSON": (text(b"{'a': 1}"), "`tiedio` is not JSON"),
    "a list": (text(b"[]"), "`tiedio` is not a JSON object"),
    "a key twice": (text(b'{"a": 1, "a": 2}'), "stands twice"),
    "10 MB of nested lists": (text(b"[" * (10 << 20)), "`tiedio` is not JSON"),
    "no characters": (text(b"{\xff}"), "`tiedio` is not JSON"),
    "a group": (lambda file, name: file.create_group(name), "has no text at `tiedio`"),
    "a soft link": (linked(h5py.SoftLink("/layers")), "unreadable `tiedio`"),
    "a soft link to itself": (linked(h5py.SoftLink("/tiedio")), "unreadable `tiedio`"),
    "an external link": (linked(h5py.ExternalLink("/etc/passwd", "/")), "unreadable `tiedio`"),
}


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("dataset", ["tiedio/record", "tiedio", "config.json"])
def test_a_record_that_is_none(bare, name, dataset):
    make, message = RECORDS[name]
    if (dataset, name) == ("tiedio", "a group"):
        return  # as it is: only at first was it a dataset
    with h5py.File(bare, "a") as file:
        replaced(make, dataset)(file)
    assert message.replace("tiedio", dataset) in refusal(bare)


ASSETS = {
    "assets/..": "an asset at `assets/..`",
    "assets/../outside": "an asset at `assets/../outside`",
    "assets/a/../../../outside": "an asset at",
    "assets/" + "n" * 300: "name too long",
}


@pytest.mark.parametrize("path", ASSETS, ids=lambda path: path[:30])
def test_an_asset_outside_its_folder(bare, path):
    *groups, name = path.split("/")
    with h5py.File(bare, "a") as file:
        group = file
        for one in groups:  # one by one: HDF5 takes `..` for a name like any other
            group = h5py.Group(h5py.h5g.create(group.id, one.encode()))
        group.create_dataset(name, data=np.frombuffer(b"1", "u1"))
        assert file.visit(lambda found: found == path or None)
    assert ASSETS[path] in refusal(bare)


def test_assets_inside_their_folder(bare):
    with h5py.File(bare, "a") as file:
        for name in ("always", "in 1/vocabulary"):
            file[f"assets/{name}"] = np.frombuffer(b"1", "u1")
    assert generations.load(bare) == 1


@pytest.mark.parametrize("link", [h5py.SoftLink("/layers"), h5py.ExternalLink("x.h5", "/")])
def test_an_asset_that_is_linked(bare, link):
    with h5py.File(bare, "a") as file:
        file.create_group("assets")["linked"] = link
    assert "unreadable `assets/linked`" in refusal(bare)


# Folders


@pytest.fixture
def folder(tmp_path):
    generations.save_folder(tmp_path / "model", 1)
    return tmp_path / "model"


MEMBERS = ["config.json", "model.weights.h5", "metadata.json"]


@pytest.mark.parametrize("name", MEMBERS[:2])
def test_a_member_that_is_missing(folder, name):
    (folder / name).unlink()
    assert f"it has no `{name}`" in refusal(folder)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_that_is_a_folder(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    assert f"`{name}`" in refusal(folder)


@posix
@pytest.mark.parametrize("name", MEMBERS[:2])
@pytest.mark.parametrize("target", ["nowhere", "itself"])
def test_a_member_that_leads_nowhere(folder, name, target):
    (folder / name).unlink()
    (folder / name).symlink_to(name if target == "itself" else "nowhere")
    assert f"it has no `{name}`" in refusal(folder)


@posix
@pytest.mark.parametrize("name", MEMBERS[:2])
def test_a_member_that_is_a_pipe(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"it has no `{name}`" in refusal(folder)


@posix
def test_members_that_lie_elsewhere_are_read(folder, tmp_path):
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    assert generations.load(folder) == 1


@posix
def test_assets_that_are_no_files_are_left_out(folder):
    os.mkfifo(folder / "assets" / "pipe")
    (folder / "assets" / "nowhere").symlink_to("nowhere")
    (folder / "assets" / "around").symlink_to(".")
    assert generations.load(folder) == 1


@pytest.mark.parametrize("name", ["config.json", "metadata.json"])
@pytest.mark.parametrize("text", ["", "[]", "{", "[" * (10 << 20), '{"a": 1, "a": 2}', "\0"])
def test_a_member_that_is_no_json(folder, name, text):
    (folder / name).write_text(text)
    assert f"`{name}` is not " in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"x" * 5000, b"PK\x03\x04" + bytes(5000)])
def test_weights_that_are_none(folder, content):
    (folder / "model.weights.h5").write_bytes(content)
    assert re.search(r"(is not an|are no) HDF5 file|values that cannot be read", refusal(folder))


def test_an_empty_folder(tmp_path):
    assert "it has no `config.json`, `model.weights.h5`" in refusal(tmp_path)
