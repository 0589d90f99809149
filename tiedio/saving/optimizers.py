"""Let every optimizer of a model be built for the variables of the record, in its order."""

from typing import Any

import keras

from tiedio.errors import LoadError, listed
from tiedio.model import renewal
from tiedio.model.walk import Walk
from tiedio.record.record import Record
from tiedio.saving.deferral import Deferral


def match_optimizers(
    walk: Walk,
    record: Record,
    deferral: Deferral,
    everything: Walk | None = None,
) -> tuple[bool, LoadError | None]:
    """Makes every optimizer be built for the variables it was built for when saved.

    One that the record does not mention is built for what is trainable.

    Args:
        walk: The saveables of the model that are not left as they are.
        record: What to restore.
        deferral: The variables of the model that have no value yet.
        everything: All of its saveables, if it was in use before. What was built for something
            then, and is not in the record, stays as it is.

    Returns:
        Whether an optimizer took the place of another, and an error that names those that the
        model does not have.
    """
    # Of all, as `walk` may lack what an optimizer that is among them trains.
    places = (everything or walk).places
    by_path = {visit.inner_path: visit.saveable for visit in walk.visits}
    wanted = {
        inner_path: [places[place].item for place in trained or () if place in places]
        for inner_path, trained in record.optimizer_variables.items()
        if trained is None or not renewal.keeps_to_itself(by_path.get(inner_path), trained)
    }
    model, optimizer = by_path.get(""), by_path.get("optimizer")
    if (
        isinstance(optimizer, keras.optimizers.Optimizer)
        and not (everything and optimizer.built)
        and isinstance(model, keras.Model)
        and renewal.compiles_as_keras(model)
    ):
        wanted.setdefault("optimizer", model.trainable_variables)
    missing = []
    replaced = False
    for inner_path, trained in wanted.items():
        optimizer = by_path.get(inner_path)
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            missing += [inner_path] if trained else []
            continue
        built = renewal.optimizer_variables(optimizer) or []
        if list(map(id, built)) != list(map(id, trained)):
            parent, _, attribute = inner_path.rpartition("/")
            matching = built_optimizer(optimizer, trained, deferral)
            replaced |= matching is not optimizer
            renewal.set_optimizer(by_path[parent], attribute, matching)
    if not missing:
        return replaced, None
    return replaced, LoadError(
        f"Cannot resume {listed(missing)}: the model has no such optimizer.\n"
        "Expected: an optimizer. Received: none, as when the `compile` of a class is its own.\n"
        "Give the class a `compile_from_config`, or pass `strict=False`."
    )


def built_optimizer(optimizer: Any, trained: list[Any], deferral: Deferral) -> Any:
    """Builds an optimizer for these variables, or one like it if it was built for others."""
    fresh = [renewal.renewed_optimizer(optimizer) if optimizer.built else optimizer]

    def build() -> Any:
        # A second attempt begins with another one; it cannot be made without values.
        attempt = fresh.pop() if fresh else renewal.renewed_optimizer(optimizer)
        attempt.build(trained)
        return attempt

    return deferral.build(build) if trained else fresh[0]
