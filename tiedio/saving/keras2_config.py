"""Turn a config in the layout of Keras 2 into a model, and into how it is compiled."""

import copy
import json
from typing import Any

import keras

from tiedio.errors import LoadError
from tiedio.formats.content import OldLayout
from tiedio.keras_versions import public_names
from tiedio.keras_versions.config_translation import HOW_IT_RUNS
from tiedio.model import renewal
from tiedio.model.keras_internals import json_utils, keras_option_scope, saving_utils
from tiedio.saving import compiling, configs
from tiedio.saving.deferral import Deferral


class OldConfig:
    """The configs of a file in this layout, within their scopes. `configs.Config` is its twin."""

    def __init__(self, old: OldLayout):
        self.differences: list[LoadError] = []
        self._old = old

    def problem(self) -> LoadError | None:
        """The error for what Keras 3 loads, and then computes otherwise than Keras 2 did."""
        old = self._old
        if old.keras_version.startswith("2.") and '"hard_sigmoid"' in json.dumps(old.model_config):
            return LoadError(
                f"Cannot load `{old.filepath}`: "
                "its `hard_sigmoid` is another function in Keras 3.\n"
                f"Expected: that of Keras 3. Received: that of Keras {old.keras_version}.\n"
                "Migrate it."
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
                "optimizer": _with_modules(config.get("optimizer_config"), "optimizers"),
                "loss": _with_modules(config.get("loss"), "losses"),
                "metrics": _with_modules(config.get("metrics"), "metrics"),
                "weighted_metrics": _with_modules(config.get("weighted_metrics"), "metrics"),
                "loss_weights": config.get("loss_weights"),
            }
            if renewal.compiles_as_keras(model):  # Keras itself does not read these back
                arguments |= {name: config[name] for name in HOW_IT_RUNS if name in config}
            # A copy: Keras changes what it reads.
            model.compile(**keras.saving.deserialize_keras_object(copy.deepcopy(arguments)))
            if not renewal.compiles_as_keras(model):
                self.differences = compiling.differences(model, arguments)
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


def _with_modules(config: Any, area: str) -> Any:
    """Copies a config with the module of each class that this area of Keras has."""

    def named(part: dict[str, Any]) -> dict[str, Any]:
        if "class_name" not in part:
            return part
        name = part["class_name"]
        module = f"keras.{area}" if hasattr(getattr(keras, area), str(name)) else None
        return {"module": module, "registered_name": name, **part}

    return public_names.copied(config, named)
