"""What people pass by mistake: three lines say what is meant, and nothing is changed."""

import os

import keras
import numpy as np
import pytest
from pinning import pin

import tiedio
from tiedio import errors, files


def dense(name, units=4, **options):
    layer = keras.layers.Dense(units, name=name, **options)
    layer.build((None, 4))
    return layer


def sequential(name, *layers):
    return keras.Sequential([keras.Input((4,)), *layers], name=name)


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """What the calls below are about."""
    saved = tmp_path_factory.mktemp("saved") / "saved.keras"
    model = sequential("model", dense("first"), dense("second"))
    tiedio.save_tied(model, saved)
    return {
        **{name: dense(name) for name in "abc"},
        "model": model,
        "short": sequential("short", dense("only")),
        "adam": keras.optimizers.Adam(),
        "saved": saved,
    }


def called(call, there):
    return eval(f"tiedio.{call}", {"tiedio": tiedio, "keras": keras, **there})  # noqa: S307


EXPECTED = {
    **dict.fromkeys(("layer", "to", "layer`, `to", "model"), "a layer or a model of Keras"),
    "weights": 'names of weights, as in `("kernel",)`',
    "ties": "tie groups",
    "filepath": "a path, a URL or an open file",
    "backup_dir": "a path, a URL or an open file",
    "objects_to_skip": "a list of layers, or of optimizers",
    **dict.fromkeys(("custom_objects", "config", "models"), "a dict"),
    "max_shard_size": "a number of GB, above 0",
    "accept": "`contents`, `none` or names",
}

# What to do; then calls, and of each the argument, and what was received.
MISUSES = {
    "Pass one at a time.": [
        ("quantize_tied({'a': model}, 'int8')", "model", "a dict"),
        ("tie([a, b], to=c)", "layer", "a list of keras.Dense"),
        ("tie(a, to=(b, c))", "to", "a tuple of keras.Dense"),
        ("tie(a, to={'b': b})", "to", "a dict"),
        ("untie([a])", "layer", "a list of keras.Dense"),
    ],
    'Pass several by name, as in `{"encoder": encoder, "decoder": decoder}`.': [
        ("find_ties([a, b])", "model", "a list of keras.Dense"),
        ("save_tied([model, short], 'x.keras')", "model", "a list of keras.Sequential"),
    ],
    "Pass the layer or model itself, before any path: `model.get_layer` finds a layer by name, "
    "`tiedio.load_tied` loads a file.": [
        ("tie('encoder', to=b)", "layer", "'encoder'"),
        ("find_ties('x.keras')", "model", "'x.keras'"),
        ("clone_tied('x.keras')", "model", "'x.keras'"),
        ("assert_tied('x.keras')", "model", "'x.keras'"),
        ("plot_ties('x.keras', 'x.png')", "model", "'x.keras'"),
        ("save_tied('x.keras', model)", "model", "'x.keras'"),
        ("save_tied_weights('x.weights.h5', model)", "model", "'x.weights.h5'"),
        ("load_tied_weights(saved, model)", "model", "a pathlib.PosixPath"),
    ],
    'Pass the layer that holds it; `weights=("kernel",)` names its variables.': [
        ("tie(a.kernel, to=b.kernel)", "layer`, `to", "a keras.Variable, a keras.Variable"),
    ],
    "Pass a `keras.Model` that holds the optimizer, and what it trains, as attributes.": [
        ("tie(adam, to=adam)", "layer`, `to", "a keras.Adam, a keras.Adam"),
        ("find_ties(adam)", "model", "a keras.Adam"),
        ("save_tied(adam, 'x.keras')", "model", "a keras.Adam"),
        ("save_tied_weights(adam, 'x.weights.h5')", "model", "a keras.Adam"),
        ("load_tied_weights(adam, saved)", "model", "a keras.Adam"),
    ],
    "Make a layer or a model of it, by calling the class.": [
        ("tie(a, to=keras.layers.Dense)", "to", "the class keras.Dense"),
    ],
    "Pass a layer or a model of the package `keras`.": [
        ("tie(a, to=None)", "to", "None"),
        ("find_ties(1)", "model", "1"),
    ],
    "Pass names only; tie several layers one by one, each to the same owner.": [
        ("tie(a, b, c)", "weights", "a keras.Dense"),
        ("tie(a, b, [c])", "weights", "a list of keras.Dense"),
        ("tie(a, b, [])", "weights", "[]"),
        ("tie(a, b, {'kernel': 1})", "weights", "a dict_values"),
        ("untie(a, b)", "weights", "a keras.Dense"),
    ],
    "Pass what `tiedio.find_ties` returns of a model.": [
        ("assert_tied(model, short)", "ties", "a keras.Sequential"),
        ("assert_tied(model, 'kernel')", "ties", "'kernel'"),
        ("AssertTied([a])", "ties", "a list of keras.Dense"),
    ],
    "Pass a path; what takes a model as well takes that first, and one only.": [
        ("summary([a])", "filepath", "a list of keras.Dense"),
        ("plot_ties(model, short)", "filepath", "a keras.Sequential"),
        ("save_tied(model, short)", "filepath", "a keras.Sequential"),
        ("save_tied_weights(model, short)", "filepath", "a keras.Sequential"),
        ("load_tied(model)", "filepath", "a keras.Sequential"),
        ("load_tied(model, saved)", "filepath", "a keras.Sequential"),
        ("load_tied(None)", "filepath", "None"),
        ("load_tied_weights(model, short)", "filepath", "a keras.Sequential"),
        ("TiedModelCheckpoint(model)", "filepath", "a keras.Sequential"),
        ("TiedBackupAndRestore(backup_dir=1)", "backup_dir", "1"),
        ("files.inspect(model)", "filepath", "a keras.Sequential"),
        ("files.verify(model)", "filepath", "a keras.Sequential"),
        ("files.diff(saved, model)", "filepath", "a keras.Sequential"),
        ("files.export(model, 'x')", "filepath", "a keras.Sequential"),
        ("files.migrate(saved, model)", "filepath", "a keras.Sequential"),
        ("files.plan([saved])", "filepath", "a list of pathlib.PosixPath"),
    ],
    'Name each, as in `{"encoder": encoder, "decoder": decoder}`.': [
        ("TiedModelCheckpoint('x.keras', models=[model])", "models", "a list of keras.Sequential"),
        ("TiedBackupAndRestore('x', models=model)", "models", "a keras.Sequential"),
    ],
    "Pass the objects, not their names, as in `[model.optimizer]`.": [
        (
            "save_tied_weights(model, 'x.weights.h5', objects_to_skip=['first'])",
            "objects_to_skip",
            "a list of str",
        ),
        ("load_tied_weights(model, saved, objects_to_skip=a)", "objects_to_skip", "a keras.Dense"),
    ],
    "Map names to the classes and functions.": [
        ("load_tied(saved, [c])", "custom_objects", "a list of keras.Dense"),
    ],
    "Pass such a number, or leave it out to write one file.": [
        ("save_tied_weights(model, 'x.weights.json', max_shard_size=0)", "max_shard_size", "0"),
        ("save_tied_weights(model, 'x.weights.h5', max_shard_size='1')", "max_shard_size", "'1'"),
    ],
    "Pass what `json.loads` makes of the model's `to_json()`.": [
        ("files.plan(saved, config='{}')", "config", "'{}'"),
    ],
    "Pass a list of these.": [
        ("files.migrate(saved, 'x.keras', accept=1)", "accept", "1"),
    ],
}


@pytest.mark.parametrize(
    ("call", "argument", "received", "advice"),
    [pytest.param(*row, advice, id=row[0]) for advice, rows in MISUSES.items() for row in rows],
)
def test_something_else_than_is_asked_for(
    there, tmp_path, monkeypatch, call, argument, received, advice
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError) as error:
        called(call, there)
    pin(
        error,
        errors.ArgumentError,
        f"Cannot use what was passed as `{argument}`.\n"
        f"Expected: {EXPECTED[argument]}. Received: {received}.\n"
        f"{advice}",
    )
    assert isinstance(error.value, ValueError)
    assert os.listdir(tmp_path) == []
    assert tiedio.find_ties(there["model"]) == ()


def test_one_text_is_a_list_of_one(there, tmp_path):
    assert files.plan(there["saved"], ties="second=first").proposals
    files.migrate(there["saved"], tmp_path / "x.keras", accept="none")
    with pytest.raises(TypeError) as error:
        files.plan(there["saved"], ties=[there["a"]])
    pin(
        error,
        errors.ArgumentError,
        "Cannot use what was passed as `ties`.\n"
        "Expected: ties as texts. Received: a list of keras.Dense.\n"
        "Pass a list of such texts, as `decoder/kernel=encoder/kernel`.",
    )


@pytest.mark.parametrize("first", ["model", "short"])
def test_models_of_different_length(there, first):
    models = [there["model"], there["short"]]
    layer, owner = models if first == "model" else reversed(models)
    held = [*layer.weights, *owner.weights]
    with pytest.raises(ValueError) as error:
        tiedio.tie(layer, to=owner)
    pin(
        error,
        errors.TieError,
        f"Cannot tie `{layer.name}` to `{owner.name}`: `model/layers/dense_1/bias`, "
        "`model/layers/dense_1/kernel` have no partner.\n"
        "Expected: each of them in both. Received: each in one only.\n"
        "Tie those sub-layers that have one, each by itself, or name their `weights`.",
    )
    assert all(map(lambda a, b: a is b, held, [*layer.weights, *owner.weights]))


def with_lora(name, rank):
    layer = dense(name)
    layer.enable_lora(rank)
    return layer


LORA = (
    "Call `enable_lora` on both, with one rank, or after they are tied; or name what is to be "
    'tied, as in `weights=("kernel",)`.'
)


@pytest.mark.parametrize("is_owner", [True, False])
def test_one_of_two_layers_has_lora(is_owner):
    lora, plain = with_lora("lora", 2), dense("plain")
    layer, owner = (plain, lora) if is_owner else (lora, plain)
    with pytest.raises(ValueError) as error:
        tiedio.tie(layer, to=owner)
    pin(
        error,
        errors.TieError,
        f"Cannot tie `{layer.name}` to `{owner.name}`: `lora/lora_kernel_a`, "
        "`lora/lora_kernel_b` have no partner.\n"
        f"Expected: each of them in both. Received: each in one only.\n{LORA}",
    )
    tiedio.tie(layer, to=owner, weights=("kernel",))
    assert layer._kernel is owner._kernel
    plain.enable_lora(2)
    tiedio.tie(layer, to=owner)
    assert layer.lora_kernel_a is owner.lora_kernel_a


def test_ranks_of_lora_differ():
    with pytest.raises(ValueError) as error:
        tiedio.tie(with_lora("b", 3), to=with_lora("a", 2))
    pin(
        error,
        errors.TieError,
        "Cannot tie `b/lora_kernel_a` to `a/lora_kernel_a`, `b/lora_kernel_b` to "
        "`a/lora_kernel_b`: shapes or dtypes differ.\n"
        "Expected: (4, 2) float32, (2, 4) float32 (owner). "
        f"Received: (4, 3) float32, (3, 4) float32.\n{LORA}",
    )
    with pytest.raises(errors.TieError, match="Call `enable_lora`"):
        tiedio.tie(dense("b"), to=with_lora("a", 2), weights=("lora_kernel_a",))


TRANSPOSED = (
    "Name what is to be tied, and pass `transpose=True`, as in `tiedio.tie(head, to=table, "
    'weights={"kernel": "embeddings"}, transpose=True)`.'
)


def table():
    layer = keras.layers.Embedding(9, 4, name="table")
    layer.build(())
    return layer


@pytest.mark.parametrize("is_owner", [True, False])
def test_a_table_and_its_transposition(is_owner):
    logits = keras.layers.Dense(9, name="logits")
    layer, owner = (table(), logits) if is_owner else (logits, table())
    kinds = "Dense (owner) and Embedding" if is_owner else "Embedding (owner) and Dense"
    with pytest.raises(ValueError) as error:
        tiedio.tie(layer, to=owner)
    pin(
        error,
        errors.TieError,
        f"Cannot tie `{layer.name}` to `{owner.name}`: they hold a table in two layouts.\n"
        f"Expected: layers that hold one layout. Received: {kinds}.\n{TRANSPOSED}",
    )
    assert not logits.built


def test_a_table_and_its_transposition_by_name():
    with pytest.raises(ValueError) as error:
        tiedio.tie(dense("logits", 9), to=table(), weights={"kernel": "embeddings"})
    pin(
        error,
        errors.TieError,
        "Cannot tie `logits/kernel` to `table/embeddings`: shapes or dtypes differ.\n"
        f"Expected: (9, 4) float32 (owner). Received: (4, 9) float32.\n{TRANSPOSED}",
    )


def test_names_that_the_owner_lacks():
    with pytest.raises(ValueError) as error:
        tiedio.tie(dense("b"), to=dense("a"), weights={"kernel": "gamma", "bias": "beta"})
    pin(
        error,
        errors.TieError,
        "Layer `a` has no weights `beta`, `gamma`.\n"
        "Expected: some of `bias`, `kernel`. Received: `beta`, `gamma`.\n"
        "Pass names that both layers have, or a dict from this layer's to the owner's, such as "
        '`{"kernel": "recurrent_kernel"}`.',
    )


def test_one_variable_cannot_be_two():
    gru = keras.layers.GRU(4, name="gru")
    gru.build((None, 3, 4))
    layer = keras.layers.GRU(4, name="layer")
    layer.build((None, 3, 4))
    with pytest.raises(ValueError) as error:
        tiedio.tie(layer, to=gru, weights={"kernel": "kernel", "cell/kernel": "recurrent_kernel"})
    pin(
        error,
        errors.TieError,
        "Cannot tie `layer/cell/kernel`, one variable, to several.\n"
        "Expected: one of the owner's. Received: `gru/cell/kernel`, `gru/cell/recurrent_kernel`.\n"
        "Name each variable once, and where a layer has two names for it, one of them.",
    )


def test_two_layers_that_are_not_built():
    layers = [keras.layers.Dense(4, name=name) for name in "ab"]
    with pytest.raises(errors.ModelNotBuiltError, match="`b` has no variables yet"):
        tiedio.tie(layers[0], to=layers[1])
    with pytest.raises(ValueError) as error:
        tiedio.untie(layers[0])
    pin(
        error,
        errors.ModelNotBuiltError,
        "Layer `a` has no variables yet: it is not built.\n"
        "Expected: a built layer. Received: an unbuilt one.\n"
        "Build it, or call it on data, before untying.",
    )


@pytest.mark.parametrize(
    "call",
    [
        "save_tied(model, 'missing/x.keras')",
        "save_tied_weights(model, 'missing/x.weights.h5')",
        "save_tied_weights(model, 'missing/x.weights.json', max_shard_size=1)",
        "files.migrate(saved, 'missing/x.keras', accept='none')",
        "files.export(saved, 'missing/x.safetensors')",
    ],
)
def test_a_folder_that_does_not_exist(there, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        called(call, there)
    pin(
        error,
        errors.MissingFileError,
        f"Cannot save `x*`: there is no folder `{tmp_path / 'missing'}`.\n"
        "Expected: a folder. Received: nothing there.\n"
        "Make the folder, or check the path.",
    )
    assert os.listdir(tmp_path) == []


def test_a_folder_is_made_where_keras_makes_it(there, tmp_path):
    tiedio.save_tied(there["model"], tmp_path / "a/b/x.h5")
    with tiedio.patch():
        there["model"].save(tmp_path / "c/x.h5")
        there["model"].save(tmp_path / "d/x", zipped=False)
    for name in ("a/b/x.h5", "c/x.h5", "d/x"):
        loaded = tiedio.load_tied(tmp_path / name)
        assert np.array_equal(loaded.weights[0], there["model"].weights[0])
