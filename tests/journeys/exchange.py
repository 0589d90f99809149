"""Files go from one version of Keras to another, and back.

Run as `python exchange.py save FOLDER` under each version, then as `python exchange.py load
FOLDER` under each: all files that the others saved are loaded, whole models and weights, those
of stock Keras too, and what they hold is compared with what was saved. `0/3` as another argument
takes the first of three shares of the scenarios.
"""

import json
import sys
import traceback
from pathlib import Path

import keras
import numpy as np
import scenarios
import tensorflow as tf

import tiedio

tf.config.run_functions_eagerly(True)  # a few steps take a tenth of the time

# Of each kind one that every version builds alike.
NAMES = (
    "two_paddings",
    "kernel_by_hand",
    "gamma_by_hand",
    "recurrent_cells",
    "dense_then_inside_a_submodel",
    "discriminator_frozen_in_the_combined_model",
    "dropout",
    "subclassed",
    "in_lists_dicts_and_tuples",
    "equal_but_untied",
    "encoder_decoder_and_autoencoder",
)
CONTAINERS = {
    "keras": (tiedio.save_tied, tiedio.load_tied),
    "stock.keras": (keras.saving.save_model, tiedio.load_tied),
    **scenarios.CONTAINERS,
}


def facts_of(model):
    return {"ties": scenarios.ties_of(model), "iterations": scenarios.iterations_of(model)}


def containers_for(name):
    """Lists the containers to try; what stock Keras writes of tied models has lost its ties."""
    kept = [one for one in CONTAINERS if name not in scenarios.NOT_CONTAINED.get(one, ())]
    return [one for one in kept if not one.startswith("stock") or name.endswith("untied")]


def save(folder, names):
    for name in names:
        keras.utils.set_random_seed(1)
        model = scenarios.SCENARIOS[name]()
        scenarios.train(model)
        for container in containers_for(name):
            save, _ = CONTAINERS[container]
            save(model, str(folder / f"{name}.{container}"))
        facts = facts_of(model)
        arrays = {"before": scenarios.state_of(model)}
        scenarios.train(model)
        arrays["after"] = scenarios.state_of(model)
        (folder / f"{name}.json").write_text(json.dumps(facts))
        np.savez(
            folder / f"{name}.npz",
            **{f"{moment}_{i}": a for moment, held in arrays.items() for i, a in enumerate(held)},
        )


def differences(folder, name, container):
    """Loads a file, and lists what is not as it was saved."""
    _, load = CONTAINERS[container]
    model = load(str(folder / f"{name}.{container}"))
    if facts_of(model) != json.loads((folder / f"{name}.json").read_text()):
        yield f"other facts: {facts_of(model)}"
    with np.load(folder / f"{name}.npz") as saved:

        def arrays(moment):
            return [saved[key] for key in saved.files if key.startswith(moment)]

        held = scenarios.state_of(model)
        if [a.tobytes() for a in held] != [a.tobytes() for a in arrays("before")]:
            yield "other values"
        scenarios.train(model)
        # Another version may compute in another order.
        for ours, theirs in zip(scenarios.state_of(model), arrays("after"), strict=True):
            if not np.allclose(ours, theirs, rtol=1e-4, atol=1e-5):
                yield f"trains otherwise, by up to {np.abs(ours - theirs).max():.2g}"
                break


def load(folder, names):
    passed, failed = 0, 0
    for name in names:
        for container in containers_for(name):
            try:
                found = list(differences(folder, name, container))
            except Exception:
                found = [traceback.format_exc()]
            passed, failed = passed + (not found), failed + bool(found)
            for one in found:
                print(f"{folder.name} {name}.{container}: {one}", file=sys.stderr)
    return passed, failed


if __name__ == "__main__":
    action, root = sys.argv[1], Path(sys.argv[2]).absolute()
    share, shares = map(int, (*sys.argv[3:], "0/1")[0].split("/"))
    names = NAMES[share::shares]
    mine = root / f"keras-{keras.__version__}"
    if action == "save":
        mine.mkdir(parents=True)
        save(mine, names)
    else:
        others = sorted(path for path in root.iterdir() if path != mine)
        counts = [load(folder, names) for folder in others]
        passed, failed = (sum(column) for column in zip(*counts, strict=True))
        print(f"Keras {keras.__version__} reads {', '.join(path.name for path in others)}:")
        print(f"{passed} passed, {failed} failed")
        sys.exit(bool(failed or not passed))
