"""Each message on the page "My file does not load" is what is said, where the page says it is."""

import re
import warnings
import zipfile

import keras
import pytest
from checkout import ROOT

import tiedio

PAGE = ROOT / "docs" / "does-not-load.md"
# What takes another environment, or process; `test_installation.py` and `test_storage.py` see it.
ELSEWHERE = {
    "`tiedio.load_tied` needs Keras, whose backend is not installed.",
    "Unable to import backend : …",
    "`…` needs a package that is not installed.",
}


def quoted():
    cells = re.findall(r"^\| (`+)(?!`) ?(.+?) ?(?<!`)\1(?!`)", PAGE.read_text(), re.MULTILINE)
    return [message for _, message in cells]


def model(*widths, names=("encoder", "decoder"), optimizer="adam", between=()):
    widths = widths or (4, 4)
    layers = [
        keras.layers.Dense(width, name=name) for name, width in zip(names, widths, strict=True)
    ]
    model = keras.Sequential([keras.Input((4,)), *between, *layers])
    model.compile(optimizer, "mse")
    return model


def tied(**options):
    made = model(**options)
    tiedio.tie(made.layers[-1], to=made.layers[-2])
    made.optimizer.build(made.trainable_variables)
    return made


class Mine(keras.layers.Layer):
    def __init__(self, factor, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, inputs):
        return inputs * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


class Renamed(keras.layers.Layer):
    pass


def saved(name="a.keras", **options):
    save = tiedio.save_tied_weights if name.endswith(".weights.h5") else tiedio.save_tied
    save(tied(**options), name)
    return name


def written(content, name="a.keras"):
    with open(name, "wb") as file:
        file.write(content)
    return name


def cut():
    with open(saved(), "rb") as file:
        return written(file.read()[:-100])


def newer():
    with zipfile.ZipFile(saved()) as old, zipfile.ZipFile("b.keras", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "metadata.json":
                content = content.replace(b'"tiedio": {"version": 1', b'"tiedio": {"version": 99')
            new.writestr(name, content)
    return "b.keras"


def stock():
    tied().save("a.keras")
    return "a.keras"


def frozen():
    made = model()
    tiedio.tie(made.layers[1], to=made.layers[0], weights=["kernel"])
    made.layers[0].trainable = False
    made.optimizer.build(made.trainable_variables)
    made.save("a.h5")
    return "a.h5"


def several():
    made = tied()
    tiedio.save_tied({"part": made, "whole": keras.Sequential([made])}, "several.keras")
    return "several.keras"


THREE = ("encoder", "decoder", "third")
load, weights = tiedio.load_tied, tiedio.load_tied_weights
SYMPTOMS = {
    "There is no file `…`.": lambda: load("nowhere.keras"),
    "`…` is damaged": lambda: load(cut()),
    "`…` is not a Keras file.": lambda: load(written(b"hello")),
    "`…` is a checkpoint of TensorFlow.": lambda: load(written(b"", "x.index")[:-6]),
    "`…` holds the weights of a model only.": lambda: load(saved("a.weights.h5")),
    "`…` needs classes or functions that are not registered: `…`.": lambda: load(
        saved(between=[Mine(2)])
    ),
    "Cannot build the model of `…`: it holds the functions of `…` as code": lambda: load(
        saved(between=[keras.layers.Lambda(lambda x: x)])
    ),
    "Cannot build the model of `…`: Unrecognized keyword arguments": lambda: load(
        saved(between=[Mine(2)]), custom_objects={"Mine": Renamed}
    ),
    "Cannot restore `…`: the model is not the one that was saved.": lambda: weights(
        model(4, names=["encoder"]), saved("a.weights.h5")
    ),
    "Cannot load the weights of `…`": lambda: weights(
        model(4, 4, 4, names=THREE), saved("a.weights.h5")
    ),
    "Cannot load `…` into model `…`: it has other layers.": lambda: weights(
        model(4, 4, 4, names=THREE), saved("a.h5")
    ),
    "Model `…` has no variables yet: it is not built.": lambda: weights(
        keras.Sequential([keras.layers.Dense(4)]), saved("a.weights.h5")
    ),
    "Cannot load `…`, which does not hold what was passed.": lambda: weights(model(), several()),
    "'dict' object has no attribute '…'": lambda: load(several()).fit,
    "Cannot read the record of this file.": lambda: load(newer()),
    "`…` is of a scheme that fsspec does not know.": lambda: load("gopher://host/a.keras"),
    "Cannot resume `…`: its variables are not those of the file.": lambda: load(stock()),
    "Cannot resume `…`:": lambda: weights(model(optimizer="sgd"), saved("a.weights.h5")),
    "The optimizer has no state of `…`": lambda: load(frozen()),
}


@pytest.mark.parametrize("message", [one for one in quoted() if one not in ELSEWHERE])
def test_the_message_is_said(message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pattern = ".+?".join(map(re.escape, message.split("…")))
    assert any(re.match(pattern, words, re.DOTALL) for words in said(SYMPTOMS[message]))


def said(symptom):
    """Returns all that is warned of, and the error if there is one."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            symptom()
        except (tiedio.TiedioError, AttributeError) as raised:
            return [str(raised)]
    return [str(one.message) for one in warned]


def test_every_symptom_is_on_the_page():
    assert {*SYMPTOMS, *ELSEWHERE} == set(quoted())
