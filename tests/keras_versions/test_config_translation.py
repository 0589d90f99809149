"""Configs of older versions, as literal JSON: Keras 3 loads what becomes of them, unchanged."""

import base64
import copy
import io
import json
import marshal
import zipfile

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies

from tiedio.keras_versions import lambdas, renames
from tiedio.keras_versions.config_translation import translated

STANDALONE = "2.2.4"
LATEST = "2.15.0"

of_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="Keras has it for TensorFlow only"
)


def layer(class_name, /, **config):
    return {"class_name": class_name, "config": {"name": "it", **config}}


def sequential(*layers):
    return {"class_name": "Sequential", "config": {"name": "model", "layers": list(layers)}}


def build(config, training_config=None, version=LATEST):
    """Builds what stock Keras makes of a translation."""
    found = translated(config, training_config, version)
    assert not found.untranslated
    return keras.saving.deserialize_keras_object(json.loads(json.dumps(found.config)))


def built_layer(given, version=LATEST):
    return build(sequential(given), version=version).layers[0]


def compiled(version=LATEST, loss="mse", optimizer=None, **training):
    given = sequential(layer("Dense", units=2, batch_input_shape=[None, 3]))
    optimizer = optimizer or {"class_name": "SGD", "config": {"learning_rate": 0.5}}
    return build(given, {"optimizer_config": optimizer, "loss": loss, **training}, version)


def optimizer_of(class_name, version=LATEST, /, **config):
    return compiled(version, optimizer={"class_name": class_name, "config": config}).optimizer


def predicted(model, *inputs):
    return model.predict(list(inputs) if len(inputs) > 1 else inputs[0], verbose=0)


# Layers


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (layer("LeakyReLU", alpha=0.25), {"negative_slope": 0.25}),
        (layer("ThresholdedReLU", theta=0.5), {"threshold": 0.5}),
        pytest.param(
            layer("SyncBatchNormalization", axis=[3]),
            {"axis": 3, "synchronized": True},
            marks=of_tensorflow,
        ),
        (layer("BatchNormalizationV1", axis=[1], fused=True, renorm=False), {"axis": 1}),
        (layer("BatchNormalizationV2", momentum=0.5, renorm_momentum=0.9), {"momentum": 0.5}),
        (layer("LayerNormalization", axis=[1, 2]), {"axis": [1, 2]}),
        (layer("Embedding", input_dim=3, output_dim=2, input_length=4), {"input_dim": 3}),
        (layer("Conv2DTranspose", filters=2, kernel_size=2, groups=1), {"filters": 2}),
        (
            layer("SeparableConv2D", filters=2, kernel_size=2, kernel_initializer=None, groups=1)
            | {"shared_object_id": 3},
            {"filters": 2},
        ),
        (layer("DepthwiseConv2D", kernel_size=2, kernel_regularizer=None), {"kernel_size": (2, 2)}),
        (layer("GRU", units=2, implementation=1), {"reset_after": False}),
        (layer("GRU", units=2, reset_after=True, time_major=False), {"reset_after": True}),
        (layer("ConvLSTM2D", filters=2, kernel_size=2, time_major=False), {"filters": 2}),
        (layer("SpatialDropout1D", rate=0.5, noise_shape=None, trainable=True), {"rate": 0.5}),
        (layer("Dropout", rate=0.5, noise_shape=[None, 1], seed=1), {"noise_shape": (None, 1)}),
        (layer("Discretization", bins=[1.0, 2.0], trainable=True), {"bin_boundaries": [1.0, 2.0]}),
        (layer("CategoryEncoding", max_tokens=3, output_mode="binary"), {"num_tokens": 3}),
        (layer("RandomFlip", mode="vertical", rng_type="stateful"), {"mode": "vertical"}),
        pytest.param(
            layer("IntegerLookup", vocabulary=[1, 2], vocabulary_size=4),
            {"mask_token": None},
            marks=of_tensorflow,
        ),
        (layer("Attention", causal=False, use_scale=True), {"use_scale": True}),
        (layer("MultiHeadAttention", num_heads=2, key_dim=3, query_shape=None), {"_num_heads": 2}),
        (layer("ReLU", max_value=6.0, threshold=0.0), {"max_value": 6.0}),
        (layer("Rescaling", scale=2.0, offset=1), {"scale": 2.0}),
        (layer("Dense", units=2, activation="softmax_v2"), {"activation": "softmax"}),
    ],
    ids=str,
)
def test_layer_loads_with_what_it_had(given, expected):
    found = built_layer(given)

    for name, value in expected.items():
        actual = getattr(found, name)
        actual = getattr(actual, "__name__", actual)
        actual = tuple(actual) if isinstance(value, tuple) else actual
        assert actual == getattr(value, "__name__", value), name


@pytest.mark.parametrize("row", renames.ARGUMENTS, ids=str)
def test_every_argument_is_renamed_or_left_out(row):
    for name in row.classes or (sorted(renames.BUILT_IN[row.role])[:1]):
        value = (row.harmless or ([1],))[0]
        given = {"class_name": name, "config": {row.old: value}}
        if row.role == renames.LAYERS:
            found = translated(given, None, LATEST).config
        elif row.role == renames.OPTIMIZERS:
            training = {"optimizer_config": given}
            found = translated(sequential(), training, LATEST).config["compile_config"]["optimizer"]
        else:
            dense = layer("Dense", units=1, kernel_initializer=given)
            found = translated(dense, None, LATEST).config["config"]["kernel_initializer"]
        assert row.old not in found["config"]
        assert not row.new or found["config"][row.new] == value


@pytest.mark.parametrize(
    "given",
    [layer(name) for name in renames.WITHOUT_EQUAL]
    + [
        layer("LSTM", units=2, time_major=True),
        layer("Attention", causal=True),
        layer("BatchNormalization", renorm=True),
        layer("StackedRNNCells", cells=[], reverse_state_order=True),
        layer("UpSampling2D", interpolation="mitchellcubic"),
    ],
    ids=str,
)
def test_what_nothing_equals_is_named_and_what_to_do(given):
    found = translated(sequential(given), None, LATEST)

    (sentence,) = found.untranslated
    assert "`it`" in sentence
    assert given["class_name"] in sentence
    assert sentence.endswith(".")


def test_bilinear_upsampling_is_another_function_in_multi_backend_keras_only():
    given = sequential(layer("UpSampling2D", size=[2, 2], interpolation="bilinear"))

    assert translated(given, None, STANDALONE).untranslated
    assert not translated(given, None, "2.2.4-tf").untranslated
    assert not translated(given, None, "2.4.0").untranslated


# An exact equal of hard_sigmoid


def hard_sigmoid(x):
    return np.clip(0.2 * x + 0.5, 0, 1)


@pytest.mark.parametrize(
    "given",
    [
        layer("Activation", activation="hard_sigmoid"),
        layer("Dense", units=1, kernel_initializer="ones", activation="hard_sigmoid"),
    ],
    ids=lambda one: one["class_name"],
)
def test_hard_sigmoid_is_that_of_keras_2(given):
    given["config"]["batch_input_shape"] = [None, 1]
    inputs = np.linspace(-4, 4, 41, dtype="float32")[:, None]

    model = build(sequential(given))

    np.testing.assert_allclose(predicted(model, inputs), hard_sigmoid(inputs), atol=1e-6)


def test_hard_sigmoid_inside_a_recurrent_layer_is_that_of_keras_2(tmp_path):
    given = layer(
        "LSTM",
        units=1,
        recurrent_activation="hard_sigmoid",
        implementation=1,
        unit_forget_bias=False,
        kernel_initializer="ones",
        recurrent_initializer="zeros",
        batch_input_shape=[None, 1, 1],
    )
    inputs = np.linspace(-4, 4, 41, dtype="float32")[:, None, None]
    expected = hard_sigmoid(inputs) * np.tanh(hard_sigmoid(inputs) * np.tanh(inputs))

    model = build(sequential(given), version=STANDALONE)

    np.testing.assert_allclose(predicted(model, inputs), expected[:, 0], atol=1e-6)
    # What Keras saves of it comes back, too.
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predicted(again, inputs), predicted(model, inputs))


# Objects within layers


def test_objects_within_a_layer_load():
    dense = built_layer(
        layer(
            "Dense",
            units=2,
            dtype={"class_name": "Policy", "config": {"name": "mixed_float16", "loss_scale": None}},
            kernel_initializer={
                "class_name": "VarianceScaling",
                "config": {"scale": 2.0, "mode": "fan_in", "distribution": "normal", "dtype": "x"},
            },
            kernel_regularizer={
                "class_name": "L1L2",
                "config": {"l1": 0.0, "l2": {"type": "ndarray", "value": 0.5}},
            },
            kernel_constraint={"class_name": "MaxNorm", "config": {"max_value": 2, "axis": 0}},
        ),
        "2.2.4-tf",
    )

    assert dense.dtype_policy.name == "mixed_float16"
    assert dense.kernel_initializer.distribution == "truncated_normal"
    assert dense.kernel_regularizer.l2 == 0.5
    assert dense.kernel_constraint.max_value == 2


def test_wrapped_layers_and_cells_load():
    lstm = layer("LSTM", units=2, implementation=2, recurrent_activation="hard_sigmoid")
    cells = [layer("LSTMCell", units=2, implementation=1), layer("GRUCell", units=3)]
    given = sequential(
        layer("TimeDistributed", layer=layer("LeakyReLU", alpha=0.1), batch_input_shape=[2, 3, 4]),
        layer("Bidirectional", layer=lstm, merge_mode="sum") | {"config": {"layer": lstm}},
        layer("Reshape", target_shape=[2, 2]),
        layer("RNN", cell=layer("StackedRNNCells", cells=cells), num_constants=None),
    )
    for number, one in enumerate(given["config"]["layers"]):
        one["config"]["name"] = str(number)

    model = build(given)

    assert model.input_shape == (2, 3, 4)
    assert model.layers[0].layer.negative_slope == 0.1
    assert [type(cell).__name__ for cell in model.layers[3].cell.cells] == ["LSTMCell", "GRUCell"]
    assert model.layers[3].cell.cells[1].reset_after is False


def test_function_of_lambda_needs_unsafe_mode():
    code = base64.b64encode(marshal.dumps((lambda x: x[0]).__code__)).decode()
    given = layer("Lambda", function=[code, None, None], function_type="lambda")

    found = translated(sequential(given), None, LATEST)

    function = found.config["config"]["layers"][0]["config"]["function"]
    assert function["class_name"] == "__lambda__"
    (note,) = lambdas.notes(found.code)
    assert "safe_mode=False" in note
    with pytest.raises(ValueError, match="safe_mode=False"):
        keras.saving.deserialize_keras_object(copy.deepcopy(found.config))


def test_named_function_of_lambda_is_a_custom_object():
    given = layer("Lambda", function="double", function_type="function", module="mine")

    found = translated(sequential(given), None, LATEST)

    with keras.saving.CustomObjectScope({"double": lambda x: 2 * x}):
        model = keras.saving.deserialize_keras_object(found.config)
    assert predicted(model, np.ones((1, 1)))[0, 0] == 2


class Scaled(keras.layers.Layer):
    def __init__(self, factor, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, inputs):
        return inputs * self.factor


@pytest.mark.parametrize("name", ["Scaled", "mine>Scaled"])
def test_unknown_class_is_kept_and_noted(name):
    found = translated(sequential(layer(name, factor=3)), None, LATEST)

    assert "custom_objects" in found.notes[0]
    with keras.saving.CustomObjectScope({name: Scaled}):
        model = keras.saving.deserialize_keras_object(found.config)
    assert model.layers[0].factor == 3


@pytest.mark.parametrize(("version", "is_own"), [("2.3.1", True), ("2.3.0", True), (LATEST, False)])
def test_class_that_keras_did_not_have_yet_is_somebodys_own(version, is_own):
    found = translated(sequential(layer("GroupNormalization")), None, version)

    assert bool(found.notes) == is_own


# Graphs


def functional(*layers, inputs, outputs, name="model"):
    listed = [
        {**one, "name": one["config"]["name"], "inbound_nodes": list(nodes)}
        for one, nodes in layers
    ]
    config = {"name": name, "layers": listed, "input_layers": inputs, "output_layers": outputs}
    return {"class_name": "Model", "config": config}


def entry(name, *shape):
    return {"class_name": "InputLayer", "config": {"name": name, "batch_input_shape": shape}}, []


def scaling(name, scale):
    return {"class_name": "Rescaling", "config": {"name": name, "scale": scale, "offset": 0.0}}


def inner_model():
    return functional(
        entry("inner_in", None, 1),
        (scaling("twice", 2.0), [[["inner_in", 0, 0, {}]]]),
        inputs=[["inner_in", 0, 0]],
        outputs=[["twice", 0, 0]],
        name="inner",
    )


def test_calls_of_a_nested_model_are_counted_from_its_making():
    calls = [[["a", 0, 0, {}]], [["inner", 1, 0, {}]]]
    given = functional(
        entry("a", None, 1),
        (inner_model(), calls),
        (layer("Add"), [[["inner", 1, 0, {}], ["inner", 2, 0, {}]]]),
        inputs=[["a", 0, 0]],
        outputs=[["inner", 1, 0], ["inner", 2, 0], ["it", 0, 0]],
    )

    once, twice, added = predicted(build(given), np.ones((1, 1)))

    assert (once, twice, added) == (2, 4, 6)


def test_calls_outside_of_the_model_are_not_counted():
    given = functional(
        entry("a", None, 1),
        (scaling("s", 3.0), [[["a", 0, 0, {}]], [["s", 4, 0, {}]]]),
        inputs=[["a", 0, 0]],
        outputs=[["s", 7, 0]],
    )

    assert predicted(build(given), np.ones((1, 1))) == 9


def test_keras_3_layout_is_numbered_too():
    def tensor(*history):
        about = {"shape": [None, 1], "dtype": "float32", "keras_history": list(history)}
        return {"args": [{"class_name": "__keras_tensor__", "config": about}], "kwargs": {}}

    a = {"class_name": "InputLayer", "config": {"name": "a", "batch_shape": [None, 1]}}
    inner = inner_model() | {"class_name": "Functional"}
    given = functional(
        (a, []),
        (scaling("s", 3.0), [tensor("a", 0, 0)]),
        (inner, [tensor("s", 1, 0), tensor("inner", 0, 0)]),
        inputs=["a", 0, 0],
        outputs=[["inner", 1, 0], ["inner", 2, 0]],
    ) | {"class_name": "Functional"}
    given["config"]["layers"][2]["config"]["layers"][0]["config"] = {
        "name": "inner_in",
        "batch_shape": [None, 1],
    }
    before = copy.deepcopy(given)

    assert [one.item() for one in predicted(build(given, version="3.0.5"), np.ones((1, 1)))] == [
        6,
        12,
    ]
    assert given == before


def test_tensors_among_keywords_and_states_are_inputs():
    attention = layer("MultiHeadAttention", num_heads=1, key_dim=2, name="attention")
    attention["config"]["name"] = "attention"
    gru = layer("GRU", units=2)
    given = functional(
        entry("q", None, 3, 2),
        entry("v", None, 4, 2),
        entry("state", None, 2),
        (attention, [[["q", 0, 0, {"value": ["v", 0, 0], "training": None}]]]),
        (gru, [[["attention", 0, 0, {}], ["state", 0, 0, {}]]]),
        inputs={"q": ["q", 0, 0], "v": ["v", 0, 0], "state": ["state", 0, 0]},
        outputs=["it", 0, 0],
    )

    model = build(given)

    assert set(model.input) == {"q", "v", "state"}
    assert model.get_layer("attention").output.shape == (None, 3, 2)
    assert len(model.get_layer("it")._inbound_nodes[0].input_tensors) == 2


def test_frozen_layers_stay_frozen():
    frozen = layer("Dense", units=2, trainable=False, batch_input_shape=[None, 3])

    assert not build(sequential(frozen)).trainable_variables


# How it was compiled


@pytest.mark.parametrize(("old", "new"), renames.FUNCTIONS.items())
def test_losses_are_spelled_out(old, new):
    found = translated(sequential(), {"optimizer_config": {"class_name": "SGD"}, "loss": old}, "")

    assert found.config["compile_config"]["loss"] == new
    assert new == "softmax" or keras.losses.get(new)


@pytest.mark.parametrize(
    "loss",
    [
        "mse",
        ["kld"],
        {"class_name": "function", "config": "mean_squared_error"},
        {"class_name": "Huber", "config": {"reduction": "auto", "delta": 1.5, "name": "h"}},
        None,
    ],
)
def test_losses_compile(loss):
    model = compiled(STANDALONE, loss, run_eagerly=None, steps_per_execution=None)

    if loss:
        model.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0)


@pytest.mark.parametrize(
    "metrics",
    [
        ["acc", "mae", "mse"],
        [["accuracy"]],
        ["logcosh", "cosine_proximity", "kullback_leibler_divergence"],
        [
            [
                {
                    "class_name": "MeanMetricWrapper",
                    "config": {"name": "mse", "dtype": "float32", "fn": "mean_squared_error"},
                },
                {"class_name": "AUC", "config": {"name": "auc", "num_thresholds": 20}},
            ]
        ],
        None,
    ],
)
def test_metrics_compile(metrics):
    model = compiled(metrics=metrics, weighted_metrics=metrics, sample_weight_mode=None)

    model.evaluate(np.ones((2, 3)), np.ones((2, 2)), verbose=0)


def test_optimizer_of_2_2_has_its_rate_and_decay():
    optimizer = optimizer_of("SGD", STANDALONE, lr=0.5, decay=0.25, momentum=0.5, nesterov=True)
    constant = optimizer_of("Adam", STANDALONE, lr=0.5, decay=0.0, epsilon=None, amsgrad=True)

    rates = [float(optimizer._learning_rate(step)) for step in range(4)]
    np.testing.assert_allclose(rates, [0.5 / (1 + 0.25 * step) for step in range(4)], rtol=1e-6)
    assert (optimizer.momentum, optimizer.nesterov) == (0.5, True)
    assert float(constant.learning_rate) == 0.5
    assert (constant.epsilon, constant.amsgrad) == (1e-7, True)


def test_optimizers_keep_what_they_were_made_with():
    assert optimizer_of("Adagrad", STANDALONE, lr=0.5).initial_accumulator_value == 0
    assert optimizer_of("Nadam", STANDALONE, lr=0.5, schedule_decay=0.004, beta_1=0.5).beta_1 == 0.5
    optimizer = optimizer_of(
        "Custom>Adam", beta_1=0.5, clipnorm=2.0, is_legacy_optimizer=False, jit_compile=True
    )
    assert isinstance(optimizer, keras.optimizers.Adam)
    assert (optimizer.beta_1, optimizer.clipnorm) == (0.5, 2)
    schedule = {
        "class_name": "ExponentialDecay",
        "config": {"initial_learning_rate": 0.5, "decay_steps": 2, "decay_rate": 0.5},
    }
    assert optimizer_of("SGD", learning_rate=schedule)._learning_rate.decay_steps == 2
    inner = {"class_name": "SGD", "config": {"learning_rate": 0.5, "decay": 0.0}}
    scaled = optimizer_of("LossScaleOptimizer", inner_optimizer=inner, dynamic=True)
    assert isinstance(scaled.inner_optimizer, keras.optimizers.SGD)


@pytest.mark.parametrize("optimizer", ["TFOptimizer", None])
def test_what_cannot_be_compiled_is_not_and_noted(optimizer):
    given = {"optimizer_config": optimizer and {"class_name": optimizer, "config": {}}}

    found = translated(sequential(), given, STANDALONE)

    assert "compile_config" not in found.config
    assert "Compile it" in found.notes[0]


# Files


def test_config_of_a_keras_archive_of_keras_2_loads_from_an_archive_of_keras_3(tmp_path):
    dense = layer("Dense", units=2, activation="relu", batch_input_shape=[None, 3])
    dense |= {"module": "keras.layers", "registered_name": None}
    old = sequential(dense | {"build_config": {"input_shape": [None, 3]}})
    old |= {"module": "tf_keras.src.engine.sequential", "registered_name": "Sequential"}
    old["compile_config"] = {
        "optimizer": {
            "module": "keras.optimizers.experimental",
            "class_name": "Custom>RMSprop",
            "config": {"learning_rate": 0.5, "is_legacy_optimizer": False, "jit_compile": False},
            "registered_name": "Custom>RMSprop",
        },
        "loss": "mse",
        "run_eagerly": None,
    }
    config = translated(old, None, "2.21.0").config
    weights = io.BytesIO()
    keras.saving.deserialize_keras_object(copy.deepcopy(config)).save(tmp_path / "made.keras")
    with zipfile.ZipFile(tmp_path / "made.keras") as made:
        weights = made.read("model.weights.h5")
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", json.dumps({"keras_version": keras.__version__}))
        archive.writestr("model.weights.h5", weights)

    model = keras.models.load_model(path)

    assert float(model.optimizer.learning_rate) == 0.5
    assert model.loss == "mean_squared_error"


def test_optimizers_of_one_backend_get_the_names_of_all():
    config = {"module": "keras", "class_name": "Sequential", "config": {"layers": []}}
    adam = {"class_name": "Adam", "config": {"learning_rate": 0.5}}
    of_torch = {
        "module": "keras.src.backend.torch.optimizers.torch_adam",
        "registered_name": "Adam",
    }
    config["compile_config"] = {"optimizer": {**adam, **of_torch}}
    public = {"module": "keras.optimizers", "registered_name": None}
    found = translated(config, None, "3.15.1").config["compile_config"]
    assert found == {"optimizer": {**adam, **public}}


def test_config_of_keras_3_is_left_as_it_is():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="hard_sigmoid")(inputs))
    model.compile("adafactor", "mse")  # the same class on every backend
    config = keras.saving.serialize_keras_object(model)
    config["config"]["layers"].append({"class_name": "LSTM", "config": {"lr": 1, "new": [{}]}})

    for version in (keras.__version__, ""):
        assert translated(config, None, version) == translated(config, None, version)
        assert translated(config, None, version).config == config
        assert translated(copy.deepcopy(config), None, version).config == config


# Hostile ones

_KEYS = (
    "class_name config layers name inbound_nodes input_layers output_layers module dtype function "
    "activation optimizer_config loss metrics learning_rate decay axis batch_input_shape cells "
    "layer kernel_initializer registered_name compile_config args keras_history output_shape code"
)
_NAMES = (
    "Model Functional Sequential Dense LSTM Lambda Bidirectional RNN Policy Custom>Adam SGD a "
    "function VarianceScaling BatchNormalization UpSampling2D __keras_tensor__ __lambda__ 4wEAAA=="
)
_keys = strategies.sampled_from(_KEYS.split())
_names = strategies.sampled_from(_NAMES.split())
_json = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats()
    | _names,
    lambda inner: strategies.lists(inner, max_size=4) | strategies.dictionaries(_keys, inner),
    max_leaves=15,
)
_objects = strategies.dictionaries(_keys, _json)


@hypothesis.settings(max_examples=50)
@hypothesis.given(
    _objects,
    _objects | strategies.none(),
    strategies.sampled_from(["", "2.2.4", "3.0.5", "x", "9"]),
)
def test_no_config_makes_it_raise(config, training_config, version):
    found = translated(config, training_config, version, {"a": "mine:f", "activation": "f"})

    assert isinstance(found.config, dict)
    assert all(isinstance(one, str) for one in (*found.notes, *found.untranslated))


@hypothesis.settings(max_examples=50)
@hypothesis.given(_objects, _json, _json)
def test_no_graph_makes_it_raise(layer_config, nodes, ends):
    one = {"class_name": "Dense", "name": "a", "config": layer_config, "inbound_nodes": nodes}
    config = {"layers": [one, {"class_name": [], "config": 1}], "output_layers": ends}
    for version in ("2.15", "3.0"):
        translated({"class_name": "Functional", "config": config}, None, version)


def test_deep_nesting_is_told():
    config = {}
    for _ in range(20_000):
        config = {"class_name": "Wrapper", "config": {"layer": config}}

    assert "nested too deeply" in translated(config, None, LATEST).untranslated[0]


@pytest.mark.parametrize("name", ["Lamb", "Muon", "ScheduleFreeAdamW"])
def test_optimizers_that_came_with_keras_3(name):
    """One of that name is someone's own in a file of Keras 2."""
    given = sequential(layer("Dense", units=2, batch_input_shape=[None, 3]))
    training = {"optimizer_config": {"class_name": name, "config": {}}, "loss": "mse"}
    found = translated(given, training, "3.6.0")
    assert found.config["compile_config"]["optimizer"]["module"] == "keras.optimizers"
    assert not found.notes
    assert "custom_objects" in translated(given, training, LATEST).notes[0]
