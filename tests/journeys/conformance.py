"""What every backend must do, in one place; `test_backends` asks it of each."""

import io
import json
import re
import zipfile

import h5py
import numpy as np
import pytest
import scenarios

TIED = [name for name in scenarios.SCENARIOS if name not in scenarios.CONTROLS]

# What a class shares by its own code, and a layer that Keras itself shares, needs no retying.
SHARED_ANYWAY = (
    "aliases_inside_one_layer",
    "variable_owned_by_the_model",
    "tied_by_the_code_of_a_class",
    "plain_then_distributed_over_time",
    "one_cell_in_a_stack",
    "given_twice_to_one_custom_layer",
)

# Keras stores some layers by position, and ties made by hand out of order changed the positions:
# it cannot read its own files of these.
BY_POSITION = (
    "gamma_by_hand",
    "recurrent_kernel_by_hand",
    "tied_inside_one_layer",
    "untied_after_a_tie_by_hand",
)
# Keras cannot know what is not in the config of the class.
BY_ITS_CODE = (
    "one_of_two_ties_of_a_class_undone",
    "ties_of_a_class_undone",
    "variable_given_to_a_constructor",
)
# The layer itself stores less than it has.
INEXACT = ("rounded_when_stored",)
# Stock Keras has a matrix of its own there, which backends multiply by another way.
TRANSPOSED = (
    "autoencoder_of_plain_layers",
    "convolutional_autoencoder_of_plain_layers",
    "language_model_with_a_plain_head",
    "three_views_of_one_table",
)
# Optimizers chosen by automatic names, which are other ones in the model that Keras builds.
BY_NAME = ("optimizers_chosen_by_path",)
# Nothing in a file of Keras' own says that two layers without variables were one.
NOT_INFERRED = ("one_dropout_in_two_models",)

# How far apart training may be between backends after four steps, as a part of an array's largest
# element: two to four times what was seen. Sums are rounded in another order (up to 1.4e-6).
FLOAT32 = 5e-6
TOLERANCES = {
    # Normalisation of four values each magnifies that: up to 3.7e-5 and 1.4e-5.
    "blocks_with_everything_tied": 1e-4,
    "non_trainable_state": 5e-5,
    # Gradients of half precision: up to two and four times its last place.
    "bfloat16": 3 * 2**-7,
    "loss_scaling": 8 * 2**-10,
}
# Backends draw other numbers from one state; that the state is the same is all that can be had.
RANDOM = ("dropout", "one_seed_generator_in_two_layers", "generator_discriminator_and_gan")
# The gradient is nothing but rounding where a constant added to what follows changes nothing: to
# the keys of an attention, or before a batch normalisation. Adam makes full steps of any gradient.
NO_GRADIENT = {
    "blocks_with_everything_tied": "key[/_]bias",
    "non_trainable_state": "normalization[/_]beta|dense[/_]bias|moving_mean",
    "loss_scaling": "dense[/_]bias",
}


class Conformance:
    """The contract, for files of any backend (`runs.writer`) that any loads (`runs.reader`).

    Each method is a point of it. `name` is that of a scenario, `tied` of one that has ties.
    """

    def test_ties_are_exactly_those_that_were_saved(self, runs, name):
        uninterrupted, resumed = runs.facts(name)
        assert resumed["ties"] == uninterrupted["ties"]
        assert resumed["shared_layers"] == uninterrupted["shared_layers"]
        assert bool(resumed["ties"] or resumed["shared_layers"]) == (name in TIED)

    def test_shared_tensors_are_stored_once_as_hard_links(self, runs, tied):
        filepath = runs.filepath(tied)
        record = json.loads(zipfile.ZipFile(filepath).read("metadata.json"))["tiedio"]
        with weights_file(filepath) as file:
            for group in record["tie_groups"]:
                places = [group["owner"], *group["aliases"]]
                paths = {place["dataset_path"] for place in places} - {None}
                datasets = [file[path] for path in sorted(paths)]
                assert all(dataset == datasets[0] for dataset in datasets)
                assert {type(file.get(path, getlink=True)) for path in paths} == {h5py.HardLink}
            for first, *others in record["shared_layers"]:
                assert all(file[path] == file[first] for path in others if first in file)

    def test_optimizers_have_the_same_variables_in_the_same_order(self, runs, name):
        uninterrupted, resumed = runs.facts(name)
        assert resumed["iterations"] == uninterrupted["iterations"] > 0
        assert resumed["optimizers"] == uninterrupted["optimizers"]

    def test_layers_and_variables_are_named_and_flagged_as_before(self, runs, name):
        uninterrupted, resumed = runs.facts(name)
        assert resumed["variables"] == uninterrupted["variables"]
        assert resumed["layers"] == uninterrupted["layers"]

    def test_state_is_bit_equal_to_what_was_saved(self, runs, name):
        uninterrupted, resumed = runs.states(name, "before")
        assert len(resumed) > 0
        assert bit_equal(resumed, uninterrupted)

    def test_training_goes_on_as_if_uninterrupted(self, runs, name):
        assert_trained_alike(runs, name)

    def test_training_did_change_the_state(self, runs, name):
        (before, _), (after, _) = runs.states(name, "before"), runs.states(name, "after")
        assert not bit_equal(before, after)

    def test_a_second_trip_changes_nothing(self, runs, name):
        uninterrupted, resumed = runs.facts(name)
        again = resumed["second_trip"]
        assert again == {fact: uninterrupted[fact] for fact in again}
        assert bit_equal(*runs.states(name, "second_trip", "before"))

    def test_every_container_does_the_same(self, runs, name, container):
        uninterrupted, resumed = runs.facts(name, part=container)
        assert resumed == {fact: uninterrupted[fact] for fact in resumed}
        uninterrupted, resumed = runs.states(name, "before", part=container)
        assert bit_equal(resumed, uninterrupted) and len(resumed) > 0
        assert_trained_alike(runs, name, part=container)

    @pytest.mark.slow
    def test_these_tests_fail_without_retying(self, runs, tied):
        uninterrupted, untied = runs.facts(tied, part="never_retied")
        same = all(untied.get(fact) == uninterrupted[fact] for fact in ("ties", "shared_layers"))
        assert same == (tied in SHARED_ANYWAY)

    @pytest.mark.slow
    def test_stock_keras_opens_the_file(self, runs, name):
        _, stock = runs.facts(name, part="stock")
        if name in TRANSPOSED:
            assert stock["predicts_nearly"]
            return
        assert stock["predicts"] == (name not in (*BY_ITS_CODE, *INEXACT, *BY_NAME))

    @pytest.mark.slow
    def test_files_of_stock_keras_open(self, runs, name):
        """As in Keras, and also where Keras itself fails for a layer in several places."""
        uninterrupted, stock = runs.facts(name, part="stock")
        if name in scenarios.SEVERAL:  # which stock Keras saves one by one
            assert "stock_opens" not in stock
            return
        ours, theirs = stock["stock_opens"]
        if theirs:
            assert stock["equal"]
        elif uninterrupted["shared_layers"]:
            same = stock["shared_layers"] == uninterrupted["shared_layers"]
            assert same == (name not in NOT_INFERRED)
        # Keras cannot read its own file of a loss-scaled model under another policy.
        assert ours or name in (*BY_POSITION, *BY_ITS_CODE, *BY_NAME, "loss_scaling")


def assert_trained_alike(runs, name, part="resume"):
    """Compares what training led to after loading with the uninterrupted run.

    Within a backend that is the same, bit for bit. Backends add up in another order.
    """
    uninterrupted, resumed = runs.states(name, "after", part=part)
    if runs.writer == runs.reader:
        assert bit_equal(resumed, uninterrupted)
        return
    facts, facts_resumed = runs.facts(name, part=part)
    assert facts_resumed["drawn"] == facts["drawn"]
    if name in RANDOM:
        return
    off = {
        path: np.max(np.abs(ours - theirs), initial=0) / (np.max(np.abs(theirs), initial=0) or 1)
        for path, ours, theirs in zip(facts["state"], resumed, uninterrupted, strict=True)
        if not (name in NO_GRADIENT and re.search(NO_GRADIENT[name], path))
    }
    tolerance = TOLERANCES.get(name, FLOAT32)
    assert not {path: one for path, one in off.items() if not one <= tolerance}


def bit_equal(ours, theirs):
    return [a.tobytes() for a in ours] == [b.tobytes() for b in theirs]


def weights_file(filepath):
    return h5py.File(io.BytesIO(zipfile.ZipFile(filepath).read("model.weights.h5")), "r")
