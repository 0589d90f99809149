"""Weights in several files: what is where, and the old set until the new one is whole."""

import json
import os
import re

import h5py
import keras
import numpy as np
import pytest
import scenarios

import tiedio
from tiedio import errors
from tiedio.formats import hdf5_writer, shards

SHARD = 1500 / 2**30  # GB


def tables(tie=True, compiled=True):
    """Three tables, the last of which is the first; and a head."""
    keras.utils.set_random_seed(3)
    tokens = keras.Input((5,), dtype="int32")
    layers = [keras.layers.Embedding(60, 4, name=f"table_{n}") for n in range(3)]
    summed = keras.layers.Add()([layer(tokens) for layer in layers])
    model = keras.Model(tokens, keras.layers.Dense(2)(summed))
    if tie:
        tiedio.tie(layers[2], to=layers[0])
    if compiled:
        model.compile("adam", "mse")
        scenarios.train(model)
    return model


@pytest.fixture(scope="module")
def model():
    return tables()


@pytest.fixture
def filepath(model, tmp_path):
    filepath = tmp_path / "model.weights.json"
    tiedio.save_tied_weights(model, filepath, max_shard_size=SHARD)
    return filepath


def names_beside(filepath):
    return sorted(path.name for path in filepath.parent.iterdir())


def assert_loads(filepath, model):
    loaded = tables(tie=False)
    tiedio.load_tied_weights(loaded, filepath)
    assert scenarios.ties_of(loaded) == scenarios.ties_of(model)
    for ours, theirs in zip(scenarios.state_of(loaded), scenarios.state_of(model), strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_no_shard_is_larger_and_no_tensor_is_in_two(filepath, model):
    content = json.loads(filepath.read_text())
    stored = {}
    for name in names_beside(filepath)[1:]:
        sizes = []

        def note(path, thing, name=name, sizes=sizes):
            if isinstance(thing, h5py.Dataset):
                stored.setdefault(path, []).append(name)
                sizes.append(thing.nbytes)

        with h5py.File(filepath.with_name(name)) as file:
            file.visititems(note)  # each tensor once, however many paths it has
        assert sum(sizes) <= SHARD * 2**30
    assert {len(held) for held in stored.values()} == {1}
    unique = {id(v): v for v in scenarios.variables_of(model)}.values()
    assert content["metadata"]["total_size"] == sum(a.nbytes for a in scenarios.arrays_of(unique))
    assert len({name for held in stored.values() for name in held}) > 3


def test_a_second_path_is_in_the_shard_of_its_owner(filepath):
    content = json.loads(filepath.read_text())
    (group,) = content["metadata"]["tiedio"]["tie_groups"]
    owner, alias = (place["dataset_path"] for place in (group["owner"], *group["aliases"]))
    shard = content["weight_map"][f"/{os.path.dirname(owner)}"]
    assert content["weight_map"][f"/{os.path.dirname(alias)}"] == shard
    with h5py.File(filepath.with_name(shard)) as file:
        assert file[owner] == file[alias]


def emptied():
    """The same model with zeros; uncompiled, as Keras 3.10 reads no divided optimizer."""
    model = tables(compiled=False)
    model.set_weights([np.zeros(w.shape) for w in model.get_weights()])
    return model


def test_stock_keras_loads_the_set(tmp_path):
    filepath, model = tmp_path / "model.weights.json", tables(compiled=False)
    tiedio.save_tied_weights(model, filepath, max_shard_size=SHARD)
    assert len(names_beside(filepath)) > 2
    other = emptied()
    other.load_weights(filepath)
    assert all(map(np.array_equal, other.get_weights(), model.get_weights()))


def test_stock_keras_loads_the_set_with_an_optimizer(filepath, model):
    other = tables()
    other.set_weights([np.zeros(w.shape) for w in other.get_weights()])
    if keras.__version__.startswith("3.10."):  # which cannot read an optimizer in several shards
        with pytest.raises(ValueError, match="could not be loaded"):
            other.load_weights(filepath)
        own = filepath.with_name("own.weights.json")
        model.save_weights(own, max_shard_size=SHARD)
        with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
            other.load_weights(own)
        return
    other.load_weights(filepath)
    for ours, theirs in zip(scenarios.state_of(other), scenarios.state_of(model), strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_what_stock_keras_wrote_is_loaded(tmp_path):
    filepath, model = tmp_path / "stock.weights.json", tables(compiled=False)
    model.save_weights(filepath, max_shard_size=SHARD)
    loaded = emptied()
    tiedio.load_tied_weights(loaded, filepath)
    assert all(map(np.array_equal, loaded.get_weights(), model.get_weights()))


def test_shards_of_the_set_before_are_gone_after_a_save(filepath, model):
    before = names_beside(filepath)
    tiedio.save_tied_weights(model, filepath, max_shard_size=SHARD)
    after = names_beside(filepath)
    assert len(after) == len(before)
    assert set(after) & set(before) == {"model.weights.json", "model_00000.weights.h5"}
    assert filepath.with_name("model_00000.weights.h5").stat().st_size < 3000  # nothing is in it
    assert_loads(filepath, model)


def one_shard(filepath):
    model = tables(compiled=False)
    tiedio.save_tied_weights(model, filepath, max_shard_size=1)
    return model


def assert_keras_loads(filepath, model):
    other = emptied()
    other.load_weights(filepath)
    assert all(map(np.array_equal, other.get_weights(), model.get_weights()))


def test_the_first_shard_is_the_one_that_keras_opens_if_there_is_none(tmp_path):
    filepath = tmp_path / "model.weights.json"
    for token in ("", "_[0-9a-f]{8}", "_[0-9a-f]{8}"):
        model = one_shard(filepath)
        assert_keras_loads(filepath, model)
        (name,) = set(json.loads(filepath.read_text())["weight_map"].values())
        assert re.fullmatch(f"model{token}_00000.weights.h5", name)
        first = filepath.with_name("model_00000.weights.h5")
        assert set(names_beside(filepath)) == {filepath.name, first.name, name}
        assert (first.stat().st_size < 3000) == bool(token)  # an empty one takes its place


def test_without_hard_links_all_shards_have_a_token(tmp_path, monkeypatch):
    def link(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    filepath = tmp_path / "model.weights.json"
    assert_keras_loads(filepath, one_shard(filepath))
    assert len(names_beside(filepath)) == 3


def test_a_crash_after_the_shards_leaves_nothing(tmp_path, monkeypatch):
    filepath = tmp_path / "model.weights.json"
    monkeypatch.setattr(shards, "_weight_map", crash)
    with pytest.raises(KeyboardInterrupt):
        one_shard(filepath)
    assert names_beside(filepath) == []


def test_a_crash_leaves_what_somebody_else_saved_meanwhile(tmp_path, monkeypatch):
    filepath, others = tmp_path / "model.weights.json", []

    def save_and_crash(*arguments):
        monkeypatch.undo()
        others.append(one_shard(filepath))
        crash()

    monkeypatch.setattr(shards, "_weight_map", save_and_crash)
    with pytest.raises(KeyboardInterrupt):
        tiedio.save_tied_weights(tables(), filepath, max_shard_size=SHARD)
    assert_keras_loads(filepath, *others)
    assert len(names_beside(filepath)) == 3


def test_a_file_that_nobody_knows_of_is_left_alone(tmp_path):
    """It may be a shard of a first save that was killed, or somebody's own."""
    filepath = tmp_path / "model.weights.json"
    left = filepath.with_name("model_00000.weights.h5")
    with h5py.File(left, "w") as file:
        file["left"] = np.zeros(9999)
    before = left.read_bytes()
    assert_keras_loads(filepath, one_shard(filepath))
    assert left.read_bytes() == before


def crash(*arguments):
    raise KeyboardInterrupt


def test_the_set_of_stock_keras_is_replaced(tmp_path, model):
    filepath = tmp_path / "model.weights.json"
    model.save_weights(filepath, max_shard_size=SHARD)
    first = filepath.with_name("model_00000.weights.h5")
    size = first.stat().st_size
    old = set(map(str, json.loads(filepath.read_text())["weight_map"].values()))
    tiedio.save_tied_weights(model, filepath, max_shard_size=SHARD)
    assert old & set(names_beside(filepath)) == {first.name}
    assert first.stat().st_size < size
    assert_loads(filepath, model)


@pytest.mark.often(1)
@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_crash_between_shards_leaves_the_old_set(tmp_path, model, monkeypatch, stock, at):
    filepath = tmp_path / "model.weights.json"
    if stock:
        model.save_weights(filepath, max_shard_size=SHARD)
    else:
        tiedio.save_tied_weights(model, filepath, max_shard_size=SHARD)
    before = names_beside(filepath)
    written, original = [], hdf5_writer.write

    def crash(*arguments):
        written.append(arguments)
        if len(written) > at:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(hdf5_writer, "write", crash)
    with pytest.raises(KeyboardInterrupt):
        tiedio.save_tied_weights(tables(), filepath, max_shard_size=SHARD)
    monkeypatch.undo()
    assert len(written) == at + 1
    assert names_beside(filepath) == before
    loaded = tables(tie=not stock)
    loaded.optimizer.learning_rate = 1.0
    tiedio.load_tied_weights(loaded, filepath) if not stock else loaded.load_weights(filepath)
    assert np.array_equal(loaded.layers[1].embeddings, model.layers[1].embeddings)


def test_shards_of_a_save_that_was_killed_are_removed(filepath, model):
    left = filepath.with_name("model_0123abcd_00000.weights.h5")
    other = filepath.with_name("model_0123abcd.weights.h5")
    for path in (left, other):
        path.write_bytes(b"left")
    tiedio.save_tied_weights(model, filepath, max_shard_size=SHARD)
    assert not left.exists() and other.exists()


def test_shards_of_a_save_under_way_are_kept(filepath, model):
    """Another process that saves here holds a partial file."""
    from tiedio.storage import atomic

    theirs = filepath.with_name("model_0123abcd_00000.weights.h5")
    with atomic.replacing(filepath) as file:
        theirs.write_bytes(b"theirs")
        tiedio.save_tied_weights(model, filepath, max_shard_size=SHARD)
        assert theirs.exists()
        file.write(filepath.read_bytes())
    assert_loads(filepath, model)


def test_a_missing_shard(filepath):
    shard, other = (filepath.with_name(name) for name in names_beside(filepath)[2:4])
    shard.unlink(), other.unlink()
    with pytest.raises(FileNotFoundError) as error:
        tiedio.load_tied_weights(tables(), filepath)
    count = len(set(map(str, json.loads(filepath.read_text())["weight_map"].values())))
    assert type(error.value) is errors.MissingFileError and count > 2
    assert re.fullmatch(
        f"`{filepath}` lacks `{shard.name}`, `{other.name}`.\n"
        r"Expected: \d+ shards beside it. Received: \d+.\n"
        "Copy all shards of one save together, or save again.",
        str(error.value),
    )


def test_a_shard_of_another_save(filepath, model, tmp_path):
    (tmp_path / "again").mkdir()
    again = tmp_path / "again" / "model.weights.json"
    tiedio.save_tied_weights(model, again, max_shard_size=SHARD)
    mine, theirs = (names_beside(path)[-1] for path in (filepath, again))
    again.with_name(theirs).replace(filepath.with_name(mine))
    with pytest.raises(errors.FileFormatError) as error:
        tiedio.load_tied_weights(tables(), filepath)
    assert str(error.value) == (
        f"`{filepath}` is damaged.\n"
        "Expected: a complete file of Keras or tiedio. "
        f"Received: shards of another save, `{mine}`.\n"
        "Restore it from a copy, or save the model again."
    )


def test_a_shard_that_is_too_small(model, tmp_path):
    with pytest.raises(errors.SaveError) as error:
        tiedio.save_tied_weights(model, tmp_path / "x.weights.json", max_shard_size=200 / 2**30)
    assert re.fullmatch(
        "Cannot save `layers/embedding/vars/0`, `layers/embedding_1/vars/0`, "
        r"`optimizer/vars/2`, .* to `.*x\.weights\.json`: larger than a shard may be\.\n"
        r"Expected: at most 200 bytes\. Received: 960 bytes\.\n"
        r"Pass a larger `max_shard_size`\.",
        str(error.value),
    )
    assert not any(tmp_path.iterdir())


def test_the_name_of_one_file_is_changed_as_in_keras(model, tmp_path):
    with pytest.warns(tiedio.TiedioWarning, match=r"saving to `.*x\.weights\.json`"):
        tiedio.save_tied_weights(model, tmp_path / "x.weights.h5", max_shard_size=SHARD)
    assert not (tmp_path / "x.weights.h5").exists()
    assert_loads(tmp_path / "x.weights.json", model)


def test_a_shared_layer_is_linked_in_every_shard_that_it_is_in(tmp_path):
    model = shared_in_two()
    filepath = tmp_path / "shared.weights.json"
    tiedio.save_tied_weights(model, filepath, max_shard_size=70 / 2**30)
    content = json.loads(filepath.read_text())
    (first, second), *_ = content["metadata"]["tiedio"]["shared_layers"]
    held = {path: content["weight_map"].get(f"/{path}/vars") for path in (first, second)}
    assert held[first] == held[second] and len(held[first]) == 2
    loaded = shared_in_two()
    loaded.set_weights([np.zeros(w.shape) for w in loaded.get_weights()])
    tiedio.load_tied_weights(loaded, filepath)
    assert all(map(np.array_equal, loaded.get_weights(), model.get_weights()))


def shared_in_two():
    """A layer in a sub-model, and outside it; its kernel and bias do not fit into one shard."""
    shared = keras.layers.Dense(4)
    inner = keras.Sequential([keras.Input((4,)), shared])
    image = keras.Input((4,))
    return keras.Model(image, shared(inner(image)))


def test_every_tensor_of_a_layout_is_in_one_part():
    tensor = hdf5_writer.Tensor((5,), np.dtype("float32"), lambda: np.ones(5, "float32"))
    layout = hdf5_writer.Layout({}, {f"layers/{n}/vars/0": tensor for n in range(7)}, {})
    parts = shards._split(layout, 45, "x")
    assert [len(part.tensors) for part in parts] == [2, 2, 2, 1]


def test_no_other_file_is_removed_whatever_a_json_says(model, tmp_path):
    filepath, precious = tmp_path / "p.weights.json", tmp_path / "precious.txt"
    filepath.write_text(json.dumps({"weight_map": {"a": precious.name}}))
    precious.write_text("mine")
    tiedio.save_tied_weights(model, filepath, max_shard_size=SHARD)
    assert precious.read_text() == "mine"


def test_shards_that_a_copy_of_the_json_refers_to_are_kept(filepath, model):
    best = filepath.with_name("best.weights.json")
    best.write_bytes(filepath.read_bytes())
    tiedio.save_tied_weights(tables(), filepath, max_shard_size=SHARD)
    assert_loads(best, model)


def test_an_error_after_the_json_is_in_place(filepath, model, monkeypatch):
    from tiedio.storage import atomic

    def fail(folder):
        raise OSError(5, "Input/output error")

    replaced = os.replace

    def replace(source, target):
        replaced(source, target)
        if str(target).endswith(".json"):
            monkeypatch.setattr(atomic, "_flush_folder", fail)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="Input/output"):
        tiedio.save_tied_weights(model, filepath, max_shard_size=SHARD)
    monkeypatch.undo()
    assert_loads(filepath, model)
