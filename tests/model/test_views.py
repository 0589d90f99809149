"""A layer that shows another layer's variable transposed: live, and what is refused."""

import copy
import gc
import json
import zipfile

import keras
import numpy as np
import pytest
from keras import layers, ops

import tiedio
from tiedio import files
from tiedio.errors import ArgumentError, LoadError, ModelNotBuiltError, TiedioError, TieError
from tiedio.model.views import TransposedView

DATA = np.random.default_rng(0).random((16, 6), "float32")


class DenseTransposed(layers.Layer):
    """A decoder as people write it by hand."""

    def __init__(self, other, **options):
        super().__init__(**options)
        self.other = other

    def build(self, input_shape):
        shape = (self.other.kernel.shape[0],)
        self.bias = self.add_weight(shape=shape, initializer="zeros", name="bias")

    def call(self, inputs):
        return ops.matmul(inputs, ops.transpose(self.other.kernel)) + self.bias


class ConvTransposed(layers.Conv2D):
    def __init__(self, other, *arguments, **options):
        super().__init__(*arguments, **options)
        self.other = other

    def build(self, input_shape):
        self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias")

    @property
    def kernel(self):
        return ops.transpose(self.other.kernel, (0, 1, 3, 2))


class Scores(layers.Layer):
    def __init__(self, table, **options):
        super().__init__(**options)
        self.table = table

    def call(self, inputs):
        return ops.matmul(inputs, ops.transpose(self.table.embeddings))


def value(variable):
    return np.asarray(ops.convert_to_numpy(variable))


def autoencoder(tied=True, **options):
    keras.utils.set_random_seed(1)
    encoder = layers.Dense(3, activation="tanh", name="encoder", **options)
    decoder = layers.Dense(6, name="decoder", **options)
    model = keras.Sequential([keras.Input((6,)), encoder, decoder])
    if tied:
        tiedio.tie(decoder, to=encoder, weights=["kernel"], transpose=True)
    return model


def by_hand():
    keras.utils.set_random_seed(1)
    encoder = layers.Dense(3, activation="tanh", name="encoder")
    return keras.Sequential([keras.Input((6,)), encoder, DenseTransposed(encoder)])


def convolutional(tied):
    keras.utils.set_random_seed(1)
    down = layers.Conv2D(4, 3, padding="same", activation="tanh")
    up = layers.Conv2D(2, 3, padding="same") if tied else ConvTransposed(down, 2, 3, padding="same")
    model = keras.Sequential([keras.Input((5, 5, 2)), down, up])
    if tied:
        tiedio.tie(up, to=down, weights=["kernel"], transpose=(0, 1, 3, 2))
    return model


def language_model(tied):
    keras.utils.set_random_seed(1)
    words, table, hidden = keras.Input((5,), dtype="int32"), layers.Embedding(7, 4), layers.Dense(4)
    head = layers.Dense(7, use_bias=False) if tied else Scores(table)
    model = keras.Model(words, head(hidden(table(words))))
    if tied:
        names = {"kernel": "embeddings"}
        tiedio.tie(head, to=table, weights=names, transpose=True)
    return model


@pytest.mark.often(1)
@pytest.mark.parametrize("kind", ["language model", "dense", "convolutional"])
def test_trains_as_a_layer_written_by_hand(kind):
    shape = {"dense": (16, 6), "convolutional": (16, 5, 5, 2), "language model": (16, 5)}[kind]
    inputs = np.random.default_rng(0).random(shape, "float32")
    if kind == "language model":
        inputs = (inputs * 7).astype("int32")
    makers = {
        "dense": (autoencoder, by_hand),
        "convolutional": (lambda: convolutional(True), lambda: convolutional(False)),
        "language model": (lambda: language_model(True), lambda: language_model(False)),
    }
    states = []
    for make in makers[kind]:
        model = make()
        model.compile(keras.optimizers.Adam(0.01, use_ema=True), "mse")
        targets = np.zeros(model.compute_output_shape(shape), "float32")
        model.fit(inputs, targets, epochs=3, batch_size=4, shuffle=False, verbose=0)
        states.append([value(one) for one in (*model.weights, *model.optimizer.variables)])
        assert model.count_params() == sum(one.size for one in map(value, model.weights))
    for ours, theirs in zip(*states, strict=True):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float32"])
def test_is_shown_as_any_variable(policy):
    model = autoencoder(dtype=policy)
    encoder, decoder = model.layers
    shown = decoder.kernel
    assert isinstance(shown, keras.Variable)
    assert (tuple(shown.shape), shown.dtype, shown.ndim) == ((3, 6), "float32", 2)
    assert np.array_equal(value(shown), value(encoder.kernel).T)
    assert [one.name for one in decoder.weights] == ["bias"]
    assert len(model.trainable_variables) == 3 and model.count_params() == 18 + 3 + 6
    computed = keras.backend.standardize_dtype(model(DATA).dtype)
    assert computed == ("bfloat16" if policy.startswith("mixed") else "float32")
    shown.assign(np.full((3, 6), 2.0))
    shown.assign_add(np.ones((3, 6)))
    assert np.array_equal(value(encoder.kernel), np.full((6, 3), 3.0))
    with pytest.raises(ValueError, match=r"Expected: \(3, 6\). Received: \(6, 3\)"):
        shown.assign(np.ones((6, 3)))
    shown.trainable = False
    assert not encoder.kernel.trainable


def test_untie_gives_the_value_of_that_moment(recwarn):
    model = autoencoder()
    model.compile("adam", "mse")
    model.fit(DATA, DATA, verbose=0)
    encoder, decoder = model.layers
    expected = value(encoder.kernel).T
    tiedio.untie(decoder)
    assert "starts anew" in str(recwarn.pop(tiedio.TiedioWarning).message)
    assert [one.name for one in decoder.weights] == ["kernel", "bias"]
    assert np.array_equal(value(decoder.kernel), expected)
    model.fit(DATA, DATA, verbose=0)
    assert not np.array_equal(value(decoder.kernel), value(encoder.kernel).T)
    assert tiedio.find_ties(model) == ()


def test_what_ties_say(capsys):
    model = autoencoder()
    (tie,) = tiedio.find_ties(model)
    assert str(tie) == "encoder/kernel = decoder/kernel transposed  (6, 3) float32"
    assert tie.axes == (1, 0) and "decoder/kernel transposed" in tie._repr_html_()
    tiedio.assert_tied(model)
    tiedio.assert_tied(model, [tie])
    with pytest.raises(TieError, match="`encoder/kernel` transposed differ by up to"):
        tiedio.assert_tied(autoencoder(tied=False), [tie])
    tiedio.summary(model)
    assert "decoder/kernel transposed" in capsys.readouterr().out
    (tie,) = tiedio.find_ties(convolutional(True))
    assert "transposed (0, 1, 3, 2)" in str(tie)


def test_a_view_of_a_view_and_of_what_is_tied_again():
    first, second, third = (layers.Dense(4, name=name) for name in ("first", "second", "third"))
    for layer in (first, second, third):
        layer.build((None, 4))
    tiedio.tie(second, to=first, weights=["kernel"], transpose=True)
    tiedio.tie(third, to=second, weights=["kernel"], transpose=True)
    assert third.kernel is first.kernel
    other = layers.Dense(4, name="other")
    other.build((None, 4))
    tiedio.untie(third)
    tiedio.tie(first, to=other, weights=["kernel"])
    assert second.kernel.owner is other.kernel


def test_models_of_their_parts(recwarn):
    """The owner's layer cannot take its variable away from what shows it."""
    model = autoencoder()
    with pytest.raises(TieError, match=r"`encoder/kernel`.*\n.*`decoder`, which show it"):
        tiedio.untie(model.layers[0])
    copied = copy.deepcopy(model.layers[1].kernel)
    assert isinstance(copied, TransposedView) and copied.owner is not model.layers[0].kernel


def test_what_is_refused():
    model = autoencoder(tied=False)
    encoder, decoder = model.layers
    before = list(model.weights)
    for options, kind, words in (
        ({"transpose": True}, ArgumentError, "names of what is to be transposed"),
        ({"weights": ["kernel"], "transpose": (0, 0)}, ArgumentError, "each axis once"),
        ({"weights": ["kernel"], "transpose": "yes"}, ArgumentError, "each axis once"),
        ({"weights": ["kernel"], "transpose": (0, 1)}, TieError, r"\(6, 3\) float32 \(owner\)"),
        ({"weights": ["kernel"], "transpose": (0, 1, 2)}, TieError, "shapes or dtypes differ"),
        ({"weights": ["kernel"]}, TieError, "pass `transpose=True`"),
    ):
        with pytest.raises(kind, match=words):
            tiedio.tie(decoder, to=encoder, **options)
    with pytest.raises(ModelNotBuiltError, match="`input_shape`"):
        tiedio.tie(layers.Dense(6), to=encoder, weights=["kernel"], transpose=True)
    assert all(map(lambda a, b: a is b, model.weights, before))


def test_without_a_copy_stock_keras_says_what_is_missing(tmp_path):
    model = language_model(True)
    paths = []
    for stock_readable in (True, False):
        path = tmp_path / f"{stock_readable}.weights.h5"
        tiedio.save_tied_weights(model, path, stock_readable=stock_readable)
        loaded = language_model(True)
        tiedio.load_tied_weights(loaded, path)
        assert all(map(np.array_equal, loaded.get_weights(), model.get_weights()))
        paths.append(path)
    words = keras.Input((5,), dtype="int32")
    hidden = layers.Dense(4, "tanh")(layers.Embedding(7, 4)(words))
    plain = keras.Model(words, layers.Dense(7, use_bias=False)(hidden))
    plain.load_weights(paths[0])
    with pytest.raises(ValueError, match="expected 1 variables, but received 0"):
        plain.load_weights(paths[1])
    tiedio.load_tied_weights(plain, paths[1])
    tiedio.assert_tied(plain, tiedio.find_ties(model))


def test_what_files_say(tmp_path):
    model = autoencoder()
    model.compile("adam", "mse")
    model.fit(DATA, DATA, verbose=0)
    for name, has_copy in (("with.keras", True), ("without.keras", False)):
        tiedio.save_tied(model, tmp_path / name, stock_readable=has_copy)
        found = files.inspect(tmp_path / name)
        (group,) = found.tie_groups
        assert found.variables == 4
        assert group.names == ("encoder/kernel", "decoder/kernel transposed")
        assert group.nbytes == found.bytes_shared == (0 if has_copy else 6 * 3 * 4)
        plan = files.plan(tmp_path / name)
        assert not plan.notes  # not that a state of the optimizer is missing
        (tie,) = plan.proposals
        assert (*tie.row[0], tie.row[1]) == (*group.names, "the record of the file says so")
        files.migrate(tmp_path / name, tmp_path / f"migrated {name}")
        done = files.export(tmp_path / name, tmp_path / f"{name}.safetensors")
        assert not done.aliases and " = ".join(group.names) in done.notes[0]
        files.export(tmp_path / f"{name}.safetensors", tmp_path / f"back {name}")
        for written in (f"migrated {name}", f"back {name}"):
            loaded = tiedio.load_tied(tmp_path / written)
            tiedio.assert_tied(loaded, tiedio.find_ties(model))
            assert all(map(np.array_equal, loaded.get_weights(), model.get_weights()))


@pytest.mark.parametrize("kind", ["dense", pytest.param("language model", marks=pytest.mark.slow)])
def test_migration_finds_what_lost_its_record(tmp_path, kind):
    model = autoencoder() if kind == "dense" else language_model(True)
    data = DATA if kind == "dense" else (DATA[:, :5] * 7).astype("int32")
    targets = np.zeros(model.compute_output_shape(data.shape), "float32")
    model.compile("adam", "mse")
    model.fit(data, targets, verbose=0)
    tiedio.save_tied(model, tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    metadata = json.loads(members["metadata.json"])
    del metadata["tiedio"]
    members["metadata.json"] = json.dumps(metadata).encode()
    with zipfile.ZipFile(tmp_path / "lost.keras", "w") as archive:
        for name, held in members.items():
            archive.writestr(name, held)
    (proposal,) = files.plan(tmp_path / "lost.keras").proposals
    assert proposal.axes == (1, 0) and str(proposal.evidence) == "transposed contents and slots"
    files.migrate(tmp_path / "lost.keras", tmp_path / "found.keras")
    loaded = tiedio.load_tied(tmp_path / "found.keras")
    tiedio.assert_tied(loaded, tiedio.find_ties(model))
    for one in (model, loaded):
        one.fit(data, targets, shuffle=False, verbose=0)
    for ours, theirs in zip(loaded.weights, model.weights, strict=True):
        assert value(ours).tobytes() == value(theirs).tobytes()


def test_with_lora(tmp_path):
    model = autoencoder()
    encoder, decoder = model.layers
    decoder.enable_lora(2)
    assert not encoder.kernel.trainable  # one variable: frozen by LoRA for both
    model.compile("adam", "mse")
    model.fit(DATA, DATA, verbose=0)
    tiedio.save_tied(model, tmp_path / "lora.keras")
    loaded = tiedio.load_tied(tmp_path / "lora.keras")
    for one in (model, loaded):
        one.fit(DATA, DATA, shuffle=False, verbose=0)
    tiedio.assert_tied(loaded, tiedio.find_ties(model))
    for ours, theirs in zip(loaded.weights, model.weights, strict=True):
        assert value(ours).tobytes() == value(theirs).tobytes()
    assert value(loaded.layers[1].kernel).tobytes() == value(decoder.kernel).tobytes()


def test_clones_show_it_too():
    model = autoencoder()
    clone = tiedio.clone_tied(model)
    tiedio.assert_tied(clone, tiedio.find_ties(model))
    assert clone.layers[1].kernel.owner is clone.layers[0].kernel


@pytest.mark.skipif(not hasattr(keras.Model, "quantize"), reason="Keras quantizes no models")
def test_quantized_layers_have_kernels_of_their_own():
    model = autoencoder()
    expected = model.predict(DATA, verbose=0)
    with pytest.warns(tiedio.TiedioWarning, match="`decoder/kernel` from `encoder/kernel`"):
        tiedio.quantize_tied(model, "int8")
    assert np.allclose(model.predict(DATA, verbose=0), expected, atol=0.1)
    assert tiedio.find_ties(model) == () and len(model.weights) == 6
    model = autoencoder()
    model.compile("adam", "mse")
    model.fit(DATA, DATA, verbose=0)
    with pytest.warns(tiedio.TiedioWarning, match="it starts anew"):
        tiedio.quantize_tied(model, "float8")  # which leaves kernels alone
    assert tiedio.find_ties(model)


def test_no_second_table_is_kept():
    table, head = layers.Embedding(1000, 64), layers.Dense(1000, use_bias=False)
    table.build()
    names = {"kernel": "embeddings"}
    tiedio.tie(head, to=table, weights=names, transpose=True, input_shape=(None, 64))
    gc.collect()
    held = [one for one in gc.get_objects() if isinstance(one, keras.Variable)]
    assert sum(tuple(one.shape) == (64, 1000) for one in held) == 1
    assert head.count_params() == 0


def test_a_file_of_two_equal_values_loads_into_what_shows_one(tmp_path):
    model = autoencoder(tied=False)
    encoder, decoder = model.layers
    decoder.kernel.assign(ops.transpose(encoder.kernel))
    decoder.bias.assign(np.arange(6))
    model.save_weights(tmp_path / "equal.weights.h5")
    shown = autoencoder()
    shown.layers[0].kernel.assign(np.ones((6, 3)))
    tiedio.load_tied_weights(shown, tmp_path / "equal.weights.h5")
    assert np.array_equal(value(shown.layers[0].kernel), value(encoder.kernel))
    assert np.array_equal(value(shown.layers[1].bias), np.arange(6))
    decoder.kernel.assign(np.ones((3, 6)))
    model.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(LoadError, match="the model ties what has several values there"):
        tiedio.load_tied_weights(shown, tmp_path / "other.weights.h5")


def test_into_a_model_of_another_size(tmp_path):
    tiedio.save_tied_weights(autoencoder(), tmp_path / "small.weights.h5")
    wide = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, name="encoder"), layers.Dense(6, name="decoder")]
    )
    before = wide.get_weights()
    with pytest.raises(TiedioError, match="`decoder/kernel`"):
        tiedio.load_tied_weights(wide, tmp_path / "small.weights.h5")
    assert all(map(np.array_equal, wide.get_weights(), before))
    with pytest.warns(tiedio.TiedioWarning):
        tiedio.load_tied_weights(wide, tmp_path / "small.weights.h5", skip_mismatch=True)
    assert tiedio.find_ties(wide) == ()


def test_the_layer_that_is_shown_is_left_out(tmp_path):
    model = autoencoder()
    tiedio.save_tied_weights(model, tmp_path / "model.weights.h5")
    plain = autoencoder(tied=False)
    plain.layers[0].kernel.assign(np.ones((6, 3)))
    skipped = [plain.layers[0]]
    tiedio.load_tied_weights(plain, tmp_path / "model.weights.h5", objects_to_skip=skipped)
    assert tiedio.find_ties(plain) == ()
    assert np.array_equal(value(plain.layers[0].kernel), np.ones((6, 3)))
    assert np.array_equal(value(plain.layers[1].kernel), value(model.layers[1].kernel))
