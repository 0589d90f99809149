"""Train, save, load in a new process, train on: nothing differs from never stopping.

That is asked of the backend in force; with `--backends=tensorflow,jax,torch`, of files that go from
each of these to each.
"""

import itertools

import h5py
import keras
import pytest
import sample_files
import scenarios
from by_day import ROUND
from conformance import TIED, Conformance, bit_equal
from runs import Runs, backends

import tiedio

# In every container between backends; otherwise where slow tests are asked for.
CONTAINED = ("two_paddings",)


class TestConformance(Conformance):
    pass


def pytest_generate_tests(metafunc):
    """Lists scenarios: those of several backends are one of each kind, from each to each."""
    takes = metafunc.fixturenames
    if "runs" not in takes:
        return
    asked = backends(metafunc.config.getoption("backends"))
    names = scenarios.OF_EACH_KIND if len(asked) > 1 else scenarios.SCENARIOS
    rows = []
    for writer, reader, name in itertools.product(asked, asked, names):
        if name not in writer.scenarios or name not in reader.scenarios:
            continue
        # What is asked of ties only is about the file, not about who reads it.
        if "tied" in takes and (writer != reader or name not in TIED):
            continue
        if "container" not in takes:
            slow = len(asked) == 1 and name not in scenarios.OFTEN
            rows.append(row(writer, reader, name, slow=slow))
            continue
        fit = [c for c in scenarios.CONTAINERS if name not in scenarios.NOT_CONTAINED.get(c, ())]
        if len(asked) == 1:  # another one in each round
            fit = [fit[(ROUND + list(names).index(name)) % len(fit)]]
        for container in fit:
            slow = len(asked) == 1 or name not in CONTAINED
            rows.append(row(writer, reader, name, container, slow=slow))
    arguments = ("writer", "reader", "tied", "name", "container")
    metafunc.parametrize([one for one in arguments if one in takes], rows, ids=str)


def row(*values, slow):
    return pytest.param(*values, marks=[pytest.mark.slow] if slow else [])


@pytest.fixture(scope="module")
def asked(request):
    """Lists what tests ask of runs: writer, reader, scenario, container."""
    params = [
        item.callspec.params
        for item in request.session.items
        if "runs" in getattr(item, "fixturenames", ())
    ]
    return [
        (one["writer"], one["reader"], one.get("name") or one["tied"], one.get("container"))
        for one in params
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scenarios")


@pytest.fixture
def runs(folder, asked, writer, reader):
    return Runs(folder, writer, reader, asked)


def test_a_backend_that_is_missing_is_an_error(tmp_path, monkeypatch):
    missing = "jax" if keras.backend.backend() != "jax" else "torch"
    (tmp_path / f"{missing}.py").write_text("raise ModuleNotFoundError('no such module')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with pytest.raises(pytest.Collector.CollectError) as error:
        backends(missing)
    assert str(error.value) == (
        f"The backend `{missing}` was asked for and cannot be imported: "
        "ModuleNotFoundError: no such module"
    )


# As Keras writes it on torch, and as on any other backend.
OF_TORCH = '"module": "keras.src.backend.torch.optimizers.torch_adam", "class_name": "Adam"'
PUBLIC = '"module": "keras.optimizers", "class_name": "Adam"'


def config_in(filepath):
    if filepath.suffix == ".h5":
        with h5py.File(filepath) as file:
            return file.attrs["training_config"]
    return sample_files.opened(filepath).read("config.json").decode()


def with_config(filepath, config):
    if filepath.suffix == ".h5":
        with h5py.File(filepath, "a") as file:
            file.attrs["training_config"] = config
    else:
        archive = sample_files.opened(filepath)
        members = {name: archive.read(name) for name in archive.namelist()}
        sample_files.zipped(filepath, {**members, "config.json": config})


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_optimizers_are_named_as_every_backend_has_them(tmp_path, ending):
    filepath = tmp_path / f"model.{ending}"
    tiedio.save_tied(scenarios.SCENARIOS["loss_scaling"](), filepath)
    assert config_in(filepath).count(PUBLIC) == 1


@pytest.mark.often(1)
@pytest.mark.parametrize(
    ("name", "ending"),
    # Stock Keras writes a module in HDF5 only where one optimizer is in another.
    [("two_paddings", "keras"), ("loss_scaling", "keras"), ("loss_scaling", "h5")],
)
def test_optimizers_that_stock_keras_named_as_of_torch_load(tmp_path, name, ending):
    model = scenarios.SCENARIOS[name]()
    scenarios.train(model)
    filepath = tmp_path / f"model.{ending}"
    tiedio.save_tied(model, filepath)
    if ending == "h5":
        model.save(filepath)
    config = config_in(filepath)
    if PUBLIC in config:  # on torch Keras has written the other one
        with_config(filepath, config.replace(PUBLIC, OF_TORCH))
    assert OF_TORCH in config_in(filepath)
    loaded = tiedio.load_tied(filepath)
    assert type(loaded.optimizer) is type(model.optimizer)
    assert bit_equal(scenarios.state_of(loaded), scenarios.state_of(model))
