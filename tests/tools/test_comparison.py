"""How two files differ: in their ties, and in the values of their variables."""

import itertools
import json

import keras
import ml_dtypes
import numpy as np
import pytest
import sample_files
from checkout import FIXTURES

import tiedio
from tiedio.tools.comparison import diff


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sample_files.write(tmp_path_factory.mktemp("files"))


@pytest.fixture
def compared(tmp_path):
    """Compares two arrays, each the only one of a file."""

    def compare(a, b):
        one, other = (
            sample_files.weights(tmp_path / f"{name}.weights.h5", {"layers/dense/vars/0": array})
            for name, array in (("a", a), ("b", b))
        )
        found = diff(one, other)
        assert found.is_equal == (not found.differences)
        assert not (found.only_in_a or found.only_in_b)
        return found.differences[0] if found.differences else None

    return compare


def numbers(found):
    return found.elements, found.infinite, found.largest, found.mean


def test_equal_files(folder):
    found = diff(folder / "tied.keras", folder / "folder")
    assert found.is_equal
    assert found.compared == 4


def test_values(compared):
    a, b = np.zeros((2, 4), "float32"), np.zeros((2, 4), "float32")
    b[0, 1], b[1, 1] = 0.5, -1.5
    found = compared(a, b)
    assert (found.name, found.name_in_b) == ("dense/0", "dense/0")
    assert numbers(found) == (2, 0, 1.5, 0.25)
    assert compared(a, a) is None


def test_what_is_not_a_number_equals_itself(compared):
    a = np.array([np.nan, np.inf, -np.inf, 1, 2, np.nan])
    assert compared(a, a.copy()) is None
    b = np.array([np.nan, np.inf, np.inf, 1, np.nan, 3])
    assert numbers(compared(a, b)) == (3, 3, 0.0, 0.0)
    assert numbers(compared(a, np.array([np.nan, np.inf, np.inf, 1.5, 2, np.nan]))) == (
        2,
        1,
        0.5,
        0.1,
    )


def test_signs_of_zero_are_equal(compared):
    assert compared(np.array([0.0]), np.array([-0.0])) is None


def test_whole_numbers_are_exact(compared):
    large = np.array([2**62 + 1, -(2**63)])
    assert numbers(compared(large, large - [1, 0])) == (1, 0, 1.0, 0.5)
    assert compared(large, np.array([2**62, 2**63 - 1])).largest == 2.0**64
    assert numbers(compared(np.uint8([0, 255]), np.uint8([255, 255]))) == (1, 0, 255.0, 127.5)
    assert numbers(compared(np.array([True, False]), np.array([True, True]))) == (1, 0, 1.0, 0.5)


def test_texts(compared):
    assert numbers(compared(np.array([b"a", b"b"]), np.array([b"a", b"c"])))[:2] == (1, 1)


def test_complex_numbers(compared):
    assert compared(np.array([3 + 4j]), np.array([0j])).largest == 5.0


def test_shapes_and_dtypes(compared):
    found = compared(np.zeros((2, 3)), np.zeros((3, 2)))
    assert (found.shape, found.shape_in_b) == ((2, 3), (3, 2))
    assert numbers(found) == (0, 0, 0.0, 0.0)
    found = compared(np.float32([0.1]), np.float64([0.1]))
    assert (found.dtype, found.dtype_in_b) == ("float32", "float64")
    assert 0 < found.largest < 1e-8
    assert compared(np.float32([1]), np.float64([1])).elements == 0


def test_half_precision_is_compared_in_double(compared):
    assert compared(np.float16([60000]), np.float16([-60000])).largest == 120000.0


def test_bfloat16(tmp_path):
    keras.utils.clear_session()
    files = []
    for value in (1.0, 1.0078125):
        layer = keras.layers.Dense(2, name="dense", dtype="bfloat16", use_bias=False)
        model = keras.Sequential([keras.Input((2,)), layer])
        layer.kernel.assign(np.full((2, 2), value, ml_dtypes.bfloat16))
        files.append(tmp_path / f"{value}.keras")
        model.save(files[-1])
    (found,) = diff(*files).differences
    assert (found.dtype, found.largest) == ("bfloat16", 0.0078125)


def test_parts(compared, monkeypatch):
    monkeypatch.setattr("tiedio.tools.comparison._PART", 3)
    a = np.zeros(8)
    b = np.zeros(8)
    b[2], b[7] = 6, 2
    assert numbers(compared(a, b)) == (2, 0, 6.0, 1.0)
    assert compared(np.zeros((0, 2)), np.zeros((0, 2))) is None


def test_ties_and_values_of_two_models(folder):
    found = diff(folder / "tied.keras", folder / "apart.keras")
    assert found.ties_only_in_a == (("encoder/kernel", "decoder/kernel"),)
    assert found.ties_only_in_b == ()
    assert [one.name for one in found.differences] == ["decoder/kernel"]
    assert not found.is_equal
    back = diff(folder / "apart.keras", folder / "tied.keras")
    assert (back.ties_only_in_a, back.ties_only_in_b) == ((), found.ties_only_in_a)


def test_a_lost_tie_alone_is_a_difference(folder):
    found = diff(folder / "tied.keras", folder / "lost.keras")
    assert found.differences == ()
    assert not found.is_equal


def pyramid(axes, *, twice=False):
    """Convolutions of one kernel; the last has its axes in that order."""
    down, same, up = (keras.layers.Conv2D(2, 2, name=name) for name in ("down", "same", "up"))
    model = keras.Sequential([keras.Input((4, 4, 2)), down, same, up])
    if twice:
        tiedio.tie(same, to=down, weights=["kernel"])
    if axes:
        tiedio.tie(up, to=down, weights=["kernel"], transpose=axes)
    return model


@pytest.fixture(scope="module")
def transposed(tmp_path_factory):
    """Files of models that are tied in several ways, whose values are all one."""
    folder = tmp_path_factory.mktemp("transposed")
    models = {
        "tied": pyramid((0, 1, 3, 2)),
        "other axes": pyramid((1, 0, 2, 3)),
        "twice": pyramid((0, 1, 3, 2), twice=True),
        "plain": pyramid((), twice=True),
    }
    for name, model in models.items():
        model.set_weights([np.ones_like(one) for one in model.get_weights()])
        tiedio.save_tied(model, folder / f"{name}.keras")
    models["tied"].save(folder / "lost.keras")
    tiedio.save_tied_weights(models["tied"], folder / "tied.weights.h5")
    bare = folder / "bare.weights.h5"
    tiedio.save_tied_weights(models["tied"], bare, stock_readable=False)
    return folder


def ties_of(folder, a, b):
    found = diff(folder / a, folder / b)
    assert not found.differences
    return found.ties_only_in_a, found.ties_only_in_b


def test_a_lost_transposed_tie_is_a_difference(transposed):
    tie = ("down/kernel", "up/kernel transposed (0, 1, 3, 2)")
    assert ties_of(transposed, "tied.keras", "lost.keras") == ((tie,), ())
    assert ties_of(transposed, "lost.keras", "tied.weights.h5") == ((), (tie,))
    assert f"Tied only in {transposed / 'tied.keras'}: {' = '.join(tie)}" in (
        diff(transposed / "tied.keras", transposed / "lost.keras").report()
    )


def test_a_variable_that_is_transposed_otherwise_is_another_tie(transposed):
    tied = ("down/kernel", "up/kernel transposed (0, 1, 3, 2)")
    other = ("down/kernel", "up/kernel transposed (1, 0, 2, 3)")
    assert ties_of(transposed, "tied.keras", "other axes.keras") == ((tied,), (other,))


def test_what_is_tied_and_shown_transposed_is_one_group(transposed):
    plain = ("down/kernel", "same/kernel")
    whole = (*plain, "up/kernel transposed (0, 1, 3, 2)")
    assert ties_of(transposed, "twice.keras", "plain.keras") == ((whole,), (plain,))
    assert ties_of(transposed, "twice.keras", "twice.keras") == ((), ())


def test_transposed_ties_are_matched_whatever_names_a_file_has(transposed):
    """Also of variables that one of the files does not store."""
    assert diff(transposed / "tied.weights.h5", transposed / "tied.keras").is_equal
    for other in ("tied.keras", "tied.weights.h5"):
        assert ties_of(transposed, "bare.weights.h5", other) == ((), ())
        assert ties_of(transposed, other, "bare.weights.h5") == ((), ())


def test_names_that_differ_are_matched_by_place(folder):
    found = diff(folder / "tied.weights.h5", folder / "tied.keras")
    assert found.is_equal
    assert found.compared == 4
    found = diff(folder / "apart.keras", folder / "tied.weights.h5")
    (changed,) = found.differences
    assert (changed.name, changed.name_in_b) == ("decoder/kernel", "decoder/0")
    assert found.ties_only_in_b == (("encoder/kernel", "decoder/kernel"),)


def test_numbers_in_names_do_not_mislead(tmp_path):
    keras.utils.clear_session()
    files = []
    for name in ("first", "second"):
        # Called dense, dense_1; then dense_2, dense_3: or the other way round in another process.
        names = ("dense_1", "dense_2") if files else ("dense", "dense_1")
        layers = [
            keras.layers.Dense(2, name=one, kernel_initializer="ones", bias_initializer=bias)
            for one, bias in zip(names, ("zeros", "ones"), strict=True)
        ]
        files.append(tmp_path / f"{name}.keras")
        keras.Sequential([keras.Input((2,)), *layers]).save(files[-1])
    assert diff(*files).is_equal


def test_variables_that_one_file_has(tmp_path):
    arrays = {f"layers/{name}/vars/0": np.ones(3) for name in ("dense", "conv2d")}
    a = sample_files.weights(tmp_path / "a.weights.h5", arrays)
    del arrays["layers/conv2d/vars/0"]
    b = sample_files.weights(tmp_path / "b.weights.h5", arrays)
    found = diff(a, b)
    assert (found.only_in_a, found.only_in_b) == (("conv2d/0",), ())
    assert diff(b, a).only_in_b == ("conv2d/0",)
    assert not found.is_equal
    assert found.compared == 1


def test_json(folder):
    found = diff(folder / "tied.keras", folder / "apart.keras").to_json()
    assert json.loads(json.dumps(found, allow_nan=False))["is_equal"] is False


def test_unrelated_models_are_not_paired():
    """Layers of one place, or of one name that Keras gave, are not one layer by that."""
    kinds = {}
    for name in ("nested", "two_paddings", "shared_table"):
        kinds[name] = FIXTURES / "keras_3_6" / f"{name}.keras"
    for a, b in itertools.permutations(kinds.values(), 2):
        found = diff(a, b)
        assert not found.is_of_one_model
        assert (found.compared, found.differences, found.is_equal) == (0, (), False)
        assert found.to_json()["is_of_one_model"] is False
    for a in kinds.values():
        assert diff(a, FIXTURES / "keras_3_10" / a.name).is_of_one_model


def test_another_head_is_a_difference_of_one_model(tmp_path):
    for units in (2, 5):
        layers = [keras.layers.Dense(4, name="body"), keras.layers.Dense(units, name="head")]
        keras.Sequential([keras.Input((3,)), *layers]).save(tmp_path / f"{units}.keras")
    found = diff(tmp_path / "2.keras", tmp_path / "5.keras")
    assert found.is_of_one_model
    assert [(one.name, one.shape, one.shape_in_b) for one in found.differences][-2:] == [
        ("head/kernel", (4, 2), (4, 5)),
        ("head/bias", (2,), (5,)),
    ]
