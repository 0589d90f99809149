"""Files that old versions of Keras wrote, compared with what was true when they did.

`fixtures/<writer>/truth.json` says it: which variables were tied, what the model predicted, and
what became of it as it was trained on.
"""

import collections
import contextlib
import importlib.util
import json
import shutil
import warnings
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from by_day import ROUND
from checkout import FIXTURES

import tiedio
from tiedio import errors
from tiedio.migration import planning

# Saved after the same model was saved as HDF5, when Keras 3 had forgotten its optimizer.
FORGOTTEN = ("keras_3_0-diverged.keras", "keras_3_6-diverged.keras")
# Their optimizers have a state for each use of a variable.
PER_USE = ("keras_2_0_8", "keras_2_2_4", "keras_2_3_1")
# Their optimizers make a step for each use, too.
STEP_PER_USE = ("keras_2_0_8", "keras_2_2_4")
# Whether a step was counted before Adam asked for its number: nothing in their graph says which
# comes first. So it was in all four steps, but for a few files.
NOT_COUNTED, ALWAYS_COUNTED = (0, 0, 0, 0), (1, 1, 1, 1)
COUNTED = {
    "keras_2_2_4": ALWAYS_COUNTED,
    "keras_2_3_1": ALWAYS_COUNTED,
    "keras_2_3_1-frozen.h5": (1, 1, 0, 1),
    "keras_2_3_1-recurrent.h5": (1, 0, 1, 1),
    "keras_2_3_1-sequential.h5": (0, 1, 1, 1),
}
# Where it was not the same for all variables of a step; and those that have no state.
NOT_ALIKE = (
    *FORGOTTEN,
    *(
        f"keras_2_2_4-{name}.h5"
        for name in (
            "bare_names",
            "diverged",
            "equal_biases",
            "recurrent",
            "sequential",
            "target_network",
            "three_way",
            "two_paddings",
        )
    ),
    "keras_2_3_1-two_paddings_called.h5",
)
# Their RMSprop does not store how many steps it made.
NO_ITERATIONS = ("keras_2_0_8", "keras_2_2_4")
# The rest of what migrates, loads and trains on is run with the slow tests.
ALWAYS = ("tf_2_8",)
STEMS = ("nested", "shared_table", "two_paddings")

_spec = importlib.util.spec_from_file_location("models", FIXTURES / "writers" / "models.py")
models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models)


class Fixture:
    """A file, and what is true of it."""

    def __init__(self, writer, name, truth):
        self.path = FIXTURES / writer / name
        self.writer = writer
        self.name = name
        self.truth = truth

    def __str__(self):
        return f"{self.writer}-{self.name}"

    @property
    def ties(self):
        return as_sets(self.truth["ties"])

    @property
    def was_tied(self):
        return [
            f"{alias}={owner}" for owner, *aliases in self.truth["was_tied"] for alias in aliases
        ]

    @property
    def is_weights_only(self):
        return self.name.endswith(("weights.h5", "_ckpt"))

    def array(self, key):
        with np.load(FIXTURES / self.writer / "truth.npz") as arrays:
            return arrays[key]

    def check_values(self, model):
        found = dict(values_of(model))
        assert found.keys() == self.truth["variables"].keys()
        for name, expected in self.truth["variables"].items():
            assert list(found[name].shape) == expected["shape"], name
            assert np.allclose(found[name].ravel()[:4], expected["first"], atol=1e-6), name
            assert np.isclose(found[name].sum(dtype="float64"), expected["sum"], atol=1e-4), name

    def check_predictions(self, model):
        inputs = [models.data(spec) for spec in self.truth["input"]]
        found = model.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)
        assert np.allclose(found, self.array(self.truth["predictions"]), atol=1e-5)

    def check_state(self, model):
        if self.truth["optimizer"] is None:  # which Keras could not save
            assert not model.compiled
            return
        if str(self) in FORGOTTEN:
            assert int(model.optimizer.iterations) == 0
            return
        assert type(model.optimizer).__name__ == self.truth["optimizer"]
        if not (self.writer in NO_ITERATIONS and self.truth["optimizer"] == "RMSprop"):
            assert int(model.optimizer.iterations) == self.truth["iterations"]
        assert np.isclose(float(model.optimizer.learning_rate), self.truth["learning_rate"])

    @property
    def is_continued(self):
        """Whether there is a training to compare with."""
        # All writers ran on TensorFlow. Adam makes a step of what rounding leaves of no gradient.
        told = self.truth["optimizer"] and keras.backend.backend() == "tensorflow"
        return bool(told) and "continued" in self.truth and str(self) not in NOT_ALIKE

    def continued(self, model, as_then=True):
        """Trains on, as the writer did; returns how far it is from what that had then.

        Args:
            model: The model.
            as_then: Whether to do as the writer did what Keras 3 does otherwise by design.
        """
        continued = self.truth["continued"]
        is_old = as_then and not self.writer.startswith("keras_3")
        if is_old:
            sum_gradients(model.optimizer)
        per_use = is_old and self.writer in STEP_PER_USE
        counted = COUNTED.get(self.writer, NOT_COUNTED) if is_old else NOT_COUNTED
        counted = COUNTED.get(str(self), counted) if is_old else counted
        inputs = [models.data(spec) for spec in continued["input"]]
        target, size = models.data(continued["target"]), continued["batch_size"]
        model.run_eagerly = True  # it is not worth compiling
        for step in range(continued["steps"]):
            rows = slice(step * size, (step + 1) * size)
            batch = [one[rows] for one in inputs]
            with a_step_for_each_use(model) if per_use else contextlib.nullcontext():
                model.optimizer.iterations.assign_add(counted[step])
                model.train_on_batch(batch if len(batch) > 1 else batch[0], target[rows])
                model.optimizer.iterations.assign_add(-counted[step])
        found = np.concatenate([value.ravel() for _, value in values_of(model)])
        return abs(found - self.array(continued["weights"])).max()

    def check_continued(self, model):
        # RMSprop added epsilon elsewhere.
        largest = 2e-5 if self.truth["optimizer"] == "RMSprop" else 1e-6
        assert self.continued(model) <= largest


def sum_gradients(optimizer):
    """Sums the gradients of a row of a table, as Keras 2 did; Keras 3 squares each for itself."""
    import tensorflow

    apply = optimizer.apply

    def summed(gradients, variables=None):
        return apply([tensorflow.convert_to_tensor(one) for one in gradients], variables)

    optimizer.apply = summed


@contextlib.contextmanager
def a_step_for_each_use(model):
    """Makes the step of a tied variable once for each of its places, as Keras 2 did up to 2.2."""
    places = collections.defaultdict(list)
    for _, variable in models.Kit(keras).variables(model):
        places[id(variable)].append(variable)
    tied = [(held[0], len(held), np.array(held[0])) for held in places.values() if held[1:]]
    yield
    for variable, uses, before in tied:
        variable.assign(before + uses * (np.array(variable) - before))


def as_sets(groups):
    return {frozenset(group) for group in groups}


def values_of(model):
    return [(name, np.array(variable)) for name, variable in models.Kit(keras).variables(model)]


def ties_of(model):
    held = collections.defaultdict(set)
    for name, variable in models.Kit(keras).variables(model):
        held[id(variable)].add(name)
    return {frozenset(names) for names in held.values() if len(names) > 1}


def all_fixtures():
    for path in sorted(FIXTURES.glob("*/truth.json")):
        for name, truth in json.loads(path.read_text())["files"].items():
            if not name.endswith(("_ckpt", "_savedmodel")):
                yield Fixture(path.parent.name, name, truth)


EVERY = list(all_fixtures())
assert EVERY


def marked(fixtures, stems=STEMS):
    """Marks most as slow: all but those of a writer whose names begin so."""
    return [
        pytest.param(
            one,
            id=str(one),
            marks=[] if one.writer in ALWAYS and one.name.startswith(stems) else [pytest.mark.slow],
        )
        for one in fixtures
    ]


def migrated(fixture, tmp_path, **options):
    """Migrates a copy, so that the source can be compared."""
    source = tmp_path / fixture.name
    shutil.copy(fixture.path, source)
    ending = ".weights.h5" if fixture.is_weights_only else ".keras"
    done = planning.migrate(source, tmp_path / f"migrated{ending}", **options)
    assert source.read_bytes() == fixture.path.read_bytes()
    return done


def content_of(path):
    """What is in a file, without the time that an archive notes."""
    if not zipfile.is_zipfile(path):
        return Path(path).read_bytes()
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


WHOLE = [one for one in EVERY if not one.is_weights_only]
WEIGHTS_ONLY = [one for one in EVERY if one.is_weights_only]


def whole_of(fixture):
    """The whole model of which a file may have the weights only."""
    if not fixture.is_weights_only:
        return fixture
    folder = fixture.path.parent
    return next(o for o in WHOLE if o.path.parent == folder and o.name.startswith("two_paddings."))


def expected(fixture):
    """What is found without being told: a bit less, or more, than what was tied."""
    if fixture.name == "frozen.keras" or str(fixture) == "keras_3_0-frozen.h5":
        return set()  # no optimizer knew them, and there are no names of variables
    if fixture.name == "resaved.h5" and fixture.writer in PER_USE:
        return as_sets(fixture.truth["was_tied"])  # the optimizer's state still is that of one
    return fixture.ties


@pytest.mark.parametrize("fixture", WHOLE, ids=str)
def test_exactly_what_was_tied_is_found(fixture):
    """No trap is fallen for."""
    plan = planning.plan(fixture.path)
    assert as_sets(one.names for one in plan.proposals if not one.needs) == expected(fixture)
    assert as_sets(one.names for one in plan.proposals if one.needs) <= fixture.ties


@pytest.mark.parametrize("fixture", WEIGHTS_ONLY, ids=str)
def test_weights_alone_say_nothing_wrong(fixture):
    """Nor all that is right: names tell, where the layers were called before they were tied."""
    plan = planning.plan(fixture.path)
    found = as_sets(one.names for one in plan.proposals if not one.needs)
    assert found in (fixture.ties, set())
    names_are_kept = fixture.name.startswith(("nested", "shared_table"))
    if plan.kind.endswith("layout of Keras 2 of weights only") and names_are_kept:
        assert found


@pytest.mark.parametrize("fixture", marked(WHOLE))
def test_what_was_tied_is_one_again(fixture, tmp_path):
    accept = ["none"] if fixture.name.startswith("frozen") else []
    done = migrated(fixture, tmp_path, accept=accept)
    model = tiedio.load_tied(done.target)
    assert ties_of(model) == expected(fixture)
    fixture.check_values(model)
    fixture.check_predictions(model)
    fixture.check_state(model)
    if fixture.is_continued:
        fixture.check_continued(model)


@pytest.mark.parametrize("fixture", marked(EVERY, ("nested", "two_paddings.")))
def test_weights_alone_load_into_the_model(fixture, tmp_path):
    """A file of a whole model may become one of weights; others have a whole one beside them."""
    model = tiedio.load_tied(migrated(whole_of(fixture), tmp_path, accept=["none"]).target)
    for one in model.weights:
        one.assign(keras.ops.zeros_like(one))
    done = planning.migrate(fixture.path, tmp_path / "alone.weights.h5", accept=["none"])
    with warnings.catch_warnings():
        # Weights of Keras 2.12 and later have a state, but nothing to tell which optimizer's.
        warnings.filterwarnings("ignore", "Cannot resume `optimizer`", errors.TiedioWarning)
        tiedio.load_tied_weights(model, done.target)
    fixture.check_values(model)


def saved_again(source, target):
    """Copies a file, listed as one that was loaded in the session that made it, and saved again.

    There the variables of each layer have another name than the layer, and no layer's own.
    """
    shutil.copy(source, target)
    with h5py.File(target, "r+") as file:
        for layer in file["model_weights"].values():
            listed = [str(np.array(one).astype(str)) for one in layer.attrs.get("weight_names", ())]
            renamed = []
            for name in listed:
                *makers, last = name.split("/")
                renamed.append("/".join((*(f"{one}_1" for one in makers or ["layer"]), last)))
                layer.move(name, renamed[-1])
            if listed:
                layer.attrs["weight_names"] = np.array([one.encode() for one in renamed])


# A model without sharing never lists its variables as these two do.
LISTED_ANYHOW = ("twins", "sequential")


@pytest.mark.parametrize(
    "fixture",
    marked(
        (o for o in WHOLE if o.name.endswith(".h5") and not o.name.startswith(LISTED_ANYHOW)),
        ("nested", "two_paddings"),
    ),
)
def test_what_was_loaded_and_saved_again_loads(fixture, tmp_path):
    path = tmp_path / "again.h5"
    saved_again(fixture.path, path)
    model = tiedio.load_tied(migrated(fixture, tmp_path, accept=["none"]).target)
    for options in ({}, {"by_name": True}):
        with warnings.catch_warnings():  # Keras 2 had slots in another order
            warnings.filterwarnings("ignore", "Cannot resume `optimizer`")
            tiedio.load_tied_weights(model, path, **options)
        fixture.check_values(model)
    done = planning.migrate(path, tmp_path / "loaded.keras", accept=["none"])
    fixture.check_values(tiedio.load_tied(done.target))
    fixture.check_values(tiedio.load_tied(path))


def flipped(source, target, which):
    """Copies a file, with the flags of some layers changed: as if that was since its training."""

    def flip(layer):
        config = layer["config"]
        config["trainable"] = not config.get("trainable", True)
        for part in ("layer", "backward_layer"):
            if isinstance(config.get(part), dict):
                config[part]["config"]["trainable"] = config["trainable"]
        for inner in config.get("layers", ()):
            flip(inner)

    def change(text):
        config = json.loads(text)
        layers = config["config"]
        layers = layers if isinstance(layers, list) else layers["layers"]
        for one in layers if which is None else [layers[which]] if which < len(layers) else ():
            flip(one)
        return json.dumps(config).encode()

    shutil.copy(source, target)
    if zipfile.is_zipfile(source):
        held = content_of(source)
        held["config.json"] = change(held["config.json"])
        with zipfile.ZipFile(target, "w") as archive:
            for name, content in held.items():
                archive.writestr(name, content)
    else:
        with h5py.File(target, "r+") as file:
            file.attrs["model_config"] = change(file.attrs["model_config"])


def state_of(model):
    """The slots of each variable that an optimizer was built for, by all of its names."""
    names = collections.defaultdict(list)
    for name, variable in models.Kit(keras).variables(model):
        names[id(variable)].append(name)
    optimizer = model.optimizer
    held = [np.array(one) for one in optimizer.variables]
    trained = getattr(optimizer, "_trainable_variables", ()) if optimizer.built else ()
    width = (len(held) - 2) // max(len(trained), 1)
    # Iterations and learning rate come first; kinds take turns.
    return {
        name: held[2 + number * width : 2 + (number + 1) * width]
        for number, one in enumerate(trained)
        for name in names[id(one)]
    }


# All layers, and one: each in its turn.
ONE = pytest.param(ROUND % 8, marks=pytest.mark.slow, id="one")


@pytest.mark.parametrize("which", [None, ONE])
@pytest.mark.parametrize(
    "fixture",
    marked(
        (one for one in WHOLE if one.truth["optimizer"] in ("Adam", "SGD")),
        ("target_network", "two_paddings."),
    ),
)
def test_layers_may_be_frozen_since_or_not_any_more(fixture, which, tmp_path):
    """The state of an optimizer is of the variables that it was built for, or left out."""
    accept = ["none"]
    expected = state_of(tiedio.load_tied(migrated(fixture, tmp_path, accept=accept).target))
    flipped(fixture.path, tmp_path / fixture.name, which)
    done = planning.migrate(tmp_path / fixture.name, tmp_path / "flipped.keras", accept=accept)
    model = tiedio.load_tied(done.target)
    fixture.check_values(model)
    found = state_of(model)
    assert all(
        np.array_equal(one, other)
        for name in found
        for one, other in zip(found[name], expected[name], strict=True)
    )
    left_out = any("which variables it is of" in note for note in done.notes)
    tied = [names for names in (*fixture.ties, *as_sets(fixture.truth.get("was_tied", ())))]
    assert left_out or all(
        name in found or any(found.keys() & names for names in tied if name in names)
        for name in expected
    )
    assert not (left_out and found)


WITHOUT_STATE = (
    "The optimizer has no state of `{}`, as of what was frozen when it was built. Before `fit`, "
    "set `trainable = False` there, or compile the model again."
)


@pytest.mark.parametrize("writer", PER_USE)
def test_a_part_may_have_been_frozen_without_a_flag_in_the_file(writer, tmp_path):
    """As the discriminator of an adversarial network, where Keras 2 froze a whole model."""
    (fixture,) = (one for one in WHOLE if str(one) == f"{writer}-sequential.h5")
    whole = state_of(tiedio.load_tied(migrated(fixture, tmp_path).target))
    shutil.copy(fixture.path, tmp_path / "part.h5")
    with h5py.File(tmp_path / "part.h5", "r+") as file:
        slots = file["optimizer_weights"]
        iterations, *names = slots.attrs["weight_names"]
        # m, v and, but of the oldest, vhat of all variables: those of `out` come last.
        width = len(names) // (2 if writer == "keras_2_0_8" else 3)
        kept = [name for number, name in enumerate(names) if number % width < width - 2]
        slots.attrs["weight_names"] = np.array([iterations, *kept], dtype="S")
    done = planning.migrate(tmp_path / "part.h5", tmp_path / "part.keras")
    assert WITHOUT_STATE.format("out") in done.notes
    part = state_of(tiedio.load_tied(done.target))
    assert whole.keys() - part.keys() == {"out/kernel", "out/bias"}
    for name, held in part.items():
        assert all(map(np.array_equal, held, whole[name])), name
    with pytest.warns(errors.TiedioWarning) as told:
        model = tiedio.load_tied(tmp_path / "part.h5")
    assert [str(one.message) for one in told] == [WITHOUT_STATE.format("out")]
    (inputs,) = (models.data(spec) for spec in fixture.truth["input"])
    model.get_layer("out").trainable = False  # as the warning says
    before, iterations = model.get_layer("out").get_weights(), int(model.optimizer.iterations)
    model.fit(inputs, models.data(fixture.truth["continued"]["target"])[: len(inputs)], verbose=0)
    assert int(model.optimizer.iterations) > iterations
    assert all(map(np.array_equal, before, model.get_layer("out").get_weights()))


def test_spare_slots_have_no_shape_of_a_variable(tmp_path):
    """Keras 2 keeps a `vhat` of one element for each, which is the shape of a bias as well."""

    def dense(name, units, **options):
        config = {"name": name, "trainable": True, "units": units, "use_bias": True, **options}
        return {"class_name": "Dense", "config": config}

    layers = [dense("maker", 3, batch_input_shape=[None, 4]), dense("judge", 1)]
    optimizer = {"class_name": "Adam", "config": {"lr": 0.01, "decay": 0.0, "amsgrad": False}}
    shapes = {"maker": [(4, 3), (3,)], "judge": [(3, 1), (1,)]}
    random = np.random.default_rng(0)

    def add(group, arrays):
        group.attrs["weight_names"] = np.array(list(arrays), dtype="S")
        for name, array in arrays.items():
            group[name] = array

    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": layers})
        training = {"loss": "mse", "metrics": [], "optimizer_config": optimizer}
        file.attrs["training_config"] = json.dumps(training)
        weights = file.create_group("model_weights")
        weights.attrs.update(keras_version="2.2.4", backend="tensorflow")
        weights.attrs["layer_names"] = np.array(list(shapes), dtype="S")
        for name, (kernel, bias) in shapes.items():
            names = f"{name}/kernel:0", f"{name}/bias:0"
            arrays = (random.random(one, "float32") for one in (kernel, bias))
            add(weights.create_group(name), dict(zip(names, arrays, strict=True)))
        slots = [random.random(one, "float32") for one in 2 * shapes["maker"] + 2 * [(1,)]]
        names = (f"training/Adam/Variable_{number}:0" for number in range(6))
        state = {"Adam/iterations:0": np.int64(5), **dict(zip(names, slots, strict=True))}
        add(file.create_group("optimizer_weights"), state)
    done = planning.migrate(tmp_path / "old.h5", tmp_path / "new.keras")
    assert done.notes == (WITHOUT_STATE.format("judge"),)
    model = tiedio.load_tied(done.target)
    maker = model.layers[0]
    trained = model.optimizer._trainable_variables
    assert [id(one) for one in trained] == [id(maker.kernel), id(maker.bias)]
    found = [np.array(one) for one in model.optimizer.variables[2:]]
    assert all(map(np.array_equal, found, (slots[0], slots[2], slots[1], slots[3])))
    assert int(model.optimizer.iterations) == 5


@pytest.mark.parametrize("fixture", marked(WHOLE))
def test_stock_keras_opens_it(fixture, tmp_path):
    done = migrated(fixture, tmp_path, accept=["contents"])
    model = keras.saving.load_model(done.target)
    fixture.check_values(model)
    fixture.check_predictions(model)


@pytest.mark.parametrize("fixture", marked(EVERY))
def test_migrating_again_changes_nothing(fixture, tmp_path):
    done = migrated(fixture, tmp_path, accept=["none"])
    name = Path(done.target).name.replace("migrated", "again")
    again = planning.migrate(done.target, tmp_path / name, accept=["none"])
    assert content_of(again.target) == content_of(done.target)


@pytest.mark.parametrize(
    "fixture", marked((one for one in EVERY if "was_tied" in one.truth), ("diverged",))
)
def test_copies_that_are_two_by_now_are_tied_on_request(fixture, tmp_path):
    """Saved by a model without sharing, and perhaps trained since, nothing tells of it."""
    options = {"ties": fixture.was_tied}
    if fixture.name.startswith("diverged"):
        with pytest.raises(errors.MigrationError, match="--reconcile owner"):
            migrated(fixture, tmp_path, **options)
        options["reconcile"] = "owner"
    model = tiedio.load_tied(migrated(fixture, tmp_path, **options).target)
    assert ties_of(model) == as_sets(fixture.truth["was_tied"])
    if str(fixture) not in FORGOTTEN:
        assert int(model.optimizer.iterations) == fixture.truth["iterations"]
    found = dict(values_of(model))
    for owner, *_ in fixture.truth["was_tied"]:
        first = fixture.truth["variables"][owner]["first"]
        assert np.allclose(found[owner].ravel()[:4], first, atol=1e-6)


def weights_and_slots(model):
    return [*model.weights, *(model.optimizer.variables if model.compiled else ())]


def needs_no_migration(fixture):
    """Whether Keras 3 wrote it as such: its `.keras` files load as they are."""
    return fixture.writer.startswith("keras_3") and fixture.name.endswith(".keras")


@pytest.mark.parametrize("fixture", marked([o for o in WHOLE if not needs_no_migration(o)]))
def test_loading_does_what_migrating_does(fixture, tmp_path):
    """Also where Keras itself can build nothing of the file."""
    model = tiedio.load_tied(fixture.path)
    other = tiedio.load_tied(migrated(fixture, tmp_path, accept=["none"]).target)
    assert ties_of(model) == ties_of(other) == expected(fixture)
    fixture.check_values(model)
    fixture.check_state(model)
    assert all(map(np.array_equal, weights_and_slots(model), weights_and_slots(other)))


def test_what_training_does_not_go_on_with_is_told_once(tmp_path):
    (fixture,) = (one for one in WHOLE if str(one) == "tf_2_8-target_network.h5")
    shutil.copy(fixture.path, tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5", "r+") as file:
        slots = file["optimizer_weights"]
        slots.attrs["weight_names"] = slots.attrs["weight_names"][:-1]
    with pytest.warns(errors.TiedioWarning) as told:
        model = tiedio.load_tied(tmp_path / "old.h5")
    (message,) = (str(one.message) for one in told)
    assert message == (
        "The state of the optimizer is left out, and it starts anew: it is of a kind that is not "
        "known here."
    )
    fixture.check_values(model)
    assert int(model.optimizer.iterations) == 0
    tiedio.load_tied(tmp_path / "old.h5", compile=False)  # without a warning, which is an error


def loaded(fixture, tmp_path):
    """Loads a file; only one that Keras 3 wrote in its own format has to be migrated to resume."""
    path = migrated(fixture, tmp_path).target if needs_no_migration(fixture) else fixture.path
    return tiedio.load_tied(path)


def of_each_writer():
    """One file of each, with ties and Adam: a `.keras`, which any Keras 3 reads, if it has one."""
    for writer in dict.fromkeys(one.writer for one in WHOLE):
        stem = "two_paddings_called." if writer == "keras_2_2_4" else "two_paddings."
        yield next(o for o in WHOLE[::-1] if o.writer == writer and o.name.startswith(stem))


@pytest.mark.often(5)
@pytest.mark.parametrize("fixture", of_each_writer(), ids=str)
def test_training_goes_on_as_in_the_version_that_wrote_it(fixture, tmp_path):
    """Here one file of each; the others are trained on where they are migrated."""
    model = loaded(fixture, tmp_path)
    assert ties_of(model) == fixture.ties
    if fixture.is_continued:
        fixture.check_continued(model)


# What Keras 3 does otherwise by design, and how far that leads in four steps, of which each
# moves a weight by about 0.01. The table in docs/old-files.md says why.
BY_DESIGN = {
    "tf_2_8-recurrent.h5": 1.7e-2,
    "tf_2_8-nested.h5": 1.1e-5,
    "keras_2_0_8-two_paddings.h5": 3.7e-2,
    "keras_2_3_1-two_paddings.h5": 1.1e-3,
}


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="as which all were written")
@pytest.mark.parametrize(("name", "far"), BY_DESIGN.items())
def test_what_keras_3_does_otherwise_by_design(name, far, tmp_path):
    (fixture,) = (one for one in WHOLE if str(one) == name)
    found = fixture.continued(loaded(fixture, tmp_path), as_then=False)
    assert found == pytest.approx(far, rel=0.05)


def with_another_class(source, target, layer, class_name="LocallyConnected1D"):
    """Copies a file, with a layer of a class that Keras 3 does not have."""
    shutil.copy(source, target)
    with h5py.File(target, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        (one,) = (one for one in config["config"]["layers"] if one["config"]["name"] == layer)
        one["class_name"] = class_name
        file.attrs["model_config"] = json.dumps(config)


class LocallyConnected1D(keras.layers.Dense):
    """Stands in for a layer that Keras 3 does not have, by the name that it had."""


class Refusing(LocallyConnected1D):
    def __init__(self, **config):
        raise TypeError("not today")


@pytest.fixture
def untranslated(tmp_path):
    with_another_class(FIXTURES / "tf_2_8/three_way.h5", tmp_path / "old.h5", "dense2")
    return tmp_path / "old.h5"


def test_what_cannot_be_migrated_as_a_model_points_to_its_weights(untranslated):
    with pytest.raises(errors.CustomObjectsError, match="`LocallyConnected1D`"):
        tiedio.load_tied(untranslated)
    with pytest.raises(errors.LoadError) as error:
        tiedio.load_tied(untranslated, custom_objects={"LocallyConnected1D": Refusing})
    first, _, action = str(error.value).splitlines()
    assert "Cannot build the model" in first
    assert "Keras 2.8.0 wrote it: build the model, and load the weights" in action


def test_what_cannot_be_migrated_as_a_model_starts_anew(untranslated):
    known = {"LocallyConnected1D": LocallyConnected1D}
    with pytest.warns(errors.TiedioWarning, match="Cannot resume `optimizer`") as told:
        model = tiedio.load_tied(untranslated, custom_objects=known)
    assert [one.category for one in told].count(errors.TiedioWarning) == 1
    assert int(model.optimizer.iterations) == 0


def test_state_in_another_order_is_not_taken_for_that_of_keras_3(tmp_path):
    """Keras 2 has the momenta of all variables first, which equal shapes do not tell."""
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)  # no rate is stored
    layers = [LocallyConnected1D(4, use_bias=False) for _ in range(2)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(keras.optimizers.Adam(schedule), "mean_squared_error")
    model.train_on_batch(np.ones((1, 4)), np.zeros((1, 4)))
    model.save(tmp_path / "old.h5")
    known = {"LocallyConnected1D": LocallyConnected1D}
    loaded = tiedio.load_tied(tmp_path / "old.h5", custom_objects=known)
    assert int(loaded.optimizer.iterations) == 1
    with h5py.File(tmp_path / "old.h5", "r+") as file:
        file["model_weights"].attrs["keras_version"] = "2.15.0"
    with pytest.warns(errors.TiedioWarning, match="Cannot resume `optimizer`"):
        loaded = tiedio.load_tied(tmp_path / "old.h5", custom_objects=known)
    assert int(loaded.optimizer.iterations) == 0


def test_a_folder_of_tensorflow_points_to_it_too():
    (folder, *_) = sorted(FIXTURES.glob("tf_*/*_savedmodel"))
    with pytest.raises(errors.FileFormatError, match="`tiedio migrate` makes a"):
        tiedio.load_tied(folder)
