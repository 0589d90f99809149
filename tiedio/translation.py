import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Translated:
    config: dict[str, Any]
    notes: tuple[str, ...]
    untranslated: tuple[str, ...]


def translated(config, training_config, keras_version):
    config = dict(config)
    if training_config:
        config["compile_config"] = {"optimizer": training_config.get("optimizer_config")}
    return Translated(config, (), ())
