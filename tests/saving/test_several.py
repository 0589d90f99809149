"""Several models in one file: what they are by name, what they share, what is refused.

That each trains on as if it had not stopped is asked of all in `tests/journeys`.
"""

import io
import itertools
import json
import zipfile

import keras
import numpy as np
import pytest
import scenarios
from keras import layers

import tiedio
from tiedio.errors import (
    ArgumentError,
    LoadError,
    ModelNotBuiltError,
    RecordError,
    SaveError,
    TiedioError,
)
from tiedio.files import export, inspect, migrate, plan


def family():
    return scenarios.SCENARIOS["encoder_decoder_and_autoencoder"]()


def gan():
    return scenarios.SCENARIOS["generator_discriminator_and_gan"]()


def dense(name="dense", inputs=4):
    return keras.Sequential([keras.Input((inputs,)), layers.Dense(2)], name=name)


def test_layers_of_several_graphs_are_one_again(tmp_path):
    tiedio.save_tied(family(), tmp_path / "family.keras")
    loaded = tiedio.load_tied(tmp_path / "family.keras")
    assert list(loaded) == ["autoencoder", "encoder", "decoder"]
    held = {layer.name: layer for layer in loaded["autoencoder"].layers}
    assert loaded["encoder"].get_layer("code") is held["code"]
    assert loaded["decoder"].get_layer("outputs") is held["outputs"]
    held["hidden"].trainable = False
    assert len(loaded["decoder"].trainable_variables) == 2


def test_what_is_part_of_another_one_is_that_part_again(tmp_path):
    models = gan()
    for names in (list(models), list(reversed(models))):
        tiedio.save_tied({name: models[name] for name in names}, tmp_path / "gan.keras")
        loaded = tiedio.load_tied(tmp_path / "gan.keras")
        assert list(loaded) == names
        assert loaded["gan"].layers[-1] is loaded["discriminator"]
        assert loaded["gan"].layers[-2] is loaded["generator"]


def content_of(filepath):
    archive = zipfile.ZipFile(filepath)
    record = json.loads(archive.read("metadata.json"))["tiedio"]
    return archive.read("config.json"), record, archive.read("model.weights.h5")


def test_a_model_that_was_saved_with_others_is_as_if_it_never_was(tmp_path):
    models = gan()
    scenarios.train(models)
    tiedio.save_tied(models, tmp_path / "gan.keras")
    tiedio.save_tied(models["gan"], tmp_path / "alone.keras")
    for number, name in enumerate(("gan", "alone")):
        model = tiedio.load_tied(tmp_path / f"{name}.keras")
        model = model["gan"] if name == "gan" else model
        tiedio.save_tied(model, tmp_path / f"{number}.keras")
    assert content_of(tmp_path / "0.keras") == content_of(tmp_path / "1.keras")


@pytest.mark.parametrize("place", ["file", "folder", "memory"])
def test_in_any_place(tmp_path, place):
    models, target = gan(), io.BytesIO() if place == "file" else tmp_path / "gan"
    if place == "memory":
        target = "memory://several/gan.keras"
    tiedio.save_tied(models, target, zipped=place != "folder")
    if place == "file":
        target.seek(0)
    loaded = tiedio.load_tied(target)
    assert tiedio.find_ties(loaded) == tiedio.find_ties(models)


def test_one_model_by_two_names(tmp_path):
    model, other = dense(), dense()
    tiedio.save_tied({"student": model, "teacher": model, "other": other}, tmp_path / "two.keras")
    stock = keras.saving.load_model(tmp_path / "two.keras")  # needs tiedio
    for loaded in (tiedio.load_tied(tmp_path / "two.keras"), stock.models):
        assert loaded["student"] is loaded["teacher"] is not loaded["other"]


def test_models_of_one_name(tmp_path):
    tiedio.save_tied({"a": dense(), "b": dense(inputs=3)}, tmp_path / "named.keras")
    loaded = tiedio.load_tied(tmp_path / "named.keras")
    assert [model.input_shape for model in loaded.values()] == [(None, 4), (None, 3)]
    held = keras.saving.load_model(tmp_path / "named.keras")  # needs tiedio
    assert list(held.models) == ["a", "b"]


def test_a_layer_among_them(tmp_path):
    model = dense()
    tiedio.save_tied({"model": model, "top": model.layers[-1]}, tmp_path / "layer.keras")
    loaded = tiedio.load_tied(tmp_path / "layer.keras")
    assert loaded["top"] is loaded["model"].layers[-1]


def test_stock_keras_opens_models_of_many_inputs_and_outputs(tmp_path):
    is_sparse = keras.backend.backend() != "torch"
    pair = {name: keras.Input((3,), name=name, sparse=is_sparse and name == "b") for name in "ab"}
    sums = layers.Dense(2)(pair["a"]) + layers.Dense(2)(pair["b"])
    models = {"pair": keras.Model(pair, {"sum": sums, "twice": 2 * sums}), "other": dense()}
    tiedio.save_tied(models, tmp_path / "many.keras")
    held = keras.saving.load_model(tmp_path / "many.keras")
    assert [tensor.sparse for tensor in held.inputs] == [False, is_sparse, False]
    given = [keras.ops.ones((2, size)) for size in (3, 3, 4)]
    outputs = held(given)
    expected = models["pair"](dict(zip("ab", given, strict=False)))
    for ours, theirs in zip(outputs, (*expected.values(), models["other"](given[2])), strict=True):
        assert keras.ops.all(ours == theirs)


def test_one_optimizer_of_two_models(tmp_path):
    models = {"a": dense(), "b": dense("other")}
    optimizer = keras.optimizers.Adam()
    optimizer.build([v for model in models.values() for v in model.trainable_variables])
    for model in models.values():
        model.compile(optimizer, "mse")
    # On JAX, Keras trains no model by an optimizer that knows more than it has.
    for _ in range(keras.backend.backend() != "jax"):
        scenarios.train(models)
    tiedio.save_tied(models, tmp_path / "one.keras")
    loaded = tiedio.load_tied(tmp_path / "one.keras")
    assert loaded["a"].optimizer is loaded["b"].optimizer
    for one in (models, loaded) if keras.backend.backend() != "jax" else ():
        scenarios.train(one)
    for ours, theirs in zip(*map(scenarios.state_of, (loaded, models)), strict=True):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("saved", [True, False])
def test_without_optimizers(tmp_path, saved):
    tiedio.save_tied(family(), tmp_path / "family.keras", include_optimizer=saved)
    loaded = tiedio.load_tied(tmp_path / "family.keras", compile=not saved)
    assert not any(model.compiled for model in loaded.values())


def test_weights_find_their_models_by_name(tmp_path):
    models, others = gan(), gan()
    scenarios.train(models)
    tiedio.save_tied_weights(models, tmp_path / "gan.weights.h5")
    tiedio.load_tied_weights(dict(reversed(others.items())), tmp_path / "gan.weights.h5")
    for ours, theirs in zip(*map(scenarios.state_of, (others, models)), strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_ties_between_models_are_found_by_the_names_of_the_models():
    models = scenarios.SCENARIOS["two_models_with_one_variable"]()
    (group,) = tiedio.find_ties(models)
    first, second = (models[name].layers[0].name for name in models)
    assert str(group).startswith(f"first/{first}/kernel = second/{second}/kernel")
    tiedio.assert_tied(models)
    tiedio.untie(models["second"].layers[0])
    with pytest.raises(tiedio.TiedioError):
        tiedio.assert_tied(models, [group])
    names = [str(group).split("  ")[0] for group in tiedio.find_ties(gan())]
    assert "generator/dense/kernel" not in names
    assert any(
        name.startswith("discriminator/") and "= gan/discriminator/" in name for name in names
    )


@pytest.mark.parametrize("given", [gan, family], ids=["gan", "family"])
def test_the_order_of_the_models_does_not_matter_to_their_ties(given):
    models, found = given(), []
    for names in itertools.permutations(models):
        ties = tiedio.find_ties({name: models[name] for name in names})
        found.append({frozenset(group.names) for group in ties})
    assert found[0] and all(ties == found[0] for ties in found)


def test_what_files_of_several_say(tmp_path):
    models = gan()
    scenarios.train(models)
    tiedio.save_tied(models, tmp_path / "gan.keras")
    found = inspect(tmp_path / "gan.keras")
    assert found.models == ("generator", "discriminator", "gan")
    assert found.kind == plan(tmp_path / "gan.keras").kind == "zip archive of 3 models"
    assert found.optimizer == "Adam (discriminator), RMSprop (gan)"
    assert found.variables == sum(len(models[name].weights) for name in found.models[:2])
    assert ("discriminator", "gan/discriminator") in found.shared_layers
    assert found.report()[3].endswith(f"; tie groups: 0; shared layers: {len(found.shared_layers)}")
    migrate(tmp_path / "gan.keras", tmp_path / "migrated.keras")
    export(tmp_path / "gan.keras", tmp_path / "gan.safetensors")
    export(tmp_path / "gan.safetensors", tmp_path / "back.keras")
    for name in ("migrated", "back"):
        loaded = tiedio.load_tied(tmp_path / f"{name}.keras")
        assert scenarios.state_of(loaded)[0].tobytes() == scenarios.state_of(models)[0].tobytes()
        assert loaded["gan"].layers[-1] is loaded["discriminator"]


def test_what_is_refused_when_saved(tmp_path):
    unbuilt = keras.Sequential([layers.Dense(2)])
    for models, kind, words in (
        ({"a": dense(), "b": unbuilt}, ModelNotBuiltError, "Model `b` has"),
        ({"a/b": dense()}, ArgumentError, "'a/b'"),
        ({}, ArgumentError, "none"),
        ({1: dense()}, ArgumentError, "1"),
        ({"a": dense(), "b": "model.keras"}, ArgumentError, "model.keras"),
        ([dense()], ArgumentError, "by name"),
    ):
        with pytest.raises(kind, match=words):
            tiedio.save_tied(models, tmp_path / "model.keras")
    with pytest.raises(SaveError, match="one optimizer in this format"):
        tiedio.save_tied({"a": dense(), "b": dense()}, tmp_path / "model.h5")
    assert not any(tmp_path.iterdir())


def test_what_is_refused_when_weights_are_loaded(tmp_path):
    models, one = gan(), dense()
    tiedio.save_tied_weights(models, tmp_path / "several.weights.h5")
    tiedio.save_tied_weights(one, tmp_path / "one.weights.h5")
    tiedio.save_tied(models, tmp_path / "whole.keras")
    returns = "; `tiedio.load_tied` returns them"  # of weights only it does not
    for given, name, words in (
        (one, "several", "Expected: `discriminator`, `gan`, `generator`. Received: one model."),
        (one, "several", r"Pass a dict of these models, by these names\.$"),
        (one, "whole", f"Pass a dict of these models, by these names{returns}"),
        ({"gan": models["gan"]}, "several", "Received: `gan`."),
        ({**models, "more": one}, "several", "Received: .*`more`."),
        ({"one": one}, "one", "Expected: one model. Received: `one`."),
    ):
        before = scenarios.arrays_of(scenarios.variables_of(models))
        with pytest.raises(LoadError, match=words):
            tiedio.load_tied_weights(given, next(tmp_path.glob(f"{name}.*")))
        after = scenarios.arrays_of(scenarios.variables_of(models))
        assert all(map(np.array_equal, before, after))


def changed(filepath, member, change):
    with zipfile.ZipFile(filepath) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    content = json.loads(members[member])
    change(content)
    members[member] = json.dumps(content).encode()
    with zipfile.ZipFile(filepath, "w") as archive:
        for name, held in members.items():
            archive.writestr(name, held)


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c")])
def test_a_record_of_other_models_than_the_config_has(tmp_path, names):
    tiedio.save_tied({"a": dense("a"), "b": dense("b")}, tmp_path / "model.keras")
    models = {name: f"layers/{name}" for name in names}
    changed(tmp_path / "model.keras", "metadata.json", lambda m: m["tiedio"].update(models=models))
    with pytest.raises(RecordError, match="its config is not theirs"):
        tiedio.load_tied(tmp_path / "model.keras")


@pytest.mark.parametrize("is_graph", [True, False])
@pytest.mark.parametrize(
    "one", [1, {}, {"class_name": "Adam", "module": "keras.optimizers", "config": {}}]
)
def test_a_config_of_what_are_no_models(tmp_path, is_graph, one):
    models = {"a": dense("a"), "b": dense("b" if is_graph else "a")}
    tiedio.save_tied(models, tmp_path / "model.keras")
    key, held = ("layers", [one, one]) if is_graph else ("models", {"a": one, "b": one})
    for value in (held, one):
        changed(
            tmp_path / "model.keras", "config.json", lambda c, v=value: c["config"].update({key: v})
        )
        assert inspect(tmp_path / "model.keras").models == ("a", "b")
        for strict in (True, False):
            with pytest.raises(TiedioError):
                tiedio.load_tied(tmp_path / "model.keras", strict=strict)
