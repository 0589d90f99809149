"""The process that loads hostile files: one that kills it, or fills memory, fails a test only.

Run as `python hostile_loading.py FOLDER`. It saves a tied model as `FOLDER/original.keras`, then
loads the file that each line of its input names, and answers each with a line of JSON.
"""

import faulthandler
import json
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path

import keras
import scenarios

import tiedio
from tiedio.model.walk import walk

ADDRESS_SPACE = 2 << 30  # bytes beyond what libraries have taken


def tied_model():
    """Makes a model with all that a record describes: ties, a shared layer, a seed generator."""
    first = keras.layers.Dense(4, activation="tanh", name="first")
    second = keras.layers.Dense(4, activation="relu", name="second")
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="part")], name="inner")
    inputs = keras.Input((4,), name="inputs")
    hidden = inner(second(first(inputs)))
    hidden = keras.layers.Dropout(0.5, seed=1, name="dropout")(inner.layers[0](hidden))
    hidden = keras.layers.LayerNormalization(name="norm")(hidden)
    hidden = keras.layers.Dense(4, name="other")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(2, name="last")(hidden), name="model")
    tiedio.tie(second, to=first)
    return scenarios.compiled(model)


def values_of(model):
    """Maps every place and slot to its value."""
    held = {str(place): v for place, (_, v) in walk(model).places.items()}
    held |= {
        f"optimizer/{i}": v
        for i, v in enumerate(model.optimizer.variables if model.optimizer else ())
    }
    arrays = zip(held, scenarios.arrays_of(held.values()), strict=True)
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in arrays}


def sharing_of(model):
    """Tells what is of the record alone: ties, order, names, flags and seeds."""
    found = walk(model)
    return (
        [
            array.tolist()
            for array in scenarios.arrays_of(g.state for _, g in found.generators.values())
        ],
        scenarios.ties_of(model),
        found.shared_layers,
        found.layer_states,
    )


def outcome(filepath, original, options):
    """Loads a file, and says what came of it, in a word and a text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = tiedio.load_tied(filepath, **options)
        if not isinstance(model, keras.Model) or not model.built:
            return "other", "not the model"
        values = values_of(model)
        if values != original[0]:
            names = values.keys() | original[0].keys()
            return "other", str(sorted(n for n in names if values.get(n) != original[0].get(n)))
        return ("same" if sharing_of(model) == original[1] else "reshared"), ""
    except tiedio.TiedioError as error:
        lines = str(error).count("\n") + 1
        return ("refused" if lines == 3 else f"refused in {lines} lines"), str(error)
    except BaseException:
        return "raised", traceback.format_exc()


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def main(folder):
    faulthandler.enable()
    model = tied_model()
    scenarios.train(model)
    tiedio.save_tied(model, folder / "original.keras")
    original = values_of(model), sharing_of(model)
    came, text = outcome(folder / "original.keras", original, {})
    if sys.platform == "linux":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + ADDRESS_SPACE, resource.RLIM_INFINITY))
    print(json.dumps([came, text, 0, 0]), flush=True)
    for line in sys.stdin:
        filepath, options = json.loads(line)
        before, start = peak(), time.process_time()
        came, text = outcome(filepath, original, options)
        seconds = time.process_time() - start
        print(json.dumps([came, text, seconds, peak() - before]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
