"""Tell from a config alone which layers a model has, and where Keras stores their variables.

A file says little of a model by itself: in the layout of Keras 2 the weights of a nested
model are one list, and in that of Keras 3 no variable has a name.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# The variables of a layer in the order in which Keras 3 stores them, each with the config
# argument that switches it on, if there is one. (Keras 2 named some of them otherwise.)
_KERNEL = (("kernel", ""), ("bias", "use_bias"))
_SEPARABLE = (("depthwise_kernel", ""), ("pointwise_kernel", ""), ("bias", "use_bias"))
_AFFINE = (("gamma", "scale"), ("beta", "center"))
_RECURRENT = (("kernel", ""), ("recurrent_kernel", ""), ("bias", "use_bias"))
_TRAINABLE: dict[str, tuple[tuple[str, str], ...]] = {
    **dict.fromkeys(("Dense", "Conv1D", "Conv2D", "Conv3D"), _KERNEL),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), _KERNEL),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), _KERNEL),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), _SEPARABLE),
    **dict.fromkeys(("BatchNormalization", "LayerNormalization", "GroupNormalization"), _AFFINE),
    **dict.fromkeys(("SimpleRNNCell", "LSTMCell", "GRUCell", "ConvLSTMCell"), _RECURRENT),
    "EinsumDense": (("kernel", ""), ("bias", "bias_axes")),
    "Embedding": (("embeddings", ""),),
    "PReLU": (("alpha", ""),),
    "Normalization": (),
}
_NOT_TRAINABLE = {
    "BatchNormalization": ("moving_mean", "moving_variance"),
    "Normalization": ("mean", "variance", "count"),
}

# What of the config is the last axis of the kernel, or table, and how often.
_WIDTHS = {
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), ("filters", 1)),
    **dict.fromkeys(("Dense", "SimpleRNNCell"), ("units", 1)),
    "Embedding": ("output_dim", 1),
    "GRUCell": ("units", 3),
    "LSTMCell": ("units", 4),
}

# What of the config says how much of something else than its input a layer drops.
_RATES = ("dropout", "recurrent_dropout")

# Layers that are made of a cell, and the class of that.
_CELLS = {
    "SimpleRNN": "SimpleRNNCell",
    "LSTM": "LSTMCell",
    "GRU": "GRUCell",
    **dict.fromkeys(("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"), "ConvLSTMCell"),
}
# Layers that hold others, under the attributes that Keras stores them by.
_ATTENTION = ("query", "key", "value", "output")
_WRAPPERS = ("TimeDistributed", "SpectralNormalization", "Wrapper")

# Built-in layers that draw random numbers.
_RANDOM = r"(Spatial|Gaussian|Alpha)?Dropout(\dD)?|GaussianNoise|Random\w+"
# Built-in layers without variables. Of what is in no list here, only the file can tell.
_BARE = re.compile(
    f"{_RANDOM}|"
    "InputLayer|Activation|ReLU|LeakyReLU|ELU|Softmax|ThresholdedReLU|Flatten|Reshape|Permute|"
    "RepeatVector|Masking|Lambda|Add|Subtract|Multiply|Average|Maximum|Minimum|Concatenate|Dot|"
    "Rescaling|Resizing|Identity|UnitNormalization|ActivityRegularization|CenterCrop|"
    r"(Global)?(Max|Average)Pool(ing)?\dD|(UpSampling|ZeroPadding|Cropping)\dD"
)


@dataclasses.dataclass(frozen=True)
class Part:
    """A layer, or a part of one, that may have variables of its own.

    Attributes:
        inner_path: Its path in Keras' walk, such as `"layers/lstm/cell"`.
        name: The names of the layers that lead to it, such as `"inner/lstm"`.
        class_name: Its class.
        config: Its config.
        variables: The names of its variables, as Keras 3 stores them; `None` if unknown.
        trainable: Those of them that optimizers train.
    """

    inner_path: str
    name: str
    class_name: str
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    variables: tuple[str, ...] | None = None
    trainable: frozenset[str] = frozenset()

    @property
    def layer(self) -> str:
        """The name of the layer itself."""
        return self.name.rpartition("/")[2]

    @property
    def is_random(self) -> bool:
        """Whether it draws random numbers while it is trained, as far as its config tells."""
        if re.fullmatch(_RANDOM, self.class_name):
            return self.config.get("rate") != 0
        return any(self.config.get(rate) for rate in _RATES)

    @property
    def width(self) -> int | None:
        """The last axis of its kernel, or of its table, by its config; `None` if unknown."""
        option, times = _WIDTHS.get(self.class_name, ("", 0))
        number = self.config.get(option)
        return number * times if isinstance(number, int) else None

    def may_train(self, number: int) -> bool:
        """Whether optimizers train a variable, by its number, if the layer is not frozen."""
        if self.variables is None or number >= len(self.variables):
            return True
        return self.variables[number] not in _NOT_TRAINABLE.get(self.class_name, ())


def layers(config: Mapping[str, Any]) -> dict[str, list[Part]]:
    """Lists the parts of each top-level layer of a model, in the order of the model.

    Args:
        config: The config of the model as Keras 3 writes it, or as an older version did.

    Returns:
        By the layer's name; nothing for a model that is made by a class of its own.
    """
    found: dict[str, list[Part]] = {}
    for inner_path, layer in _numbered("layers", _config(config).get("layers")):
        name = _name(layer)
        found.setdefault(name, []).extend(_parts(layer, inner_path, name, True))
    return found


def random_layers(config: Mapping[str, Any]) -> list[str]:
    """Names the layers of a model that draw random numbers while they are trained."""
    return [part.name for held in layers(config).values() for part in held if part.is_random]


def snake_case(class_name: str) -> str:
    """Spells the name of a class as Keras does in paths."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _parts(layer: Mapping[str, Any], inner_path: str, name: str, trainable: bool) -> Iterator[Part]:
    """Yields a layer's parts in the order in which it lists their variables."""
    class_name, config = _class(layer), _config(layer)
    trainable = trainable and config.get("trainable", True) is not False

    def within(attribute: str, part: Any, called: str = "") -> Iterator[Part]:
        if isinstance(part, Mapping):
            path = "/".join(filter(None, (name, called)))
            yield from _parts(part, f"{inner_path}/{attribute}", path, trainable)

    if class_name in _CELLS:
        yield from within("cell", {"class_name": _CELLS[class_name], "config": config})
    elif class_name == "RNN":
        yield from within("cell", config.get("cell"))
    elif class_name == "StackedRNNCells":
        for cell_path, cell in _numbered(f"{inner_path}/cells", config.get("cells")):
            yield from _parts(cell, cell_path, f"{name}/{_name(cell)}", trainable)
    elif class_name == "Bidirectional":
        forward = config.get("layer")
        yield from within("forward_layer", forward, "forward")
        yield from within("backward_layer", config.get("backward_layer") or forward, "backward")
    elif class_name == "MultiHeadAttention":
        dense = {**config, "bias_axes": config.get("use_bias", True), "dropout": 0}
        for called in _ATTENTION:
            part = {"class_name": "EinsumDense", "config": dense}
            yield from within(f"{called}_dense", part, called)
        yield Part(inner_path, name, class_name, config, variables=())
    elif class_name in _WRAPPERS:
        yield from within("layer", config.get("layer"))
        if class_name == "SpectralNormalization":
            yield Part(inner_path, name, class_name, config)
    elif "layers" in config:
        for layer_path, inner in _numbered(f"{inner_path}/layers", config.get("layers")):
            yield from _parts(inner, layer_path, f"{name}/{_name(inner)}", trainable)
    else:
        part = Part(inner_path, name, class_name, config)
        yield dataclasses.replace(part, **_own_variables(part, trainable))


def _own_variables(part: Part, trainable: bool) -> dict[str, Any]:
    """Returns which variables a part has itself, and which are trained; nothing if unknown."""
    if part.class_name not in _TRAINABLE:
        return {"variables": ()} if _BARE.fullmatch(part.class_name) else {}
    config = part.config
    names = _TRAINABLE[part.class_name]
    own = [one for one, needs in names if not needs or config.get(needs, True)]
    others = _NOT_TRAINABLE.get(part.class_name, ())
    if part.class_name == "Normalization" and config.get("mean") is not None:
        others = ()
    return {"variables": (*own, *others), "trainable": frozenset(own if trainable else ())}


def _numbered(path: str, items: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Gives the items of a list the paths that Keras gives them: by class, and numbered."""
    counts = collections.Counter[str]()
    for item in items if isinstance(items, Sequence) else ():
        if isinstance(item, Mapping):
            kind = snake_case(_class(item))
            yield f"{path}/{kind}_{counts[kind]}" if counts[kind] else f"{path}/{kind}", item
            counts[kind] += 1


def _config(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    config = layer.get("config")
    if isinstance(config, list):  # of the earliest Sequential
        return {"layers": config}
    return config if isinstance(config, Mapping) else {}


def _class(layer: Mapping[str, Any]) -> str:
    """Names the class of a layer: what stands before `>` is the package it is registered in."""
    name = str(layer.get("class_name", "")).rpartition(">")[2]
    return "Functional" if name == "Model" else name


def _name(layer: Mapping[str, Any]) -> str:
    """Names a layer; some configs do so only outside or only inside."""
    name = _config(layer).get("name") or layer.get("name")
    return str(name) if name else snake_case(_class(layer))


def configs_of(config: Any, models: Mapping[str, str]) -> dict[str, Any]:
    """Finds the config of each of several models in that of the one that holds them.

    Args:
        config: A graph in which each is a layer, or that of `Models`.
        models: The inner_path of each, by its name.

    Returns:
        The configs by inner_path; none if there are others.
    """
    names = {path: name for name, path in reversed([*models.items()])}
    held, paths = _config(config), [*dict.fromkeys(models.values())]
    parts: Any = held.get("layers")
    if isinstance(named := held.get("models"), Mapping):
        parts = [named[names[path]] for path in paths] if named.keys() == models.keys() else []
    parts = parts if isinstance(parts, list) else []
    parts = [one for one in parts if isinstance(one, Mapping) and _class(one) != "InputLayer"]
    return dict(zip(paths, parts, strict=True)) if len(parts) == len(paths) else {}
