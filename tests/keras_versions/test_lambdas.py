"""Functions that a config holds as code: what they are called, and which Python compiled them."""

import base64
import marshal
import sys

import pytest

from tiedio.keras_versions import lambdas
from tiedio.keras_versions.config_translation import translated

THIS = sys.version_info[:2]


def functions():
    """Functions of every kind that may be found in a config, in the Python that runs this."""
    factor = 3
    return [
        lambda x: abs(x[0] - x[1]),
        lambda x, factor=2: x * factor,
        lambda *given: [given, factor],
        lambda x: x.shape,
        lambda x: [one for one in x if one],
        lambda x: (lambda y: x + y)(factor),
        lambda: 3,
        lambda x, *, training=None: x if training else factor,
    ]


def as_text(function):
    return base64.encodebytes(marshal.dumps(function.__code__)).decode()


def code(text):
    return {"class_name": "__lambda__", "config": {"code": text, "defaults": None, "closure": None}}


def layer(class_name, name, **config):
    return {"module": "keras.layers", "class_name": class_name, "config": {"name": name, **config}}


def model(*layers, name="model", **others):
    config = {"name": name, "layers": list(layers)}
    return {"module": "keras", "class_name": "Sequential", "config": config, **others}


def python_of(text):
    (found,) = lambdas.found(layer("Lambda", "it", function=code(text)))
    return lambdas.told([found]), found


@pytest.mark.parametrize("number", range(len(functions())))
def test_code_of_this_python_runs_in_it(number):
    _, found = python_of(as_text(functions()[number]))

    assert found.runs_in(THIS)
    assert not found.runs_in((3, 10))
    assert not found.runs_nowhere


# What opens the code of `lambda x: abs(x[0] - x[1])`, of `lambda *a: [a, c]`, of
# `lambda x: x.shape` and of `lambda x: x * 2`, as each version of Python marshals it.
COMPILED = {
    "2": [
        "YwEAAAABAAAABAAAAFMAAABzFgAAAHQAAHwAAGQBABl8AABkAgAZGIMBAFM=",
        "YwAAAAABAAAAAgAAABcAAABzCgAAAHwAAIgAAGcCAFM=",
        "YwEAAAABAAAAAQAAAFMAAABzBwAAAHwAAGoAAFM=",
        "YwEAAAABAAAAAgAAAFMAAABzCAAAAHwAAGQBABRT",
    ],
    "3.0 to 3.7": [
        "4wEAAAAAAAAAAQAAAAQAAABTAAAAcxQAAAB0AHwAZAEZAHwAZAIZABgAgwFTAA==",
        "4wAAAAAAAAAAAQAAAAIAAAAXAAAAcwgAAAB8AIgAZwJTAA==",
        "4wEAAAAAAAAAAQAAAAEAAABTAAAAcwYAAAB8AGoAUwA=",
        "4wEAAAAAAAAAAQAAAAIAAABTAAAAcwgAAAB8AGQBFABTAA==",
    ],
    "3.8 to 3.10": [
        "4wEAAAAAAAAAAAAAAAEAAAAEAAAAUwAAAHMUAAAAdAB8AGQBGQB8AGQCGQAYAIMBUwA=",
        "4wAAAAAAAAAAAAAAAAEAAAACAAAAFwAAAHMIAAAAfACIAGcCUwA=",
        "4wEAAAAAAAAAAAAAAAEAAAABAAAAUwAAAHMGAAAAfABqAFMA",
        "4wEAAAAAAAAAAAAAAAEAAAACAAAAUwAAAHMIAAAAfABkARQAUwA=",
    ],
    "3.11": [
        "4wEAAAAAAAAAAAAAAAUAAAATAAAA8z4AAACXAHQBAAAAAAAAAAAAAHwAZAEZAAAAAAAAAAAAfABkAhkAAAAAAAAA"
        "AAB6CgAApgEAAKsBAAAAAAAAAABTAA==",
        "4wEAAAAAAAAAAAAAAAEAAAATAAAA8xAAAACXAHwAagAAAAAAAAAAAFMA",
    ],
    "3.12": [
        "4wEAAAAAAAAAAAAAAAUAAAATAAAA8yoAAACXAHQBAAAAAAAAAAB8AGQBGQAAAHwAZAIZAAAAegoAAKsBAAAAAAAA"
        "UwA=",
        "4wEAAAAAAAAAAAAAAAEAAAATAAAA8xoAAACXAHwAagAAAAAAAAAAAAAAAAAAAAAAAABTAA==",
    ],
    "3.11 or 3.12": [  # the same in both
        "4wAAAAAAAAAAAAAAAAIAAAAXAAAA8wwAAACVAZcAfACJAWcCUwA=",
        "4wEAAAAAAAAAAAAAAAIAAAATAAAA8wwAAACXAHwAZAF6BQAAUwA=",
    ],
    "3.13": [
        "4wEAAAAAAAAAAAAAAAUAAAATAAAA8yoAAACVAFsBAAAAAAAAAABVAFMBBQAAAFUAUwIFAAAALQoAADUBAAAAAAAA"
        "JAA=",
        "4wAAAAAAAAAAAAAAAAIAAAAXAAAA8wwAAAA+AZUAVQBUAS8CJAA=",
        "4wEAAAAAAAAAAAAAAAEAAAATAAAA8xoAAACVAFUAUgAAAAAAAAAAAAAAAAAAAAAAAAAkAA==",
        "4wEAAAAAAAAAAAAAAAIAAAATAAAA8wwAAACVAFUAUwEtBQAAJAA=",
    ],
}


@pytest.mark.parametrize("version", COMPILED)
def test_code_tells_which_python_compiled_it(version):
    for text in COMPILED[version]:
        told, found = python_of(text)
        assert told == f"code of Python {version}", text
        as_first_written = base64.b64decode(text).decode("raw_unicode_escape")
        assert python_of(as_first_written) == (told, found)
        assert found.runs_nowhere == (version < "3.1" or version in ("3.8 to 3.10"))


@pytest.mark.parametrize("text", ["", "4wEAAA==", "no code", "é", "YwAA" * 9, "\x00" * 40])
def test_what_is_no_code_runs_nowhere(text):
    told, found = python_of(text)

    assert told == "code that no known Python wrote"
    assert found.runs_nowhere
    assert not found.runs_in(THIS)


def test_one_file_is_of_one_python():
    """Where some of its code is the same in two versions, the rest tells."""
    either, surely = COMPILED["3.11 or 3.12"][0], COMPILED["3.12"][0]
    found = lambdas.found(
        model(*(layer("Lambda", text[-9:], function=code(text)) for text in (either, surely)))
    )
    assert lambdas.told(found) == "code of Python 3.12"


def everywhere(text):
    """A config with code wherever Keras writes it."""
    scale = layer("Lambda", "scale", function=[text, None, None], output_shape=[2])
    return model(
        layer("Lambda", "distance", function=code(text), output_shape=code(text), mask=code(text)),
        layer("Dense", "dense", activation=code(text), arguments=["a", None, None]),
        layer("TimeDistributed", "each", layer=layer("Lambda", "one", function=code(text))),
        model(scale, name="decoder"),
        layer("Lambda", "named", function="mine", output_shape=code(text)),
        compile_config={"loss": {"class_name": "__lambda__", "config": {"value": [text, 0, 0]}}},
    )


NAMES = ["decoder/scale", "dense/activation", "distance", "distance/mask"]
NAMES += ["each/one", "loss", "named"]


def test_code_is_called_by_its_layers_and_what_it_is_to_them():
    found = lambdas.found(everywhere(as_text(functions()[0])))

    assert [one.name for one in found] == NAMES
    assert all(one.runs_in(THIS) for one in found)


def test_functions_take_the_place_of_code_wherever_it_is():
    given = {name: f"mine.own:f{number}" for number, name in enumerate(NAMES)}

    found = translated(everywhere(COMPILED["2"][0]), None, "3.6.0", given)

    assert not found.code
    assert not lambdas.found(found.config)
    assert [note.split("`")[1] for note in found.notes] in (NAMES, sorted(NAMES))
    distance = found.config["config"]["layers"][0]["config"]
    assert distance["function"] == {
        "module": "mine.own",
        "class_name": "function",
        "config": "f2",
        "registered_name": "f2",
    }
    assert "output_shape" not in distance  # Keras calls the function to find it out


def test_shapes_stay_and_so_does_code_of_other_layers():
    config = model(
        layer("Lambda", "a", function=code("x"), output_shape=[3, None]),
        layer("Lambda", "b", function=code("x"), output_shape=code("x")),
    )
    found = translated(config, None, "3.6.0", {"a": "Mine>f", "c": "mine:g"})

    first, second = (one["config"] for one in found.config["config"]["layers"])
    assert first["output_shape"] == [3, None]
    assert first["function"]["module"] == "builtins"  # as Keras has what is registered
    assert second == config["config"]["layers"][1]["config"]
    assert [one.name for one in found.code] == ["b"]
    assert found.notes[0] == "`a` runs `Mine>f`: give `Mine>f` as `custom_objects`."
    assert found.unused == ("c",)
    assert translated({}, None, "", {"c": "mine:g"}).unused == ("c",)  # of weights only
    assert config["config"]["layers"][0]["config"]["function"] == code("x")  # not that of the user
