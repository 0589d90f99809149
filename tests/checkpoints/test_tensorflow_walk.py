"""What TensorFlow saves: checkpoints of objects and SavedModels, of which it wrote some itself.

Others are made here, object by object, to look as a version of Keras makes them.
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from checkout import FIXTURES
from pinning import pin

import tiedio
from tiedio import errors
from tiedio.checkpoints import opening
from tiedio.formats import listing
from tiedio.migration import planning

sys.path.append(str(FIXTURES / "writers"))

needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="TensorFlow reads these files"
)

WRITTEN = [
    (truth.parent / name, said)
    for truth in sorted(FIXTURES.glob("*/truth.json"))
    for name, said in json.loads(truth.read_text())["files"].items()
    if name.endswith(("_savedmodel", "_ckpt"))
]
MODELS = [one for one in WRITTEN if one[0].name.endswith("_savedmodel")]
CHECKPOINTS = [one for one in WRITTEN if one[0].name.endswith("_ckpt")]


def each(written):
    """Runs a test for each file that a version of TensorFlow wrote."""
    ids = [f"{path.parent.name}/{path.name}" for path, _ in written]
    return pytest.mark.parametrize(("path", "said"), written, ids=ids)


def config_of(path):
    """Reads the config of the model of a checkpoint, which the same version saved as HDF5."""
    whole = path.with_name(path.name.replace("_ckpt", ".h5"))
    with opening.reading(whole) as opened:
        return opened.old_layout.model_config


def assert_told(checkpoint, said):
    assert [list(tie.names) for tie in checkpoint.ties] == said["ties"]
    assert all(tie.evidence == "object graph" for tie in checkpoint.ties)
    assert {one.name for one in checkpoint.variables} == set(said["variables"])
    assert_values(checkpoint, [said["variables"][one.name] for one in checkpoint.variables])


def assert_values(checkpoint, values):
    for one, value in zip(checkpoint.variables, values, strict=True):
        assert list(one.shape) == value["shape"]
        read = checkpoint.tensors.read(one.source)
        assert read.ravel()[:4].tolist() == pytest.approx(value["first"], abs=1e-7)
        assert np.sum(read, dtype="float64") == pytest.approx(value["sum"], abs=1e-5)


def assert_same_model(path, said, model):
    from models import data  # beside the writers

    found = {}

    def walk(layer, names):
        parts = getattr(layer, "layers", [])
        for part in parts:
            walk(part, (*names, part.name))
        if not parts:
            found.update({"/".join((*names, one.name)): one for one in layer.weights})

    walk(model, ())
    for owner, *aliases in said["ties"]:
        assert all(found[alias] is found[owner] for alias in aliases)
    inputs = [data(one) for one in said["input"]]
    predicted = model.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)
    with np.load(path.parent / "truth.npz") as arrays:
        np.testing.assert_allclose(predicted, arrays[said["predictions"]], rtol=1e-4, atol=1e-5)


def test_there_are_files_of_tensorflow():
    assert MODELS
    assert CHECKPOINTS


@needs_tensorflow
@each(MODELS)
def test_a_saved_model_tells_its_ties(path, said):
    with opening.reading(path) as checkpoint:
        assert checkpoint.kind == "SavedModel of a whole model"
        assert_told(checkpoint, said)
        assert not checkpoint.is_by_position


@pytest.mark.often(5)
@needs_tensorflow
@each(MODELS)
def test_a_saved_model_is_migrated_whole(path, said, tmp_path):
    target = tmp_path / "migrated.keras"
    done = planning.migrate(path, target)
    assert not any(one.needs for one in done.proposals)
    model = tiedio.load_tied(target)
    assert_same_model(path, said, model)
    assert int(model.optimizer.iterations) == said["iterations"]
    assert float(model.optimizer.learning_rate) == pytest.approx(said["learning_rate"])
    slots = [np.asarray(keras.ops.convert_to_numpy(one)) for one in model.optimizer.variables[2:]]
    assert slots
    assert all(one.any() for one in slots)


@needs_tensorflow
@each(CHECKPOINTS)
def test_a_checkpoint_tells_its_ties_by_the_names_of_a_config(path, said):
    with opening.reading(path, config_of(path)) as checkpoint:
        assert checkpoint.kind == "TensorFlow checkpoint of weights only"
        assert_told(checkpoint, said)
        assert not checkpoint.is_by_position


@needs_tensorflow
@each(CHECKPOINTS)
def test_a_checkpoint_tells_its_ties_by_names_of_its_own(path, said):
    with opening.reading(path) as checkpoint:
        names = [one.name for one in checkpoint.variables]
        assert_values(checkpoint, said["variables"].values())
        known = dict(zip(said["variables"], names, strict=True))
        ties = [[known[name] for name in tie] for tie in said["ties"]]
        assert [list(tie.names) for tie in checkpoint.ties] == ties
        assert known["out/kernel"] == "out/kernel"  # by the names of variables
        assert checkpoint.is_by_position


@pytest.mark.often(5)
@needs_tensorflow
@each(CHECKPOINTS)
def test_a_checkpoint_is_migrated_with_a_config(path, said, tmp_path):
    target = tmp_path / "migrated.keras"
    done = planning.migrate(path, target, config=config_of(path))
    assert_same_model(path, said, tiedio.load_tied(target))
    assert done.notes[-1] == (
        "The state of the optimizer is left out: nothing says which one it was."
    )


# What is made here


def variable(*values, name=None):
    import tensorflow

    return tensorflow.Variable(np.asarray(values, "float32"), name=name)


def thing(**children):
    """Makes an object that leads to others."""
    import tensorflow

    return tensorflow.train.Checkpoint(**children)


def write(folder, root, name="ckpt"):
    """Writes a checkpoint, and returns its path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return Path(root.write(str(path)))


def dense(name, **options):
    config = {"name": name, "units": 2, "use_bias": False, "activation": "linear", **options}
    return {"class_name": "Dense", "config": config}


def sequential(*layers):
    first = {"class_name": "InputLayer", "config": {"batch_shape": [None, 2], "name": "input"}}
    return {"class_name": "Sequential", "config": {"name": "model", "layers": [first, *layers]}}


def saved_model(folder, root, config, optimizer):
    """Writes a SavedModel as TensorFlow 2.3 does: with all metadata in `saved_model.pb`."""
    from tensorflow.core.protobuf import saved_model_pb2

    write(folder / "variables", root, "variables")
    metadata = {
        "class_name": config["class_name"],
        "name": "model",
        "keras_version": "2.4.0",
        "model_config": config,
        "training_config": {"loss": "mse", "optimizer_config": optimizer},
    }
    content = saved_model_pb2.SavedModel()
    user_object = content.meta_graphs.add().object_graph_def.nodes.add().user_object
    user_object.identifier = "_tf_keras_sequential"
    user_object.metadata = json.dumps(metadata)
    (folder / "saved_model.pb").write_bytes(content.SerializeToString())
    return folder


def names_in(path, config=None):
    with opening.reading(path, config) as checkpoint:
        return [one.name for one in checkpoint.variables]


def ties_in(path, config=None):
    with opening.reading(path, config) as checkpoint:
        return [tie.names for tie in checkpoint.ties]


@needs_tensorflow
def test_the_state_of_the_optimizer_is_in_the_order_of_first_use(tmp_path):
    import tensorflow

    kernels = [variable([number, 2], [3, 4]) for number in range(2)]
    moments = [variable([10 + number, 0], [0, 1]) for number in range(2)]
    layers = {f"layer-{n}": thing(kernel=kernels[n % 2]) for n in range(3)}
    steps = tensorflow.Variable(np.int64(3), name="iteration")
    named = [
        tensorflow.Variable(one, name=f"SGD/m/dense{number}/kernel")
        for number, one in enumerate(moments)
    ]
    rate = tensorflow.Variable(0.5, name="learning_rate")
    state = thing(_variables=[steps, *named], _iterations=steps, _learning_rate=rate)
    config = sequential(dense("a"), dense("b"), dense("c"))
    told = {"class_name": "SGD", "config": {"learning_rate": 0.1, "momentum": 0.9}}
    path = saved_model(tmp_path / "saved", thing(**layers, optimizer=state), config, told)
    target = tmp_path / "migrated.keras"
    done = planning.migrate(path, target)
    assert [one.names for one in done.proposals] == [("a/kernel", "c/kernel")]
    optimizer = tiedio.load_tied(target).optimizer
    assert int(optimizer.iterations) == 3
    assert float(optimizer.learning_rate) == 0.5  # as it was, and not as in the config
    found = [keras.ops.convert_to_numpy(one)[0, 0] for one in optimizer.variables[2:]]
    assert found == [10, 11]


@needs_tensorflow
def test_each_variable_of_a_layer_is_found_once(tmp_path):
    kernel, bias = variable([1, 2], name="made/kernel"), variable(3)
    layer = thing(
        _trainable_weights=[kernel, bias],
        _kernel=kernel,
        kernel=kernel,
        bias=bias,
        variables=[bias],
    )
    root = thing(
        first=layer,
        keras_api=thing(layers=[layer], held=thing(total=variable(0))),
        second=layer,
        signatures=thing(held=kernel),
    )
    assert names_in(write(tmp_path, root)) == ["first/bias", "first/kernel"]


@needs_tensorflow
def test_three_layers_share_one_variable(tmp_path):
    kernel = variable([1, 2])
    blocks = [thing(kernel=kernel, bias=variable(number)) for number in range(3)]
    path = write(tmp_path, thing(blocks=blocks, heads={"last": thing(table=kernel)}))
    names = tuple(f"blocks/{number}/kernel" for number in range(3))
    assert ties_in(path) == [(*names, "heads/last/table")]


@needs_tensorflow
def test_layers_are_called_by_what_only_they_have(tmp_path):
    kernel = variable([1, 2], name="encoder/kernel")
    encoder = thing(kernel=kernel, bias=variable(1, name="encoder/bias"))
    decoder = thing(kernel=kernel)
    layers = {"layer-0": decoder, "layer-1": encoder, "layer_with_weights-1": encoder}
    path = write(tmp_path, thing(**layers))
    assert names_in(path) == ["layer-0/kernel", "encoder/bias", "encoder/kernel"]


@needs_tensorflow
def test_wrappers_hold_their_layers_under_attributes(tmp_path):
    cell = dict(kernel=variable([1]), recurrent_kernel=variable([2]), bias=variable(3))
    twin = dict(kernel=variable([4]), recurrent_kernel=variable([5]), bias=cell["bias"])
    both = thing(forward_layer=thing(cell=thing(**cell)), backward_layer=thing(cell=thing(**twin)))
    lstm = {"class_name": "LSTM", "config": {"name": "lstm", "units": 1}}
    config = {"class_name": "Bidirectional", "config": {"name": "both", "layer": lstm}}
    path = write(tmp_path, thing(**{"layer-0": both}))
    assert ties_in(path, sequential(config)) == [("both/forward/bias", "both/backward/bias")]


@needs_tensorflow
def test_a_model_beside_others_in_a_checkpoint(tmp_path):
    model = thing(**{"layer-0": thing(kernel=variable([1, 2]))})
    path = thing(net=model, step=variable(1)).save(tmp_path / "ckpt")
    assert names_in(path, sequential(dense("a"))) == ["a/kernel"]
    assert names_in(path) == ["step", "net/layer-0/kernel"]  # and not how often it was saved


@needs_tensorflow
def test_layers_that_are_not_as_the_config_says_are_not_placed(tmp_path):
    path = write(tmp_path, thing(**{"layer-0": thing(weight=variable([1, 2]))}))
    with opening.reading(path, sequential(dense("a"))) as checkpoint:
        assert checkpoint.is_by_position
    with pytest.raises(errors.MigrationError) as error:
        planning.migrate(path, tmp_path / "migrated.keras", config=sequential(dense("a")))
    pin(
        error,
        errors.MigrationError,
        f"Cannot tell how Keras 3 would store `layer-0/weight` of `{path}`.\n"
        "Expected: the config of the model, made of layers of Keras. "
        "Received: one of other layers.\n"
        "Restore it by TensorFlow.",
    )


@needs_tensorflow
def test_a_checkpoint_is_not_migrated_without_a_config(tmp_path):
    path = write(tmp_path, thing(head=thing(kernel=variable([1, 2]))))
    with pytest.raises(errors.MigrationError) as error:
        planning.migrate(path, tmp_path / "migrated.keras")
    pin(
        error,
        errors.OptionNeededError,
        f"Cannot tell how Keras 3 would store `head/kernel` of `{path}`.\n"
        "Expected: the config of the model, made of layers of Keras. Received: none.\n"
        "Pass the config of the model as `--config`.",
    )


# Where it lies


@needs_tensorflow
def test_a_checkpoint_is_found_by_any_of_its_names(tmp_path):
    path = write(tmp_path, thing(head=thing(kernel=variable([1, 2]))))
    for name in ("ckpt", "ckpt.index", "ckpt.data-00000-of-00001", ""):
        assert names_in(tmp_path / name if name else tmp_path) == ["head/kernel"]
    assert path == tmp_path / "ckpt"


@needs_tensorflow
def test_the_newest_of_several_checkpoints_is_read(tmp_path):
    for name in ("old", "new"):
        write(tmp_path, thing(**{name: thing(kernel=variable([1, 2]))}), name)
    with pytest.raises(errors.FileFormatError) as error:
        names_in(tmp_path)
    pin(
        error,
        errors.FileFormatError,
        f"`{tmp_path}` cannot be read.\n"
        "Expected: one checkpoint. Received: `new`, `old`.\n"
        "Pass the path of one of them, without its ending.",
    )
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/gone/new"\n')
    assert names_in(tmp_path) == ["new/kernel"]


def test_a_folder_of_tensorflow_is_one_file_among_many():
    for path, _ in WRITTEN:
        assert not listing.is_many(str(path))
    folder = MODELS[0][0].parent
    assert str(MODELS[0][0]) in [one.path for one in listing.files(str(folder)).files]


def test_what_lies_elsewhere_is_refused():
    import fsspec

    fsspec.filesystem("memory").pipe("/away/saved_model.pb", b"")
    with pytest.raises(errors.FileFormatError) as error:
        names_in("memory://away")
    pin(
        error,
        errors.FileFormatError,
        "`memory://away` cannot be read.\n"
        "Expected: a path on disk. Received: a URL.\n"
        "Copy it to this machine.",
    )


def test_tensorflow_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(ImportError) as error:
        planning.plan(tmp_path)
    pin(
        error,
        errors.MissingPackageError,
        f"`{tmp_path}` needs a package that is not installed.\n"
        "Expected: `tensorflow`. Received: import of tensorflow halted; None in sys.modules.\n"
        "Install it: `pip install 'tiedio[tensorflow]'`.",
    )


# What is damaged


@pytest.fixture
def damageable(tmp_path):
    """A SavedModel of a written kind, to be damaged."""
    path = next(path for path, _ in MODELS if (path / "keras_metadata.pb").exists())
    return Path(shutil.copytree(path, tmp_path / "damaged"))


@needs_tensorflow
@pytest.mark.parametrize("content", [b"", b"\xff" * 100, None], ids=["empty", "garbage", "half"])
@pytest.mark.parametrize(
    "name",
    ["keras_metadata.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"],
)
def test_a_damaged_part_is_refused(damageable, name, content):
    part = damageable / name
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2] if content is None else content)
    if (name, content) == ("keras_metadata.pb", b""):
        assert planning.plan(damageable).kind == "SavedModel of weights only"
        return
    with pytest.raises(errors.FileFormatError) as error:
        planning.migrate(damageable, damageable / "x.keras")
    assert str(error.value).startswith(f"`{damageable}` is damaged.\nExpected: ")
    assert len(str(error.value).splitlines()) == 3


@needs_tensorflow
def test_a_part_that_is_missing_is_named(damageable):
    (damageable / "variables" / "variables.index").unlink()
    with pytest.raises(errors.FileFormatError, match=r"Received: no `variables\.index`\."):
        planning.plan(damageable)


@needs_tensorflow
def test_nothing_larger_than_the_file_is_read(tmp_path):
    path = write(tmp_path, thing(head=thing(kernel=variable([1, 2]))))
    with opening.reading(path) as checkpoint:
        (one,) = checkpoint.variables
        checkpoint.tensors._shapes[one.source] = [1 << 20, 1 << 20]
        with pytest.raises(errors.FileFormatError, match=r"of shape \(1048576, 1048576\) in \d+ b"):
            checkpoint.tensors.read(one.source)


@needs_tensorflow
def test_a_checkpoint_without_objects_is_refused(tmp_path):
    import tensorflow

    path = tmp_path / "named"
    tensorflow.raw_ops.SaveV2(
        prefix=str(path), tensor_names=["kernel"], shape_and_slices=[""], tensors=[[1.0]]
    )
    with pytest.raises(errors.FileFormatError) as error:
        planning.plan(path)
    pin(
        error,
        errors.FileFormatError,
        f"`{path}` cannot be read.\n"
        "Expected: the graph of its objects. Received: tensors by name.\n"
        "Save it by `tf.train.Checkpoint`.",
    )


@needs_tensorflow
def test_references_are_refused_which_would_end_the_process(tmp_path, monkeypatch):
    import tensorflow

    path = write(tmp_path, thing(head=thing(kernel=variable([1, 2]))))
    key = "head/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    load = tensorflow.train.load_checkpoint

    def hostile(prefix):
        reader = load(prefix)
        dtypes = reader.get_variable_to_dtype_map() | {key: tensorflow.dtypes.as_dtype(101)}
        monkeypatch.setattr(type(reader), "get_variable_to_dtype_map", lambda self: dtypes)
        return reader

    monkeypatch.setattr(tensorflow.train, "load_checkpoint", hostile)
    with pytest.raises(errors.FileFormatError, match=f"Received: references at `{key}`"):
        planning.plan(path)
