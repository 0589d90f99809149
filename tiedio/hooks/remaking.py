"""`quantize_tied` and `clone_tied`: what Keras makes of a model, with its ties."""

from collections.abc import Callable
from typing import Any

import keras

from tiedio.hooks.patching import routed
from tiedio.model.arguments import check_built, check_model


def quantize_tied(model: keras.Model, mode: str | None = None, **kwargs: Any) -> None:
    """Quantizes a model as `model.quantize` does, and keeps its ties.

    Keras gives each layer that it quantizes variables of its own. Where those of tied layers are
    equal in shape, dtype and value, they are made one again: the quantized weights, their
    scales and zero points. That is so of layers of one kind, in the modes `"int8"` and `"int4"`;
    `"float8"` leaves tied weights as they are. A layer that is used several times is quantized
    once, and stays one layer.

    A `TiedioWarning` names what could not be kept. That is what has other values, as layers that
    `"gptq"` and `"awq"` calibrate each for itself; other shapes or dtypes, as a `Dense` kernel
    that is tied to an `Embedding` table, and scaled along its other axis; what `filters` leave
    out; and layers outside the model that are tied to some in it.

    Like Keras, it leaves the optimizer as it was: compile a model again to train it further.

    Args:
        model: A built model.
        mode: The mode, as in Keras: of those the installed version has.
        **kwargs: What `model.quantize` takes in the installed version, such as `config`, and
            `filters`.

    Raises:
        ArgumentError: If something else is passed than a model.
        ModelNotBuiltError: If the model is not built.
        ValueError: From Keras, for a mode that it does not know, or a layer that is quantized.

    Example:

    >>> import keras, tiedio
    >>> encoder, decoder = keras.layers.Dense(64), keras.layers.Dense(64)
    >>> model = keras.Sequential([keras.Input((64,)), encoder, decoder])
    >>> _ = tiedio.tie(decoder, to=encoder)
    >>> tiedio.quantize_tied(model, "int8")
    >>> encoder.kernel_scale is decoder.kernel_scale, model.count_params()
    (True, 4224)
    """
    check_model(model)
    check_built(model, "quantizing")
    with routed():
        model.quantize(mode, **kwargs)


def clone_tied(
    model: keras.Model,
    input_tensors: Any = None,
    clone_function: Callable[[Any], Any] | None = None,
    call_function: Callable[..., Any] | None = None,
    recursive: bool = False,
) -> keras.Model:
    """Clones a model as `keras.models.clone_model` does, with ties like its own.

    The clone has new variables, with new values. What was made of layers that share a variable
    shares one, too, and none with the model; likewise of a layer that stands in several models
    inside the model. The clone is compiled if the model was; its optimizer is new.

    Args:
        model: The model.
        input_tensors: As in Keras.
        clone_function: As in Keras. A layer of the model that it returns stays in all of its ties,
            and what it makes of other layers is not tied to that.
        call_function: As in Keras.
        recursive: As in Keras.

    Returns:
        The clone. A `TiedioWarning` names what could not be tied in it: where `clone_function`
        makes layers with other weights.

    Raises:
        ArgumentError: If something else is passed than a model.
        ValueError: From Keras, for arguments that do not go with this kind of model.

    Example:

    >>> import keras, tiedio
    >>> encoder, decoder = keras.layers.Dense(4), keras.layers.Dense(4)
    >>> model = keras.Sequential([keras.Input((4,)), encoder, decoder])
    >>> _ = tiedio.tie(decoder, to=encoder)
    >>> clone = tiedio.clone_tied(model)
    >>> clone.layers[0].kernel is clone.layers[1].kernel, clone.layers[0].kernel is encoder.kernel
    (True, False)

    `from_config(model.get_config())` cannot do that: a config says nothing of ties.
    """
    check_model(model)
    with routed():
        return keras.models.clone_model(
            model, input_tensors, clone_function, call_function, recursive
        )
