"""What is known of hostile configs: nothing of them runs, is fetched, or is read from elsewhere.

By the kinds of Keras' published advisories (https://github.com/keras-team/keras/security/advisories).
A config is Keras' to read, in its safe mode; tiedio opens no way around that.
"""

import base64
import contextlib
import json
import marshal

import h5py
import keras
import pytest
from sample_files import opened, zipped

import tiedio
import tiedio.files
from tiedio.errors import TiedioError
from tiedio.model.keras_internals import in_safe_mode

INSIDE = "what the file must not show"
# Before, Keras itself loads some of these.
KERAS_IS_SAFE = tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 13)


@pytest.fixture
def places(tmp_path):
    """Where code would leave a mark, and what it must not read."""
    mark, secret = tmp_path / "mark", tmp_path / "secret.txt"
    secret.write_text(f"{INSIDE}\n")
    return mark, secret


def function(module, name):
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def layer(name, config, module="keras.layers"):
    return {
        "module": module,
        "class_name": name,
        "config": config,
        "registered_name": None,
        "build_config": {"input_shape": [None, 2]},
    }


def marking(mark):
    """The code of a lambda that leaves a mark, as Keras writes it."""
    code = compile(f"lambda x: (open({str(mark)!r}, 'w').close(), x)[1]", "hostile", "eval")
    (code,) = (one for one in code.co_consts if hasattr(one, "co_code"))
    return base64.b64encode(marshal.dumps(code)).decode()


def calling(module, name, **arguments):
    return layer("Lambda", {"function": function(module, name), "arguments": arguments})


KINDS = {
    "the code of a lambda": lambda mark, secret: layer(
        "Lambda",
        {
            "function": {
                "class_name": "__lambda__",
                "config": {"code": marking(mark), "defaults": None, "closure": None},
            }
        },
    ),
    "a function of another module": lambda mark, secret: calling("os", "system"),
    "such a function as activation": lambda mark, secret: layer(
        "Activation", {"activation": function("os", "system")}
    ),
    "a class of another module": lambda mark, secret: layer(
        "Popen", {"args": ["touch", str(mark)]}, module="subprocess"
    ),
    "a function that fetches": lambda mark, secret: calling(
        "keras.utils", "get_file", origin=secret.as_uri(), cache_dir=str(mark)
    ),
    "a function that ends safe mode": lambda mark, secret: calling(
        "keras.config", "enable_unsafe_deserialization"
    ),
    "a vocabulary from elsewhere": lambda mark, secret: layer(
        "StringLookup", {"vocabulary": str(secret)}
    ),
    "another program": lambda mark, secret: layer(
        "TFSMLayer", {"filepath": str(secret), "call_endpoint": "serve"}
    ),
    "a pickle of torch": lambda mark, secret: layer(
        "TorchModuleWrapper", {"module": base64.b64encode(b"cos\nsystem\n.").decode()}
    ),
}
LATER = {"a function that fetches", "a function that ends safe mode", "a vocabulary from elsewhere"}


def hostile(folder, one):
    """Makes files of a model with another layer in its config: `.keras`, and as Keras 2 has it."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="dense")])
    model.save(folder / "honest.keras")
    with opened(folder / "honest.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"].insert(1, one)
    model.save(folder / "hostile.h5")
    with h5py.File(folder / "hostile.h5", "r+") as file:
        file.attrs["model_config"] = json.dumps(config)
    members["config.json"] = json.dumps(config).encode()
    return zipped(folder / "hostile.keras", members), folder / "hostile.h5"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_hostile_config_runs(tmp_path, places, kind):
    mark, _ = places
    unsafe = in_safe_mode()
    for path in hostile(tmp_path, KINDS[kind](*places)):
        if kind not in LATER or KERAS_IS_SAFE:
            with pytest.raises(TiedioError):
                tiedio.load_tied(path)
        told = [str(tiedio.files.inspect(path)), str(tiedio.files.verify(path))]
        target = tmp_path / f"migrated from {path.suffix[1:]}.keras"
        with contextlib.suppress(TiedioError):  # these need not know such a model
            told.append(str(tiedio.files.plan(path)))
        with contextlib.suppress(TiedioError):
            tiedio.files.migrate(path, target)
        with contextlib.suppress(TiedioError):
            tiedio.files.export(path, path.with_suffix(".safetensors"))
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="dense")])
        with contextlib.suppress(TiedioError):
            tiedio.load_tied_weights(model, path)
        assert INSIDE not in "".join(told)
        if target.exists():
            assert INSIDE.encode() not in target.read_bytes()
    assert not mark.exists()
    assert in_safe_mode() == unsafe


def test_it_would_run(tmp_path, places):
    """A user may ask for it: otherwise the test above could not fail."""
    path, _ = hostile(tmp_path, KINDS["the code of a lambda"](*places))
    with contextlib.suppress(TiedioError):  # the layer has no more weights
        tiedio.load_tied(path, safe_mode=False)
    assert places[0].exists()
