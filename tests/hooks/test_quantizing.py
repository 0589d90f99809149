"""Quantized models: which ties stay, by `quantize_tied` and where Keras is patched."""

import warnings

import keras
import numpy as np
import pytest

import tiedio
from tiedio.errors import ArgumentError, ModelNotBuiltError, TiedioWarning
from tiedio.model.places import named_variables

layers = keras.layers

VERSION = tuple(map(int, keras.__version__.split(".")[:2]))
MODES = ["int8", "float8", *(["int4"] if VERSION >= (3, 12) else [])]

pytestmark = pytest.mark.filterwarnings(
    "ignore:Layer .* does not have a `quantize` method:UserWarning",
    "ignore:Invalid quantization mode:UserWarning",  # float8, of embeddings
)


def quantize_patched(model, *args, **options):
    with tiedio.patch():
        model.quantize(*args, **options)


PATCHED = pytest.param(quantize_patched, marks=pytest.mark.slow)
QUANTIZE = pytest.mark.parametrize("quantize", [tiedio.quantize_tied, PATCHED])

KINDS = {
    "Dense": (lambda name: layers.Dense(4, name=name), (5,), "float32"),
    "EinsumDense": (
        lambda name: layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de", name=name),
        (3, 5),
        "float32",
    ),
    "Embedding": (lambda name: layers.Embedding(6, 5, name=name), (3,), "int32"),
}
if VERSION >= (3, 12):
    KINDS["ReversibleEmbedding"] = (
        lambda name: layers.ReversibleEmbedding(6, 5, tie_weights=False, name=name),
        (3,),
        "int32",
    )


def pair(kind):
    """Two layers of a kind on one input, tied; and data for it."""
    make, shape, dtype = KINDS[kind]
    inputs, first, second = keras.Input(shape, dtype=dtype), make("a"), make("b")
    model = keras.Model(inputs, [first(inputs), second(inputs)])
    tiedio.tie(second, to=first)
    return model, np.arange(60).reshape(-1, *shape)[:4] % 6


def outputs_of(model, data):
    return [keras.ops.convert_to_numpy(one).tobytes() for one in keras.tree.flatten(model(data))]


def shared(model):
    return sorted(map(str, tiedio.find_ties(model)))


@pytest.mark.often(1)
@QUANTIZE
@pytest.mark.parametrize("kind", KINDS)
def test_ties_stay_and_a_file_has_them_once(tmp_path, quantize, kind):
    path = tmp_path / "x.keras"
    for mode in MODES:
        model, data = pair(kind)
        ties = tiedio.find_ties(model)
        tiedio.save_tied(model, path)
        by_keras = tiedio.load_tied(path)
        by_keras.quantize(mode)
        quantize(model, mode)
        assert outputs_of(model, data) == outputs_of(by_keras, data)
        tiedio.assert_tied(model, ties)
        tiedio.assert_tied(model)
        held = [named_variables(model.get_layer(name)) for name in "ab"]
        apart = {name for name, one in held[0].items() if held[1][name] is not one}
        if mode == "float8":  # scales follow what each layer sees
            assert apart == {name for name in held[0] if "scale" in name or "amax" in name}
        else:  # and the group that a row is in is no value
            assert apart == {"g_idx"} & held[0].keys()
        tiedio.save_tied(model, path)
        loaded = tiedio.load_tied(path)
        assert shared(loaded) == shared(model)
        stock = keras.saving.load_model(path)
        assert outputs_of(loaded, data) == outputs_of(stock, data) == outputs_of(model, data)


def translator():
    """Two stacks of blocks, tied across all of them and between their tables."""
    stacks = []
    for name in ("source", "target"):
        inputs = keras.Input((8,), dtype="int32", name=name)
        table = layers.Embedding(8000, 64, name=f"{name}_table")
        blocks = [layers.Dense(64, activation="relu", name=f"{name}_{n}") for n in range(2)]
        outputs = blocks[1](blocks[0](table(inputs)))
        stacks.append((inputs, outputs, table, blocks))
    inputs, outputs, tables, blocks = zip(*stacks, strict=True)
    model = keras.Model(inputs, layers.Dot(2)(outputs))
    tiedio.tie(tables[1], to=tables[0])
    for block in (blocks[0][1], *blocks[1]):
        tiedio.tie(block, to=blocks[0][0])
    return model


def test_a_tied_language_model_takes_half_the_bytes(tmp_path):
    model = translator()
    tiedio.quantize_tied(model, "int8")
    tiedio.save_tied(model, tmp_path / "tied.keras")
    model.save(tmp_path / "stock.keras")
    tied, stock = ((tmp_path / name).stat().st_size for name in ("tied.keras", "stock.keras"))
    assert 0.48 < tied / stock < 0.54
    assert model.count_params() == 8000 * 64 + 8000 + 64 * 64 + 2 * 64


@QUANTIZE
def test_one_layer_in_several_places_stays_one(quantize):
    shared_layer, inputs, inside = layers.Dense(4), keras.Input((4,)), keras.Input((4,))
    nested = keras.Model(inside, shared_layer(layers.Dense(4, name="other")(inside)))
    model = keras.Model(inputs, nested(shared_layer(shared_layer(inputs))))
    tiedio.tie(nested.get_layer("other"), to=shared_layer)
    ties = tiedio.find_ties(model)
    quantize(model, "int8")
    tiedio.assert_tied(model, ties)
    assert nested.get_layer("other").kernel_scale is shared_layer.kernel_scale


@QUANTIZE
def test_what_cannot_stay_tied_is_named_in_one_warning(quantize):
    """Scales are along the other axis; another model is not quantized."""
    inputs, words = keras.Input((4,)), keras.Input((), dtype="int32")
    twins = [layers.Dense(4, name=name) for name in ("one", "other")]
    dense, table = (
        layers.Dense(6, use_bias=False, name="dense"),
        layers.Embedding(4, 6, name="words"),
    )
    model = keras.Model([inputs, words], [dense(twins[1](twins[0](inputs))), table(words)])
    outside = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="outside")])
    tiedio.tie(dense, to=table, weights={"kernel": "embeddings"})
    tiedio.tie(twins[1], to=twins[0])
    tiedio.tie(outside.layers[0], to=twins[0], weights=("kernel",))
    with pytest.warns(TiedioWarning) as warned:
        quantize(model, "int8")
    (warning,) = [one for one in warned if issubclass(one.category, TiedioWarning)]
    assert str(warning.message) == (
        "Quantizing separated `one/kernel`, `other/kernel` from `outside/kernel`; "
        "`words/embeddings` from `dense/kernel`: their values, shapes or dtypes differ. "
        "Layers of one kind that are quantized in one way stay tied; `filters` leaves layers as "
        "they are."
    )
    assert warning.filename == __file__
    assert twins[0].kernel_scale is twins[1].kernel_scale
    assert len(tiedio.find_ties(model)) == 3  # kernel, scale and bias of the twins


@pytest.mark.skipif(VERSION < (3, 15), reason="Keras has no filters")
def test_layers_that_are_filtered_out():
    names = ["a", "b", "c"]
    made = [layers.Dense(4, name=name) for name in names]
    model = keras.Sequential([keras.Input((4,)), *made])
    for layer in made[1:]:
        tiedio.tie(layer, to=made[0])
    with pytest.warns(TiedioWarning, match="separated `a/kernel` from `b/kernel`, `c/kernel`: "):
        tiedio.quantize_tied(model, "int8", filters=["b", "c"])
    assert made[1].kernel_scale is made[2].kernel_scale
    assert str(made[0].kernel.dtype) == "float32"


class Tokenizer:
    def tokenize(self, text):
        return np.arange(len(text)) % 10


def calibrated(mode, more=False):
    """A model of two blocks, quantized by what they are called with; and `more` beside them."""
    inputs, table = keras.Input((6,), dtype="int32"), layers.Embedding(10, 8)
    blocks = [
        keras.Sequential(
            [keras.Input((6, 8)), layers.Dense(8, name="up"), layers.Dense(8)], name=name
        )
        for name in ("first", "second")
    ]
    outputs = blocks[1](blocks[0](table(inputs)))
    model = keras.Model(inputs, layers.Dense(8, name="head")(outputs) if more else outputs)
    for layer in (blocks[1].layers[0], *model.layers[4:]):
        tiedio.tie(layer, to=blocks[0].layers[0], weights=("kernel",))
    structure = {"pre_block_layers": [table], "sequential_blocks": blocks}
    model.get_quantization_layer_structure = lambda mode: structure
    kind = getattr(keras.quantizers, f"{mode.upper()}Config")
    config = kind(["text" * 20], Tokenizer(), num_samples=2, sequence_length=6, group_size=4)
    tiedio.quantize_tied(model, mode, config=config)
    return model, blocks


@pytest.mark.skipif(VERSION < (3, 12), reason="Keras has no GPTQ")
def test_layers_that_are_calibrated(tmp_path):
    for mode in ["gptq", *(["awq"] if VERSION >= (3, 15) else [])]:
        with pytest.warns(TiedioWarning, match="`first/up/kernel`, `second/up/kernel` from `head/"):
            model, (first, second) = calibrated(mode, more=True)  # the head is not calibrated
        assert first.layers[0].quantized_kernel is second.layers[0].quantized_kernel
        assert first.layers[0].kernel_zero is second.layers[0].kernel_zero
    if VERSION < (3, 15):  # which cannot load what it saves of them
        model, _ = calibrated("gptq")
        tiedio.save_tied(model, tmp_path / "x.keras")
        loaded = tiedio.load_tied(tmp_path / "x.keras")
        data = np.arange(12).reshape(2, 6) % 10
        assert shared(loaded) == shared(model)
        assert outputs_of(loaded, data) == outputs_of(model, data)


def test_what_keras_quantized_before_it_failed_stays_tied():
    model, _ = pair("Dense")
    done = layers.Dense(4, name="done")
    model = keras.Model(model.inputs, [done(one) for one in model.outputs])
    done.quantize("int8")
    with pytest.raises(ValueError, match="is already quantized"):
        tiedio.quantize_tied(model, "int8")
    tiedio.assert_tied(model)
    assert model.get_layer("a").quantization_mode == "int8"
    with pytest.raises(ValueError, match="Invalid quantization mode"):
        tiedio.quantize_tied(pair("Dense")[0], "int9")


@keras.saving.register_keras_serializable("tiedio_tests")
class Own(keras.Model):
    """A model with a `quantize` of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.a, self.b = layers.Dense(4), layers.Dense(4)
        self.modes = []

    def build(self, shape):
        self.a.build(shape)
        self.b.build(shape)

    def call(self, inputs):
        return self.b(self.a(inputs))

    def quantize(self, mode, **options):
        self.modes.append(mode)
        super().quantize(mode, **options)


@QUANTIZE
def test_a_class_with_a_method_of_its_own(quantize):
    model = Own()
    model.build((None, 4))
    tiedio.tie(model.b, to=model.a)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TiedioWarning)
        quantize(model, "int8")
    tiedio.assert_tied(model)
    assert model.modes == ["int8"] and model.a.kernel_scale is model.b.kernel_scale


def test_models_made_where_keras_is_patched_are_its_own_afterwards():
    with tiedio.patch():
        made = [pair("Dense")[0] for _ in range(3)]
        made[0].quantize("int8")
        tiedio.quantize_tied(made[1], "int8")
    made[2].quantize("int8")
    assert [len(tiedio.find_ties(model)) for model in made] == [3, 3, 1]


def test_what_is_no_built_model_is_refused():
    for other in ("model.keras", layers.Dense(4)):
        with pytest.raises(ArgumentError, match="passed as `model`"):
            tiedio.quantize_tied(other, "int8")
    with pytest.raises(ModelNotBuiltError):
        tiedio.quantize_tied(keras.Sequential([layers.Dense(4)]), "int8")
