"""Code that is not ours keeps ties, unchanged, where Keras is patched.

The tests marked `libraries` import theirs inside, so that one that is missing fails them.
"""

import contextlib
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import scenarios
from scenarios.base import tied_pair

import tiedio

SCRIPT = """
import json

import numpy as np
from keras import Input, Sequential
from keras.callbacks import ModelCheckpoint
from keras.layers import Dense
from keras.models import load_model
from keras.utils import set_random_seed

{after}

def autoencoder(tied):
    encoder, decoder = (Dense(4, use_bias=False) for _ in range(2))
    model = Sequential([Input((4,)), encoder, decoder])
    if tied:  # as issue threads advise
        decoder._untrack_variable(decoder.kernel)
        decoder._tracker.unlock()
        decoder._kernel = encoder.kernel
        decoder._tracker.lock()
    model.compile("adam", "mse")
    return model

def seen(model):
    encoder, decoder = model.layers
    tied = encoder.kernel is decoder.kernel
    steps = int(model.optimizer.iterations)
    model.fit(x, x, batch_size=2, verbose=0, shuffle=False)
    return tied, steps, [weight.tolist() for weight in map(np.asarray, model.get_weights())]

set_random_seed(1)
x = np.random.rand(8, 4)
model = autoencoder(tied=True)
checkpoint = ModelCheckpoint("epoch{{epoch}}.keras")
model.fit(x, x, batch_size=2, verbose=0, shuffle=False, callbacks=[checkpoint])
model.save("model.keras")
model.save_weights("model.weights.h5")
models = {{path: load_model(path) for path in ("epoch1.keras", "model.keras")}}
models["model.weights.h5"] = autoencoder(tied=False)
models["model.weights.h5"].load_weights("model.weights.h5")
models["never saved"] = model
json.dump({{path: seen(model) for path, model in models.items()}}, open("seen.json", "w"))
"""

PATCH = "import tiedio; tiedio.patch()"


@pytest.mark.slow
def test_an_old_script_needs_one_line(tmp_path):
    scripts = {
        "first": PATCH + SCRIPT.format(after=""),
        "after its imports": SCRIPT.format(after=PATCH),
        "as it was": SCRIPT.format(after=""),
    }
    processes = []
    for name, script in scripts.items():
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", script]
        processes.append(subprocess.Popen(command, cwd=tmp_path / name))
    assert [process.wait() for process in processes] == [0, 0, 0]
    first, after, stock = (
        json.loads((tmp_path / name / "seen.json").read_text()) for name in scripts
    )
    for seen in (first, after):
        for path, facts in seen.items():
            assert facts == seen["never saved"] == [True, 4, facts[2]], path
    assert first == after
    assert stock.pop("never saved") == first["never saved"]
    assert [tied for tied, _, _ in stock.values()] == [False] * 3


@pytest.fixture
def patched():
    with tiedio.patch():
        yield


def is_tied(model):
    first, second, *_ = model.layers
    return first.kernel is second.kernel


def trained():
    _, model = tied_pair()
    scenarios.train(scenarios.compiled(model))
    return model


def untied():
    return scenarios.compiled(keras.models.clone_model(tied_pair()[1]))


def assert_resumes(loaded, model):
    """Training goes on, in both, bit for bit as it would have in the other."""
    assert is_tied(loaded)
    assert int(loaded.optimizer.iterations) == int(model.optimizer.iterations) > 0
    for _ in range(2):
        for a, b in zip(scenarios.state_of(loaded), scenarios.state_of(model), strict=True):
            np.testing.assert_array_equal(a, b)
        scenarios.train(loaded)
        scenarios.train(model)


# MLflow


FLAVORS = ("keras", "tensorflow")


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory):
    """MLflow with a store of its own; it starts no process that looks for what a model needs."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        monkeypatch.setenv("MLFLOW_REQUIREMENTS_INFERENCE_TIMEOUT", "0")
        import mlflow

        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.create_experiment("ties", artifact_location=(folder / "artifacts").as_uri())
        mlflow.set_experiment("ties")
        yield mlflow


@pytest.mark.libraries
@pytest.mark.parametrize("name", FLAVORS)
def test_mlflow_logs_and_saves(patched, mlflow, tmp_path, name):
    model, flavor = trained(), getattr(mlflow, name)
    inputs, _ = scenarios.data_for(model)
    flavor.save_model(model, str(tmp_path / "saved"), pip_requirements=[])
    with mlflow.start_run():
        logged = flavor.log_model(model, name="model", pip_requirements=[])
    predicted = mlflow.pyfunc.load_model(logged.model_uri).predict(inputs)
    np.testing.assert_array_equal(predicted, model.predict(inputs, verbose=0))
    loaded = [flavor.load_model(uri) for uri in (logged.model_uri, str(tmp_path / "saved"))]
    tiedio.unpatch()
    assert not is_tied(flavor.load_model(logged.model_uri))
    assert_resumes(loaded[0], model)
    assert is_tied(loaded[1])


@pytest.mark.libraries
@pytest.mark.parametrize("name", FLAVORS)
def test_mlflow_loads_what_was_logged_without_the_patch(mlflow, name):
    model, flavor = trained(), getattr(mlflow, name)
    with mlflow.start_run():
        logged = flavor.log_model(model, name="model", pip_requirements=[])
    stock = flavor.load_model(logged.model_uri)
    told = pytest.warns(tiedio.errors.TiedioWarning, match="`tiedio migrate .*` ties them again")
    with tiedio.patch(), told:
        loaded = flavor.load_model(logged.model_uri)
    for a, b in zip(scenarios.state_of(loaded), scenarios.state_of(stock), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(params=FLAVORS)
def autologged(request, mlflow):
    flavor = getattr(mlflow, request.param)
    yield flavor
    flavor.autolog(disable=True)


@pytest.mark.libraries
def test_mlflow_logs_by_itself(patched, mlflow, autologged):
    autologged.autolog(log_datasets=False)
    model = trained()
    autologged.autolog(disable=True)
    loaded = autologged.load_model(mlflow.last_logged_model().model_uri)
    assert_resumes(loaded, model)


@pytest.mark.libraries
@pytest.mark.parametrize("weights_only", [False, True])
def test_mlflow_logs_checkpoints(patched, mlflow, weights_only):
    mlflow.tensorflow.autolog(
        log_models=False,
        log_datasets=False,
        checkpoint_save_best_only=False,
        checkpoint_save_weights_only=weights_only,
    )
    model = trained()
    mlflow.tensorflow.autolog(disable=True)
    run = mlflow.last_active_run().info.run_id

    def load():
        # MLflow asks for the model, if there are weights only.
        return mlflow.tensorflow.load_checkpoint(untied() if weights_only else None, run)

    assert_resumes(load(), model)
    tiedio.unpatch()
    assert not is_tied(load())


# KerasTuner


class Search:
    """A search for a learning rate, which may be carried on by another tuner in the same folder."""

    def __init__(self, folder):
        self.folder = folder
        self.begun = []  # how each trial began: went on from another one, its ties, its steps

    def tuner(self, algorithm, tied=True, **options):
        import keras_tuner

        begun = self.begun

        class Rates(keras_tuner.HyperModel):
            def build(self, hp):
                model = untied() if not tied or "tuner/trial_id" in hp else tied_pair()[1]
                rate = hp.Float("rate", 1e-3, 1e-1, sampling="log")
                return scenarios.compiled(model, keras.optimizers.Adam(rate))

            def fit(self, hp, model, *args, **kwargs):
                facts = "tuner/trial_id" in hp, is_tied(model), int(model.optimizer.iterations)
                begun.append(facts)
                return model.fit(*args, **kwargs)

        return getattr(keras_tuner, algorithm)(
            Rates(), "val_loss", directory=self.folder, seed=1, overwrite=False, **options
        )


def search(tuner, **options):
    data = scenarios.data_for(untied())
    tuner.search(*data, validation_data=data, batch_size=4, verbose=0, **options)


def best_of(tuner):
    (model,) = tuner.get_best_models()
    loss = model.evaluate(*scenarios.data_for(model), verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(tuner.oracle.get_best_trials()[0].score, rel=1e-6)
    return model


@pytest.mark.libraries
def test_kerastuner_carries_a_search_on(patched, tmp_path):
    one = Search(tmp_path)
    search(one.tuner("RandomSearch", max_trials=1), epochs=2)
    search(one.tuner("RandomSearch", max_trials=2), epochs=2)
    assert one.begun == [(False, True, 0)] * 2
    # What `build` does not tie, the file does.
    for tied in (True, False):
        best = best_of(one.tuner("RandomSearch", tied=tied, max_trials=2))
        assert is_tied(best) and int(best.optimizer.iterations) > 0
    tiedio.unpatch()
    assert not is_tied(best_of(one.tuner("RandomSearch", tied=False, max_trials=2)))


@pytest.mark.libraries
@pytest.mark.parametrize("routed", [True, False], ids=["patched", "stock"])
def test_kerastuner_carries_trials_on(tmp_path, routed):
    one = Search(tmp_path)
    with tiedio.patch() if routed else contextlib.nullcontext():
        tuner = one.tuner("Hyperband", max_epochs=2, factor=2)
        search(tuner)
        best = best_of(tuner)
    carried_on = [facts for carried_on, *facts in one.begun if carried_on]
    # An epoch is two steps; stock Keras drops them, and the ties.
    assert carried_on and all(facts == [routed, 2 * routed] for facts in carried_on)
    assert is_tied(best) or not routed


# KerasHub


def backbone_of(kind):
    """Makes a backbone of two layers, which have half of their weights in common."""
    backbone = kind(
        vocabulary_size=9,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=8,
    )
    first, second = backbone.transformer_layers
    for part in ("_feedforward_intermediate_dense", "_feedforward_output_dense"):
        tiedio.tie(getattr(second, part), to=getattr(first, part))
    return backbone


def bert():
    from keras_hub import models

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "quick", "brown", "fox"]
    tokenizer = models.BertTokenizer(words)
    preprocessor = models.BertMaskedLMPreprocessor(tokenizer, sequence_length=8)
    return models.BertMaskedLM(backbone_of(models.BertBackbone), preprocessor)


def gpt():
    from keras_hub import models

    parts = ["<|endoftext|>", "Ġ", "a", "b", "c", "ab", "abc", "Ġa", "Ġab"]
    merges = ["a b", "ab c", "Ġ a", "Ġa b"]
    tokenizer = models.GPT2Tokenizer({part: n for n, part in enumerate(parts)}, merges)
    preprocessor = models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=8)
    return models.GPT2CausalLM(backbone_of(models.GPT2Backbone), preprocessor)


def assert_equal(loaded, model):
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.libraries
@pytest.mark.parametrize("max_shard_size", [10, 2e-6], ids=["one file", "shards"])
def test_kerashub_presets(patched, tmp_path, max_shard_size):
    import keras_hub

    model = bert()
    model.save_to_preset(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.weights.json").exists() == (max_shard_size < 1)
    task = keras_hub.models.BertMaskedLM.from_preset(str(tmp_path))
    assert_equal(task, model)
    classifier = keras_hub.models.BertTextClassifier.from_preset(str(tmp_path), num_classes=2)
    backbone = keras_hub.models.BertBackbone.from_preset(str(tmp_path))
    for one in (task.backbone, classifier.backbone, backbone):
        assert scenarios.ties_of(one) == scenarios.ties_of(model.backbone) != []
        assert_equal(one, model.backbone)
    tiedio.unpatch()
    assert scenarios.ties_of(keras_hub.models.BertBackbone.from_preset(str(tmp_path))) == []


@pytest.mark.libraries
def test_kerashub_generates_the_same_and_takes_lora(patched, tmp_path):
    import keras_hub

    def load(preset):
        loaded = keras_hub.models.GPT2CausalLM.from_preset(str(preset))
        loaded.compile(sampler="greedy")
        assert loaded.generate("a", max_length=6) == model.generate("a", max_length=6)
        return loaded

    def places(task):
        return [group.places for group in tiedio.find_ties(task)]

    def adapted(task):
        layers = task.backbone.transformer_layers
        return [one._self_attention_layer.query_dense for one in layers]

    model = gpt()
    model.compile(sampler="greedy")
    model.save_to_preset(tmp_path / "base")
    loaded = load(tmp_path / "base")
    assert scenarios.ties_of(loaded) == scenarios.ties_of(model) != []
    assert_equal(loaded, model)
    model.backbone.enable_lora(rank=2)
    for layer in adapted(model):
        layer.lora_kernel_b.assign(np.random.default_rng(0).random(layer.lora_kernel_b.shape))
    model.backbone.save_lora_weights(tmp_path / "a.lora.h5")
    loaded.backbone.load_lora_weights(tmp_path / "a.lora.h5")
    model.compile(sampler="greedy")
    model.save_to_preset(tmp_path / "merged")
    for one in (loaded, load(tmp_path / "merged")):
        assert places(one) == places(model) != []  # LoRA freezes them, in its own model only
        for a, b in zip(adapted(one), adapted(model), strict=True):
            np.testing.assert_array_equal(a.kernel, b.kernel)


@pytest.mark.libraries
@pytest.mark.parametrize("tied_head", [True, False])
def test_kerashub_heads(patched, tmp_path, tied_head):
    from keras_hub.layers import ReversibleEmbedding

    words = keras.Input((3,), dtype="int32")
    table = ReversibleEmbedding(7, 4, tie_weights=tied_head)
    inner = [keras.layers.Dense(4) for _ in range(2)]
    tiedio.tie(inner[1], to=inner[0], input_shape=(None, 3, 4))
    outputs = table(inner[1](inner[0](table(words))), reverse=True)
    model = scenarios.compiled(keras.Model(words, outputs))
    scenarios.train(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert scenarios.ties_of(loaded) == scenarios.ties_of(model) != []
    for _ in range(2):
        assert_equal(loaded, model)
        scenarios.train(model)
        scenarios.train(loaded)


@pytest.mark.libraries
def test_kerashub_keeps_a_task_and_its_backbone_in_two_files(patched, tmp_path):
    """So a tie between the two has to be made again; what it joins is equal."""
    import keras_hub

    model = bert()

    def ends(task):
        return task.get_layer("mlm_head")._intermediate_dense, task.backbone.get_layer(
            "pooled_dense"
        )

    head, pooled = ends(model)
    tiedio.tie(head, to=pooled)
    model.save_to_preset(tmp_path)
    loaded = keras_hub.models.BertMaskedLM.from_preset(str(tmp_path))
    head, pooled = ends(loaded)
    assert head.kernel is not pooled.kernel
    assert np.array_equal(head.kernel, pooled.kernel)
    tiedio.tie(head, to=pooled)
    assert scenarios.ties_of(loaded) == scenarios.ties_of(model)
