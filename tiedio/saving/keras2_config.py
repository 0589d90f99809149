"""Turn a config in the layout of Keras 2 into a model, and into how it is compiled."""

import json
from typing import Any

import keras

from tiedio.errors import LoadError
from tiedio.formats.content import OldLayout
from tiedio.keras_versions import public_names
from tiedio.model import renewal
from tiedio.model.keras_internals import json_utils, keras_option_scope, saving_utils
from tiedio.saving import configs
from tiedio.saving.deferral import Deferral

# What Keras writes of `compile`, and does not read back.
_HOW_IT_RUNS = ("run_eagerly", "steps_per_execution", "jit_compile")


class OldConfig:
    """The configs of a file in this layout, within their scopes. `configs.Config` is its twin."""

    def __init__(self, old: OldLayout):
        self._old = old

    def problem(self) -> LoadError | None:
        """The error for what Keras 3 loads, and then computes otherwise than Keras 2 did."""
        old = self._old
        if old.keras_version.startswith("2.") and '"hard_sigmoid"' in json.dumps(old.model_config):
            return LoadError(
                f"Cannot load `{old.filepath}`: "
                "its `hard_sigmoid` is another function in Keras 3.\n"
                f"Expected: that of Keras 3. Received: that of Keras {old.keras_version}.\n"
                "Migrate it, or pass `strict=False` to go on with the other function."
            )
        return None

    def build(self, deferral: Deferral) -> keras.Model:
        """Builds the model, uncompiled."""
        with configs.explained(self._old.model_config, self._old.filepath):
            model = build(self._old.model_config or {}, deferral)
        configs.check_model(model, self._old.filepath, keras.Model)
        return model

    def compile(self, model: keras.Model, deferral: Deferral) -> bool:
        """Compiles the model if it was; its optimizer is left unbuilt."""
        config = public_names.with_public_names(self._old.training_config)
        if not config:
            return False
        with configs.explained(config, self._old.filepath):
            arguments = {
                "optimizer": _revived(config.get("optimizer_config"), "optimizers"),
                "loss": _revived(config.get("loss"), "losses"),
                "metrics": _revived(config.get("metrics"), "metrics"),
                "weighted_metrics": _revived(config.get("weighted_metrics"), "metrics"),
                "loss_weights": config.get("loss_weights"),
            }
            if renewal.compiles_as_keras(model):
                arguments |= {name: config[name] for name in _HOW_IT_RUNS if name in config}
            model.compile(**arguments)
        return True


def build(config: dict[str, Any], deferral: Deferral) -> Any:
    """Builds a model of its config, uncompiled."""
    known = keras.saving.get_custom_objects()

    def make() -> Any:
        # Keras changes the config that it reads.
        fresh = json_utils.decode(json.dumps(config))
        with keras_option_scope(use_legacy_config=True):
            return saving_utils.model_from_config(fresh, custom_objects=dict(known))

    return deferral.build(make)


def _revived(config: Any, area: str) -> Any:
    """Makes objects of their configs; names that Keras knows are left to `compile`."""
    if isinstance(config, list):
        return [_revived(one, area) for one in config]
    if isinstance(config, str):
        return keras.saving.get_registered_object(config) or config
    if not isinstance(config, dict):
        return config
    if "class_name" not in config:
        return {name: _revived(one, area) for name, one in config.items()}
    name = config["class_name"]
    module = f"keras.{area}" if hasattr(getattr(keras, area), str(name)) else None
    return keras.saving.deserialize_keras_object(
        {"module": module, "registered_name": name, **config}
    )
