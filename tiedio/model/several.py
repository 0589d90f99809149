"""Several models as one, for whatever goes through a model: saving, loading, tables."""

import types
from collections.abc import Mapping, Sequence
from typing import Any

import keras


@keras.saving.register_keras_serializable("tiedio")
class Models(keras.Model):
    """Several models by name. They know nothing of it, and what they share is found in it.

    Args:
        models: The models; one may be part of another one, or have two names.
    """

    optimizer = None  # Keras' callbacks ask; each of the models has its own

    def __init__(self, models: Mapping[str, keras.Layer]):
        super().__init__(name="models")
        each = {id(model): model for model in models.values()}
        self._layers = [*each.values()]
        self._numbers = {name: [*each].index(id(model)) for name, model in models.items()}
        self.built = True

    @property
    def models(self) -> Mapping[str, Any]:
        """The models, by name."""
        held = {name: self._layers[number] for name, number in self._numbers.items()}
        return types.MappingProxyType(held)  # no dict: Keras would visit its members once more

    def named(self, each: Sequence[Any]) -> dict[str, Any]:
        """Names what there is of each of the `layers`; a second name of one says the first."""
        first = {number: name for name, number in reversed(self._numbers.items())}
        return {
            name: each[number] if first[number] == name else first[number]
            for name, number in self._numbers.items()
        }

    def _obj_type(self) -> str:
        # Of such a one Keras visits the `layers`: paths are those of the graph that holds the
        # models in a file, for whoever loads it without tiedio.
        return "Functional"

    def get_config(self) -> dict[str, Any]:
        return {"models": self.named([*map(keras.saving.serialize_keras_object, self._layers)])}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Models":
        configs = config["models"]
        first = {name: name if isinstance(one, dict) else one for name, one in configs.items()}
        made = {
            name: keras.saving.deserialize_keras_object(configs[name], custom_objects)
            for name in dict.fromkeys(first.values())
        }
        if others := [name for name, one in made.items() if not isinstance(one, keras.Layer)]:
            raise TypeError(f"{others} are no models")
        return cls({name: made[first[name]] for name in configs})


def each(model: Any) -> list[Any]:
    """Lists the models that were given: several, or one."""
    return model.layers if isinstance(model, Models) else [model]


def as_given(model: Any) -> Any:
    """Returns several models as a dict, or the one."""
    return dict(model.models) if isinstance(model, Models) else model
