"""What stock Keras says of models with tied weights, why, and what to do instead.

`python tests/support/messages.py` writes it into `docs/keras-messages.md` as a table;
`test_messages.py` brings every message about, and tries every cure.
"""

import dataclasses
import re
import warnings
from collections.abc import Callable

import keras
import numpy as np
import pages
from checkout import ROOT

import tiedio
from tiedio import files

PAGE = ROOT / "docs" / "keras-messages.md"
DATA = np.ones((8, 4), "float32")


@dataclasses.dataclass
class Message:
    """A message, with `…` for what differs from model to model.

    Attributes:
        words: As Keras 3.15 puts it.
        meaning: What it means.
        cure: What to do, in one line.
        symptom: Brings it about, in the working directory.
        cured: Does what `cure` says, after `symptom`, and returns a model in order.
        since: The first version of Keras that is known to say it.
        otherwise: What else it says, elsewhere.
    """

    words: str
    meaning: str
    cure: str
    symptom: Callable[[], object]
    cured: Callable[[], keras.Model]
    since: tuple[int, ...] = (3, 10)
    otherwise: dict[str, str] = dataclasses.field(default_factory=dict)

    def matches(self, said):
        """Whether it is among what was said."""
        words = self.otherwise.get(keras.backend.backend(), self.words)
        pattern = ".*".join(re.escape(part.strip()) for part in words.split("…"))
        return re.search(pattern, said, re.DOTALL) is not None


def autoencoder(make=keras.layers.Dense, shape=(4,), **options):
    layers = [make(shape[-1], name=name, **options) for name in ("encoder", "decoder")]
    return keras.Sequential([keras.Input(shape), *layers], name="autoencoder")


def tied(run_eagerly=False):
    model = autoencoder()
    encoder, decoder = model.layers
    tiedio.tie(decoder, to=encoder)
    model.compile(optimizer="adam", loss="mse", run_eagerly=run_eagerly)
    return model


def trained(model):
    model.fit(DATA, DATA, verbose=0)
    return model


def replace_by_hand(layer, owner, attribute):
    layer._untrack_variable(getattr(layer, attribute))
    layer._tracker.unlock()
    setattr(layer, attribute, getattr(owner, attribute))
    layer._tracker.lock()


def assign():
    encoder, decoder = autoencoder().layers
    decoder.kernel = encoder.kernel


def tie():
    model = autoencoder()
    encoder, decoder = model.layers
    tiedio.tie(decoder, to=encoder)
    return model


def separate_by_hand():
    model = trained(tied(run_eagerly=True))
    replace_by_hand(model.layers[1], autoencoder().layers[1], "_kernel")
    trained(model)


def untie():
    model = trained(tied(run_eagerly=True))
    encoder, decoder = model.layers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tiedio.TiedioWarning)  # the optimizer starts anew
        tiedio.untie(decoder, weights=["kernel"])
    assert encoder.kernel is not decoder.kernel
    return trained(model)


def load():
    trained(tied()).save("model.keras")
    keras.saving.load_model("model.keras")


def migrate():
    files.migrate("model.keras", "tied.keras")
    model = tiedio.load_tied("tied.keras")
    assert iterations_of(model) == 1
    return model


def load_weights():
    trained(tied()).save_weights("model.weights.h5")
    tied().load_weights("model.weights.h5")


def load_tied_weights():
    model = tied()
    tiedio.load_tied_weights(model, "model.weights.h5")
    assert iterations_of(model) == 1
    return model


def iterations_of(model):
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def one_layer_in_two_models(*, comes_first):
    """Saves such a model, and loads it."""
    shared, inputs, inner = (
        keras.layers.Dense(4, name="shared"),
        keras.Input((4,)),
        keras.Input((4,)),
    )
    part = keras.Model(inner, shared(inner))
    outputs = part(shared(inputs)) if comes_first else shared(part(inputs))
    keras.Model(inputs, outputs).save("model.keras")
    keras.saving.load_model("model.keras")


def load_tied():
    model = tiedio.load_tied("model.keras")
    assert model.count_params() == 20
    return model


def save_what_is_tied_by_hand():
    model = autoencoder(keras.layers.SeparableConv1D, (9, 2), kernel_size=3, padding="same")
    encoder, decoder = model.layers
    replace_by_hand(decoder, encoder, "depthwise_kernel")
    model.save("model.keras")
    tiedio.save_tied(model, "tied.keras")
    keras.saving.load_model("model.keras")


def load_what_is_tied_by_hand():
    model = tiedio.load_tied("tied.keras")
    encoder, decoder = model.layers
    assert encoder.depthwise_kernel is decoder.depthwise_kernel
    return model


def load_h5():
    model = keras.Sequential([keras.Input((4,)), tie()])
    model.save("model.h5")
    tiedio.save_tied(model, "tied.h5")
    keras.saving.load_model("model.h5")


def load_tied_h5():
    keras.saving.load_model("tied.h5")
    model = tiedio.load_tied("tied.h5")
    assert model.count_params() == 20
    return model


def set_weights():
    model = tie()
    keras.models.clone_model(model).set_weights(model.get_weights())


def set_weights_of_what_is_tied():
    model = tie()
    clone = tiedio.clone_tied(model)
    clone.set_weights(model.get_weights())
    return clone


MESSAGES = [
    Message(
        "You cannot add new elements of state (variables or sub-layers) to a layer that is already"
        " built.",
        "`decoder.kernel = encoder.kernel`: Keras has no public way to share a variable.",
        "`tiedio.tie(decoder, to=encoder)`",
        assign,
        tie,
    ),
    Message(
        "Skipping variable loading for optimizer '…', because it has 10 variables whereas the"
        " saved optimizer has 6 variables.",
        "Loading made copies of the tied variables, and dropped the optimizer's state.",
        "`tiedio.load_tied` for a file of `save_tied`; for one of stock Keras"
        " `tiedio migrate model.keras tied.keras` before",
        load,
        migrate,
    ),
    Message(
        "Skipping variable loading for optimizer '…', because it has 2 variables whereas the"
        " saved optimizer has 6 variables.",
        "The model has not been trained yet, so its optimizer has no slots to load into.",
        '`tiedio.load_tied_weights(model, "model.weights.h5")`, which builds it',
        load_weights,
        load_tied_weights,
    ),
    Message(
        "A total of 1 objects could not be loaded. … Layer 'shared' expected 2 variables, but"
        " received 0 variables during loading.",
        "One layer is in a nested model and outside it. Its weights are in the file, at one of its"
        " two paths.",
        '`tiedio.load_tied("model.keras")`',
        lambda: one_layer_in_two_models(comes_first=False),
        load_tied,
    ),
    Message(
        "Skipping nested container at '_operations_by_depth/container': no matching group found in"
        " the saved file.",
        "The same; the error above follows.",
        '`tiedio.load_tied("model.keras")`',
        lambda: one_layer_in_two_models(comes_first=False),
        load_tied,
        since=(3, 15),
    ),
    Message(
        "Output with path `` is not connected to `inputs`",
        "The same, and the layer comes before the nested model.",
        '`tiedio.load_tied("model.keras")`',
        lambda: one_layer_in_two_models(comes_first=True),
        load_tied,
        since=(3, 15),
    ),
    Message(
        "A total of 1 objects could not be loaded. … The shape of the target variable and the shape"
        " of the target value in `variable.assign(value)` must match.",
        "A variable was tied by hand, and is now in another place of a layer that Keras stores by"
        " position.",
        '`tiedio.save_tied(model, "model.keras")`, and `load_tied`; or tie by `tiedio.tie`',
        save_what_is_tied_by_hand,
        load_what_is_tied_by_hand,
    ),
    Message(
        "Weight count mismatch for layer #0 (named autoencoder in the current model, autoencoder in"
        " the save file). Layer expects 4 weight(s). Received 2 saved weight(s)",
        "An `.h5` file of layers that are tied inside a nested model: it lists what they share"
        " once.",
        '`tiedio.save_tied(model, "model.h5")`, which Keras loads too',
        load_h5,
        load_tied_h5,
    ),
    Message(
        "You called `set_weights(weights)` on layer 'autoencoder' with a weight list of length 2,"
        " but the layer was expecting 4 weights.",
        "`clone_model` does not keep ties.",
        "`clone = tiedio.clone_tied(model)`",
        set_weights,
        set_weights_of_what_is_tied,
    ),
    Message(
        "Unknown variable: … This optimizer can only be called for the variables it was"
        " originally built with.",
        "Variables were tied or separated by hand after the optimizer was built.",
        "`tiedio.tie` and `untie`, which renew the optimizer; or compile again",
        separate_by_hand,
        untie,
        otherwise={
            "jax": "Argument `optimizer_variables` must be a list of tensors corresponding 1:1 to"
            " the trainable variables list that the optimizer was built with."
        },
    ),
]


def table():
    """Returns the messages as Markdown."""
    rows = [
        f"| {' or '.join(map(quoted, [message.words, *message.otherwise.values()]))} "
        f"| {message.meaning} | {message.cure} |"
        for message in MESSAGES
    ]
    return "\n".join(["| stock Keras says | because | instead |", "|---|---|---|", *rows])


def quoted(words):
    fence = "`" * (1 + max(map(len, re.findall("`+", words)), default=0))
    room = " " * (len(fence) > 1)
    return f"{fence}{room}{words}{room}{fence}"


def written(page):
    """Returns the page with the table as it is now."""
    return pages.written(page, "messages.py", table())


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
