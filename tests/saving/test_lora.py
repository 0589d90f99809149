"""LoRA, and ties made by hand, in one only of the file and the model: what Keras loads, tied."""

import keras
import numpy as np
import pytest
import scenarios
from loads import load_directly

import tiedio
from tiedio.errors import LoadError, RecordError, TiedioWarning

layers = keras.layers


def pair(make, tie=True, shape=(4,), **options):
    """Two layers of a kind, `a` and `b`, on one input; tied or not."""
    inputs = keras.Input(shape, **options)
    first, second = make("a"), make("b")
    model = keras.Model(inputs, [first(inputs), second(inputs)])
    if tie:
        tiedio.tie(second, to=first)
    return model


def saved(model, path):
    tiedio.save_tied_weights(model, path)
    return model


def arrays(model):
    return scenarios.arrays_of([one for layer in model.layers for one in layer.weights])


def assert_equal(model, other):
    for mine, theirs in zip(arrays(model), arrays(other), strict=True):
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs)


def assert_as_stock(load, path, make, **options):
    """Loads as Keras does, but for ties; returns the model."""
    stock, model = make(), make()
    stock.load_weights(path, **options)
    load(model, path, **options)
    assert_equal(model, stock)
    return model


def is_tied(model, attribute="kernel"):
    return getattr(model.get_layer("a"), attribute) is getattr(model.get_layer("b"), attribute)


# LoRA


def with_lora(make, rank, tie, quantized=False, **options):
    model = pair(make, tie, **options)
    first, second = model.get_layer("a"), model.get_layer("b")
    for layer in (first, second) if quantized else ():
        layer.quantize("int8")
    if rank:
        first.enable_lora(rank)
        for variable in first.trainable_variables:
            if "lora" in variable.name:
                variable.assign(variable + 0.5)
    return model


LORA = {
    "Dense": (lambda name: layers.Dense(4, name=name), {}),
    "EinsumDense": (lambda name: layers.EinsumDense("ab,bc->ac", 4, name=name), {}),
    "Embedding": (lambda name: layers.Embedding(6, 4, name=name), {"dtype": "int32"}),
}


@pytest.mark.parametrize(
    "quantized", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "int8"]
)
@pytest.mark.parametrize("kind", LORA)
def test_lora(tmp_path, load, kind, quantized):
    """Into LoRA, out of it, and into another rank: Keras stores the kernel with LoRA merged."""
    make, options = LORA[kind]

    def model(rank):
        return with_lora(make, rank, tie=False, quantized=quantized, **options)

    path = tmp_path / "x.weights.h5"
    for before, after in ((0, 2), (2, 0), (2, 3)):
        saved(model(before), path)
        assert_as_stock(load, path, lambda rank=after: model(rank))
    exact = saved(model(2), path)  # Keras merges here, too
    same = model(2)
    load(same, path)
    assert_equal(same, exact)


@pytest.mark.parametrize("kind", LORA)
def test_lora_in_a_tied_layer(tmp_path, load, kind):
    make, options = LORA[kind]
    path = tmp_path / "x.weights.h5"
    attribute = "embeddings" if kind == "Embedding" else "kernel"
    held = f"_{attribute}"

    def model(rank, tie=False):
        return with_lora(make, rank, tie, **options)

    saved(model(0, tie=True), path)
    assert is_tied(assert_as_stock(load, path, lambda: model(2)), held)
    saved(model(2, tie=True), path)
    if load is load_directly:
        with pytest.raises(LoadError, match=rf"Cannot tie `a/{attribute}`, `b/{attribute}`"):
            load(model(3), path)
    else:
        with pytest.warns(TiedioWarning, match=rf"Cannot tie `a/{attribute}`, `b/{attribute}`"):
            assert not is_tied(assert_as_stock(load, path, lambda: model(3)), held)
    bound = model(3, tie=True)
    before = arrays(bound)
    with pytest.raises(RecordError, match=f"`a/lora_{attribute}_a`: another shape"):
        load(bound, path)
    assert all(map(np.array_equal, arrays(bound), before))


# Ties made by hand


@keras.saving.register_keras_serializable("tiedio_tests")
class ScaledByPosition(keras.layers.LayerNormalization):
    """It stores its variables by position, in code of its own."""

    def save_own_variables(self, store):
        super().save_own_variables(store)

    def load_own_variables(self, store):
        super().load_own_variables(store)


KINDS = {
    "kernel": lambda: layers.GRU(3, return_sequences=True),
    "pointwise_kernel": lambda: layers.SeparableConv1D(3, 2, padding="same"),
    "gamma": ScaledByPosition,
    "moving_mean": layers.BatchNormalization,
}


def by_hand(tie, attributes=tuple(KINDS)):
    """Pairs of layers that share one variable, or do not."""
    sequence = outputs = keras.Input((6, 3))
    for attribute in attributes:
        first, second = KINDS[attribute](), KINDS[attribute]()
        outputs = second(first(outputs))
        if tie:
            holders = [getattr(one, "cell", one) for one in (second, first)]
            scenarios.tie_by_hand(*holders, attribute)
    return scenarios.compiled(keras.Model(sequence, outputs))


def test_ties_made_by_hand_into_the_model_without_them(tmp_path, load):
    path = tmp_path / "x.weights.h5"
    model = saved(by_hand(tie=True), path)
    untied = by_hand(tie=False)
    load(untied, path)
    assert_equal(untied, model)
    assert scenarios.ties_of(untied) == scenarios.ties_of(model)
    assert len(tiedio.find_ties(untied)) == len(KINDS)


@pytest.mark.parametrize("kind", ["Dense", "EinsumDense"])
def test_a_tie_that_a_layer_does_not_list(tmp_path, load, kind):
    make, _ = LORA[kind]
    model = pair(make, tie=False)
    first, second = model.get_layer("a"), model.get_layer("b")
    second._untrack_variable(second.kernel)
    object.__setattr__(second, "_kernel", first.kernel)
    weights, whole = tmp_path / "x.weights.h5", tmp_path / "x.keras"
    saved(model, weights)
    tiedio.save_tied(model, whole)
    untied = pair(make, tie=False)
    load(untied, weights)
    for one in (untied, tiedio.load_tied(whole)):
        assert is_tied(one)
        assert np.array_equal(one.get_layer("b").kernel, first.kernel)
        assert_equal(one, model)
