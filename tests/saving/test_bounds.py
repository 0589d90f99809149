"""What hostile files cost: memory by their size and the model's, and time by their size.

Beside the file and the model 300 MB, and 2 seconds of a processor for each megabyte; see `bounded`.
"""

import io
import json
import struct
import sys
import threading
import time
import zipfile
import zlib

import bounded
import h5py
import keras
import numpy as np
import pytest

import tiedio
import tiedio.files

if sys.platform != "linux":
    pytest.skip("limits of a process's memory are Linux's", allow_module_level=True)

LAYER_LISTS = "model_weights"


@pytest.fixture(scope="module")
def bounds():
    process = bounded.Bounded()
    yield process
    process.end()


def every(*entries, quick="load_tied"):
    """Takes one entry, and the others behind `slow`."""
    others = [one for one in entries or bounded.ENTRIES if one != quick]
    slow = [pytest.param(one, marks=pytest.mark.slow) for one in others]
    return pytest.mark.parametrize("entry", [quick, *slow])


def members_of(filepath):
    with zipfile.ZipFile(filepath) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(filepath, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(filepath, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return filepath


# Attributes


def with_one_text_often(filepath, path, name, length, count):
    """Gives an object an attribute of many texts, all of which lie in one place of the file."""
    with h5py.File(filepath, "a") as file:
        if name in file[path].attrs:
            del file[path].attrs[name]
        texts = np.array(["x" * length] + ["Q"] * (count - 1), dtype=object)
        file[path].attrs.create(name, texts, dtype=h5py.string_dtype())
    raw = bytearray(filepath.read_bytes())
    at = raw.find(struct.pack("<I", length))
    while raw[at + 16 : at + 20] != struct.pack("<I", 1):
        at = raw.find(struct.pack("<I", length), at + 1)
    raw[at : at + 16 * count] = bytes(raw[at : at + 16]) * count
    filepath.write_bytes(raw)


def saved_by_keras(filepath):
    model = bounded.model()
    (model.save_weights if filepath.name.endswith(".weights.h5") else model.save)(filepath)
    return filepath


BOMBS = {
    "that nobody asks for": ("model.h5", "/", "other"),
    "of layers": ("model.h5", LAYER_LISTS, "layer_names"),
    "of weights": ("model.h5", f"{LAYER_LISTS}/first", "weight_names"),
    "of the dtype": ("model.weights.h5", "layers/dense/vars/0", "dtype"),
    "of a name": ("model.weights.h5", "layers/dense/vars", "name"),
}


@pytest.mark.parametrize(
    "name", [next(iter(BOMBS)), *(pytest.param(n, marks=pytest.mark.slow) for n in list(BOMBS)[1:])]
)
@every()
def test_an_attribute_of_one_text_many_times(bounds, tmp_path, name, entry):
    file, path, attribute = BOMBS[name]
    filepath = saved_by_keras(tmp_path / file)
    with h5py.File(filepath, "a") as content:
        if "first" in path:
            path = next(f"{one.name}" for one in content[LAYER_LISTS].values() if len(one))
        if attribute == "dtype":
            del content[path]
            content.create_dataset(path, data=np.zeros((3, 3), "V2"))
    with_one_text_often(filepath, path, attribute, 400_000, 3900)
    came, told = bounds.check(entry, filepath)
    assert came == "fine" or "attribute" in told, told


@pytest.mark.seldom
def test_honest_attributes_are_read(tmp_path):
    """Keras 3 writes lists of texts of any length, the configs as one text."""
    filepath = tmp_path / "model.h5"
    layers = [keras.layers.Dense(1, name=f"{'x' * 300}_{number}") for number in range(80)]
    model = keras.Sequential([keras.Input((1,)), *layers])
    model.save(filepath)
    with h5py.File(filepath) as file:
        assert file[LAYER_LISTS].attrs["layer_names"].dtype == object
        assert len(file.attrs["model_config"]) > 1 << 16
    loaded = tiedio.load_tied(filepath)
    assert all(map(np.array_equal, loaded.get_weights(), model.get_weights()))


# Records


def place(number, attribute="_kernel", **more):
    path = f"layers/{number}"
    return {"inner_path": path, "attribute": attribute, "dataset_path": f"{path}/vars/0", **more}


def tied(number, attribute="_kernel", **more):
    owner, alias = place(2 * number, attribute), place(2 * number + 1, attribute)
    facts = {"shape": [3, 3], "dtype": "float32", "trainable": True}
    return {"owner": owner, "aliases": [alias], **facts, **more}


def layer(number):
    return {"name": f"l{number}", "path": f"l{number}", "trainable": True, "variables": []}


def by_path(make):
    return lambda count: {f"layers/{number}": make(number) for number in range(count)}


def several(make):
    return lambda count: list(map(make, range(count)))


FIELDS = {
    "tie groups": {"tie_groups": several(tied)},
    "tie groups by number": {"tie_groups": several(lambda number: tied(number, "0"))},
    "one tie group": {
        "tie_groups": lambda count: [{**tied(0), "aliases": several(place)(count)[1:]}]
    },
    "layers": {"layers": by_path(layer)},
    "one layer": {
        "layers": lambda count: {
            "layers/dense": {
                **layer(0),
                "variables": [[f"a{number}", f"p{number}", True, True] for number in range(count)],
            }
        },
        "exact_values": several(lambda number: place("dense", f"b{number}", dataset_path=None)),
    },
    "shared layers": {
        "shared_layers": several(lambda number: [f"layers/{number}", f"layers/again/{number}"])
    },
    "exact values": {"exact_values": several(place)},
    "one optimizer": {"optimizer_variables": lambda count: {"optimizer": several(place)(count)}},
    "optimizers": {"optimizer_variables": by_path(lambda number: [place(number)])},
    "weight decay": {"excluded_from_weight_decay": by_path(lambda number: [place(number)])},
    "random states": {
        "random_states": several(lambda number: {"places": [place(number)], "state": [1, 2]})
    },
    "states of the process": {"process_random_states": by_path(lambda number: [1, 2])},
    "digests": {"digests": by_path(lambda number: "0" * 16)},
    "orders of axes": {"axis_orders": by_path(lambda number: [1, 0])},
    "shared optimizers": {
        "shared_optimizers": several(lambda number: [f"a/{number}", f"b/{number}"])
    },
    "transposed ties": {"transposed_ties": several(lambda number: tied(number, axes=[1, 0]))},
    "models": {"models": by_path(lambda number: f"layers/{number}")},
}
GROUPS = 20_000


def with_record(filepath, edit):
    """Saves a tied model, with another record."""
    model = bounded.model()
    tiedio.tie(model.layers[1], to=model.layers[0])
    tiedio.save_tied(model, filepath)
    members = members_of(filepath)
    metadata = json.loads(members["metadata.json"])
    edit(metadata["tiedio"])
    written(filepath, {**members, "metadata.json": json.dumps(metadata)})


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(what, marks=[] if what == "tie groups by number" else [pytest.mark.slow])
        for what in FIELDS
    ],
)
@every(quick="load_tied_weights")
def test_a_record_of_many(bounds, tmp_path, what, entry):
    filepath = tmp_path / "model.keras"
    made = {name: make(GROUPS) for name, make in FIELDS[what].items()}
    with_record(filepath, lambda record: record.update(made))
    bounds.check(entry, filepath)


class Pairs(keras.layers.Layer):
    """Layers of which each second one may be tied to the one before; a config does not say so."""

    def __init__(self, count, tied=False, **options):
        super().__init__(**options)
        self.count, self.tied = count, tied
        self.parts = [keras.layers.Dense(1, use_bias=False) for _ in range(2 * count)]

    def build(self, shape):
        for first, second in zip(self.parts[::2], self.parts[1::2], strict=True):
            first.build(shape)
            second.build(shape)
            if self.tied:
                second._untrack_variable(second.kernel)
                second._tracker.unlock()
                second._kernel = first.kernel
                second._tracker.lock()

    def call(self, inputs):
        return self.parts[1](inputs)

    def get_config(self):
        return {**super().get_config(), "count": self.count}


@pytest.mark.slow
def test_an_honest_model_of_thousands_of_ties(tmp_path):
    """Saving and loading take time by the number of ties, and not by its square."""
    few, many, factor = 200, 2000, 10
    took = {}
    for count in (few, many):
        model = keras.Sequential([keras.Input((1,)), Pairs(count, tied=True)])
        filepath = tmp_path / f"{count}.keras"
        for name, work in {
            "save": lambda m=model, f=filepath: tiedio.save_tied(m, f),
            "load": lambda f=filepath: tiedio.load_tied(f, {"Pairs": Pairs}),
            "weights": lambda m=model, f=filepath: tiedio.load_tied_weights(m, f),
            "plan": lambda f=filepath: str(tiedio.files.plan(f)),
            "export": lambda f=filepath: tiedio.files.export(f, f.with_suffix(".safetensors")),
        }.items():
            begun = time.process_time()
            loaded = work()
            took[name, count] = time.process_time() - begun
            if name == "load":
                assert len(tiedio.find_ties(loaded)) == count
    for name in ("save", "load", "weights", "plan", "export"):
        assert took[name, many] < 2 * factor * took[name, few], took


# Compressed tensors


def compressed(file, path, shape, dtype="float32"):
    """Makes a tensor of zeros that takes a few hundred bytes: it is compressed twice."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    chunk = (min(shape[0], max(1, (1 << 22) // (4 * shape[1]))), shape[1])
    creation.set_chunk(chunk)
    creation.set_deflate(9)
    creation.set_deflate(9)
    space = h5py.h5s.create_simple(shape)
    group, _, name = path.rpartition("/")
    group = file.require_group(group)
    made = h5py.Dataset(
        h5py.h5d.create(
            group.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, creation
        )
    )
    packed = zlib.compress(zlib.compress(bytes(4 * chunk[0] * chunk[1]), 9), 9)
    for start in range(0, shape[0], chunk[0]):
        made.id.write_direct_chunk((start, 0), packed)
    return made


@pytest.mark.slow
@every()
def test_tensors_that_are_compressed_with_two_paths_each(bounds, tmp_path, entry):
    layers, width = 80, 2000
    first = keras.layers.Dense(width, use_bias=False)
    others = [keras.layers.Dense(1, use_bias=False) for _ in range(layers)]
    model = keras.Sequential([keras.Input((width,)), first, *others])
    model.save(tmp_path / "model.keras")
    members = members_of(tmp_path / "model.keras")
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        compressed(file, "layers/dense/vars/0", (width, width))
        for number in range(1, layers + 1):
            made = compressed(file, f"layers/dense_{number}/vars/0", (width, 2 * width))
            file[f"again/{number}"] = made
    if entry == "load_tied_weights":
        filepath = tmp_path / "hostile.weights.h5"
        filepath.write_bytes(stream.getvalue())
    else:
        filepath = written(
            tmp_path / "hostile.keras", {**members, "model.weights.h5": stream.getvalue()}
        )
    bounds.check(entry, filepath, 4 * width * width)


# Configs


def huge(compiled):
    """Makes a file whose config declares 4 GB, beside a part that needs a value at once."""
    part = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, name="few")], name="part")
    if compiled:
        part.compile("adam", "mse")
    else:
        part.add(keras.layers.Normalization(mean=[1.0] * 3, variance=[1.0] * 3))
    return keras.Sequential([keras.Input((3,)), part, keras.layers.Dense(9, name="many")])


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("zipped", [True, pytest.param(False, marks=pytest.mark.slow)])
@every(quick="load_tied")
def test_a_config_that_declares_more_than_the_file_stores(
    bounds, tmp_path, compiled, zipped, entry
):
    filepath = tmp_path / ("model.keras" if zipped else "model.h5")
    huge(compiled).save(filepath)
    if zipped:
        members = members_of(filepath)
        config = members["config.json"].decode().replace('"units": 9', f'"units": {1 << 28}')
        written(filepath, {**members, "config.json": config})
    else:
        with h5py.File(filepath, "a") as file:
            config = file.attrs["model_config"].replace('"units": 9', f'"units": {1 << 28}')
            file.attrs["model_config"] = config
    came, _ = bounds.check(entry, filepath)
    assert came == "refused" or not entry.startswith("load")


# Groups


def inside(group, names):
    """Makes groups inside each other, as a list of links would take too long for HDF5."""
    for name in names:
        group = h5py.Group(h5py.h5g.create(group.id, name))
    return group


@pytest.mark.often(1)
@pytest.mark.parametrize("what", ["assets", "layers", "members"])
@every()
def test_groups_inside_each_other(bounds, tmp_path, what, entry):
    filepath = tmp_path / "model.h5"
    tiedio.save_tied(bounded.model(), filepath)
    if entry == "load_tied_weights":
        filepath = tmp_path / "model.weights.h5"
        tiedio.save_tied_weights(bounded.model(), filepath)
    with h5py.File(filepath, "a", libver="latest") as file:
        if what == "members":
            bottom = inside(file.require_group("assets"), [b"x" * 500] * 20)
            for number in range(5000):
                bottom.create_group(str(number))
        else:
            bottom = inside(file.require_group(what), [b"a"] * 6000)
        bottom["file"] = np.frombuffer(b"1", "u1")
    bounds.check(entry, filepath)


# Models inside each other


@pytest.mark.slow
def test_models_inside_each_other_load_as_in_stock(tmp_path):
    """Stock Keras loads more than it saves, with as many calls inside each other as Python has."""

    def save():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        for _ in range(300):
            model = keras.Sequential([keras.Input((2,)), model])
        tiedio.save_tied(model, tmp_path / "model.keras")

    limit, size = sys.getrecursionlimit(), threading.stack_size(256 << 20)
    try:
        sys.setrecursionlimit(20_000)
        thread = threading.Thread(target=save)
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(limit)
        threading.stack_size(size)
    filepath = tmp_path / "model.keras"
    stock, tied = [], []
    for load, loaded in ((keras.saving.load_model, stock), (tiedio.load_tied, tied)):
        thread = threading.Thread(target=lambda f=load, to=loaded: to.append(f(filepath)))
        thread.start()
        thread.join()
    assert np.array_equal(stock[0].get_weights()[0], tied[0].get_weights()[0])
    for ask in (tiedio.files.inspect, tiedio.files.plan, tiedio.files.verify):
        try:
            ask(filepath)
        except tiedio.TiedioError as error:
            assert "recursion" in str(error)


# Archives

UNBOUNDED = {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}


@pytest.mark.parametrize("compression", UNBOUNDED)
def test_archives_of_every_compression_are_read(tmp_path, compression):
    words = keras.layers.StringLookup()
    words.adapt(["one", "two"])
    model = keras.Sequential(
        [keras.Input((1,), dtype="string"), words, keras.layers.Embedding(9, 2)]
    )
    model.save(tmp_path / "model.keras")
    members = members_of(tmp_path / "model.keras")
    assert any(name.startswith("assets/") for name in members)
    filepath = written(tmp_path / "packed.keras", members, UNBOUNDED[compression])
    for loaded in (keras.saving.load_model(filepath), tiedio.load_tied(filepath)):
        assert loaded.layers[0].get_vocabulary() == words.get_vocabulary()
        assert np.array_equal(*map(np.asarray, (loaded.get_weights()[-1], model.get_weights()[-1])))
    assert tiedio.files.verify(filepath).problems == ()
    damaged = bytearray(filepath.read_bytes())
    with zipfile.ZipFile(filepath) as archive:
        damaged[archive.getinfo("config.json").header_offset + 80] ^= 1
    filepath.write_bytes(damaged)
    with pytest.raises(tiedio.TiedioError):
        tiedio.load_tied(filepath)


@pytest.mark.slow
@pytest.mark.parametrize("compression", UNBOUNDED)
@pytest.mark.parametrize("name", ["config.json", "model.weights.h5", "assets/words"])
@every("load_tied", "verify", "migrate")
def test_a_member_that_grows(bounds, tmp_path, compression, name, entry):
    """To as many bytes as its directory says, or to more."""
    tiedio.save_tied(bounded.model(), tmp_path / "model.keras")
    members = members_of(tmp_path / "model.keras")
    bomb = {**members, name: bytes(240 << 20)}
    filepath = written(tmp_path / "honest.keras", bomb, UNBOUNDED[compression])
    bounds.check(entry, filepath)
    content = bytearray(filepath.read_bytes())
    content = content.replace(struct.pack("<I", 240 << 20), struct.pack("<I", 1 << 20))
    filepath.write_bytes(content)
    bounds.check(entry, filepath)


@every()
def test_a_member_that_asks_for_memory(bounds, tmp_path, entry):
    tiedio.save_tied(bounded.model(), tmp_path / "model.keras")
    members = members_of(tmp_path / "model.keras")
    filepath = written(tmp_path / "hostile.keras", members, zipfile.ZIP_LZMA)
    content = bytearray(filepath.read_bytes())
    with zipfile.ZipFile(filepath) as archive:
        for info in archive.infolist():
            at = info.header_offset + 30 + len(info.filename) + 5
            content[at : at + 4] = b"\xff\xff\xff\xf0"
    filepath.write_bytes(content)
    came, told = bounds.check(entry, filepath)
    assert came == "refused" and "fill the memory" in told


# Targets


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5", "model.h5"])
def test_the_null_device_takes_all(tmp_path, name):
    """As any device that is written from its start to its end: it tells no place in it."""
    (tmp_path / name).symlink_to("/dev/null")
    save = tiedio.save_tied_weights if "weights" in name else tiedio.save_tied
    save(bounded.model(), tmp_path / name)
    assert (tmp_path / name).is_symlink()
    with pytest.raises(tiedio.TiedioError, match="There is no file"):
        tiedio.load_tied(tmp_path / name)
