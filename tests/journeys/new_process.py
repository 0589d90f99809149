"""The processes of the resume tests: one trains, saves and trains on, a later one resumes.

Run as `python new_process.py CORE SAVED SEEN PART/SCENARIO...`, where a part is `start`, `resume`,
`never_retied`, `stock` or a container. Each saves to, or loads from, the folder `SAVED`, and writes
what it saw to the folder `SEEN/PART`, which is there; `start`, `resume` and the containers what the
models held when saved (loaded), and after further training.
"""

import functools
import json
import os
import sys
import traceback
from pathlib import Path

if hasattr(os, "sched_setaffinity"):
    # On several cores TensorFlow adds up large convolutions' gradients in changing order: two
    # uninterrupted runs differ in the last bits. On one core all that is left is our doing.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(sys.argv[1]) % len(cores)]})

import keras
import numpy as np
import scenarios

import tiedio
from tiedio.model.arguments import as_one
from tiedio.model.rebuilding import optimizer_variables
from tiedio.model.walk import walk
from tiedio.saving import retying

SAVED, SEEN = map(Path, sys.argv[2:4])
TASKS = sys.argv[4:]


def optimizers_of(found):
    """Lists the places of each optimizer's variables, in its order."""
    return {
        inner_path: [str(found.places_of[id(v)][0]) for v in optimizer_variables(optimizer) or ()]
        for inner_path, optimizer in found.optimizers.items()
    }


def facts_of(model):
    found = walk(as_one(model))
    return {
        "ties": scenarios.ties_of(model),
        "shared_layers": found.shared_layers,
        "variables": [(v.path, v.trainable) for v in as_one(model).weights],
        "layers": [
            (layer.name, layer.trainable)
            for layer in found.layers.values()
            if not isinstance(layer, keras.layers.InputLayer)  # not made one again
        ],
        "optimizers": optimizers_of(found),
        "iterations": scenarios.iterations_of(model),
        "random_states": random_states(model),
    }


def random_states(model):
    """Lists the states of the seed generators: which numbers were drawn, not which came of it."""
    found = walk(as_one(model)).generators.items()
    return {
        str(place): keras.ops.convert_to_numpy(generator.state).tolist()
        for place, (_, generator) in found
    }


def report(model, name, part):
    """Trains on, and writes what the model held before and after."""
    seen = SEEN / part
    facts = facts_of(model)
    moments = {"before": scenarios.state_of(model)}
    if part == "resume":
        tiedio.save_tied(model, seen / f"{name}.keras")
        again = tiedio.load_tied(seen / f"{name}.keras")
        moments["second_trip"] = scenarios.state_of(again)
        facts["second_trip"] = facts_of(again)
    scenarios.train(model)
    moments["after"] = scenarios.state_of(model)
    facts["drawn"] = random_states(model)
    arrays = {f"{m}_{i}": a for m, state in moments.items() for i, a in enumerate(state)}
    # NumPy's own files know no bfloat16; float64 holds it, and every other number here, exactly.
    np.savez(seen / f"{name}.npz", **{key: a.astype("float64") for key, a in arrays.items()})
    return facts


def start(name):
    keras.utils.clear_session(free_memory=False)  # containers of weights keep no automatic names
    keras.utils.set_random_seed(1)
    model = scenarios.SCENARIOS[name]()
    scenarios.train(model)
    if name not in scenarios.SEVERAL:
        model.save(SAVED / f"{name}.stock.keras")
    tiedio.save_tied(model, SAVED / f"{name}.keras")
    for container, names in json.loads((SAVED / "contained.json").read_text()).items():
        if name in names:
            save, _ = scenarios.CONTAINERS[container]
            save(model, str(SAVED / f"{name}.{container}"))
    return {
        "state": [v.path for v in scenarios.variables_of(model)],
        **report(model, name, "start"),
    }


def resume(name):
    # Other automatic names than in the process that saved must not matter.
    keras.layers.Dense(1), keras.layers.Conv2D(1, 1)
    return report(tiedio.load_tied(SAVED / f"{name}.keras"), name, "resume")


def contained(container, name):
    """Resumes from another container than `.keras`."""
    _, load = scenarios.CONTAINERS[container]
    return report(load(str(SAVED / f"{name}.{container}")), name, container)


def never_retied(name):
    """The control of all these tests: without retying, what they look for is not there."""
    retying.retie = lambda *arguments, **options: retying.Retied(None, [], [])
    model = tiedio.load_tied(SAVED / f"{name}.keras", strict=False)
    return facts_of(model)


def stock(name):
    """Stock Keras reads what tiedio wrote, and tiedio what stock Keras wrote."""
    tied, stock = SAVED / f"{name}.keras", SAVED / f"{name}.stock.keras"
    ours, theirs = tiedio.load_tied(tied), loaded(keras.saving.load_model, tied)
    inputs = [scenarios.inputs_for(model) for model in scenarios.models_in(ours)]
    facts = {"opens": theirs is not None, "predicts": False}
    if theirs:
        pairs = [*zip(predictions(ours, inputs), predictions(theirs, inputs), strict=True)]
        facts["predicts"] = all(a.tobytes() == b.tobytes() for a, b in pairs)
        facts["predicts_nearly"] = all(np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs)
    if name in scenarios.SEVERAL:
        return facts
    ours, theirs = loaded(tiedio.load_tied, stock), loaded(keras.saving.load_model, stock)
    facts["stock_opens"] = [model is not None for model in (ours, theirs)]
    if ours:
        facts["shared_layers"] = walk(ours).shared_layers
    if ours and theirs:
        ours, theirs = without_seeds(ours), without_seeds(theirs)
        facts["equal"] = [a.tobytes() for a in ours] == [a.tobytes() for a in theirs]
    return facts


def predictions(model, inputs):
    """Lists what a model makes of its inputs: of several each, also where Keras holds them."""
    models = getattr(model, "models", model)
    if isinstance(models, keras.Model):
        given = inputs[0] if len(inputs) == 1 else keras.tree.flatten(inputs)
        outputs = models.predict(given, verbose=0)
    else:
        pairs = zip(models.values(), inputs, strict=True)
        outputs = [one.predict(given, verbose=0) for one, given in pairs]
    return keras.tree.flatten(outputs)


def loaded(load, filepath):
    try:
        return load(filepath)
    except ValueError:
        return None


def without_seeds(model):
    """Lists the arrays of a model but for seeds, which stock Keras draws anew."""
    variables = scenarios.variables_of(model)
    return scenarios.arrays_of(v for v in variables if v.name != "seed_generator_state")


PARTS = {part.__name__: part for part in (start, resume, never_retied, stock)}
PARTS |= {one: functools.partial(contained, one) for one in scenarios.CONTAINERS}

if __name__ == "__main__":
    for task in TASKS:
        part, name = task.split("/")
        try:
            facts = PARTS[part](name)
        except Exception:  # of one scenario; the others go on
            facts = {"error": traceback.format_exc()}
        (SEEN / f"{task}.json").write_text(json.dumps(facts))
