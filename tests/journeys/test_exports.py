"""What `model.export` writes: variables that are tied once, and twice what Keras loaded."""

import keras
import numpy as np
import pytest

import tiedio

SIZE = 64
KERNEL = SIZE * SIZE * 4  # bytes
DATA = np.random.default_rng(0).normal(size=(1, SIZE)).astype("float32")
ENDINGS = {"tf_saved_model": "", "onnx": ".onnx", "litert": ".tflite", "torch": ".pt2"}
BACKEND = keras.backend.backend()


def on(*backends):
    return pytest.mark.skipif(BACKEND not in backends, reason=f"of {' and '.join(backends)}")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model as it was tied, as `load_tied` loads it, and as stock Keras does, trained on."""
    folder = tmp_path_factory.mktemp("models")
    layers = [keras.layers.Dense(SIZE, activation="tanh") for _ in range(2)]
    model = keras.Sequential([keras.Input((SIZE,)), *layers])
    tiedio.tie(layers[1], to=layers[0])
    model.compile(optimizer="sgd", loss="mse")
    model.save(folder / "stock.keras")
    tiedio.save_tied(model, folder / "tied.keras")
    loaded = {
        "tied": model,
        "load_tied": tiedio.load_tied(folder / "tied.keras"),
        "load_model": keras.saving.load_model(folder / "stock.keras"),
    }
    for one in loaded.values():
        # Converters make constants one that are equal; training makes the copies differ.
        one.fit(DATA, DATA, verbose=0)
    return loaded


def exported(models, folder, format):
    """Exports each model, with what it predicts."""
    for name, model in models.items():
        filepath = folder / f"{name}{ENDINGS[format]}"
        model.export(filepath, format=format, verbose=False)
        yield name, filepath, model.predict(DATA, verbose=0)


def kernels_of_saved_model(filepath):
    import tensorflow as tf

    loaded = tf.saved_model.load(filepath)
    outputs = loaded.serve(DATA)
    values = filepath / "variables" / "variables"
    shapes = [shape for _, shape in tf.train.list_variables(str(values))]
    stored = sum(file.stat().st_size for file in values.parent.iterdir())
    kernels = shapes.count([SIZE, SIZE])
    assert kernels * KERNEL <= stored < (kernels + 1) * KERNEL
    return kernels, outputs


def kernels_of_onnx(filepath):
    import onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(filepath)
    (outputs,) = session.run(None, {session.get_inputs()[0].name: DATA})
    initializers = onnx.load(filepath).graph.initializer
    kernels = {one.name for one in initializers if list(one.dims) == [SIZE, SIZE]}
    assert len(kernels) * KERNEL <= filepath.stat().st_size < (len(kernels) + 1) * KERNEL
    return len(kernels), outputs


def kernels_of_torch(filepath):
    import torch

    program = torch.export.load(filepath)
    outputs = program.module()(torch.from_numpy(DATA)).detach().numpy()
    kernels = {v.data_ptr() for v in program.state_dict.values() if v.shape == (SIZE, SIZE)}
    return len(kernels), outputs


def kernels_of_litert(filepath):
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(model_path=str(filepath))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], DATA)
    interpreter.invoke()
    outputs = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return filepath.stat().st_size // KERNEL, outputs


@pytest.mark.slow
@on("tensorflow")
def test_saved_models_share_what_is_one(models, tmp_path):
    found = check(models, tmp_path, "tf_saved_model", kernels_of_saved_model)
    # Keras lists its variables twice on TensorFlow, and TensorFlow stores both.
    assert found == {"tied": 2, "load_tied": 2, "load_model": 4}


@pytest.mark.export
@pytest.mark.parametrize(
    ("format", "kernels_of"),
    [
        pytest.param("onnx", kernels_of_onnx, marks=on("tensorflow", "torch")),
        pytest.param("litert", kernels_of_litert, marks=on("tensorflow")),
        pytest.param("torch", kernels_of_torch, marks=on("torch")),
    ],
)
def test_exports_share_what_is_one(models, tmp_path, format, kernels_of):
    found = check(models, tmp_path, format, kernels_of)
    assert found == {"tied": 1, "load_tied": 1, "load_model": 2}


def check(models, folder, format, kernels_of):
    """Counts the kernels in each export, and compares what they predict."""
    found = {}
    for name, filepath, expected in exported(models, folder, format):
        found[name], outputs = kernels_of(filepath)
        np.testing.assert_allclose(outputs, expected, atol=1e-5)
    return found
