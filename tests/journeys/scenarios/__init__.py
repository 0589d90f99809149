"""Small models that share variables: one builder for each way of sharing.

Each builder returns a compiled model, and is entered into `SCENARIOS` where it stands.
"""

import tiedio

from . import controls as controls
from . import flags as flags
from . import own_storing as own_storing
from . import several as several
from . import shared_layers as shared_layers
from . import training_state as training_state
from . import transposed as transposed
from .base import (
    CONTROLS,
    SCENARIOS,
    SEVERAL,
    arrays_of,
    compiled,
    data_for,
    inputs_for,
    iterations_of,
    models_in,
    state_of,
    tie_by_hand,
    train,
    variables_of,
)
from .between_layers import Mixture, TiedAutoencoder, two_paddings
from .by_hand import gamma_by_hand, kernel_by_hand
from .containers import CONTAINERS, NOT_CONTAINED
from .own_storing import Motto

# Of each kind one: these go from each backend to each other. Not `two_embeddings`, which trains
# otherwise on TensorFlow: of a row that is looked up twice Adam squares each gradient there, and
# their sum elsewhere. In `embedding_and_decoder` the decoder's makes the gradient one.
OF_EACH_KIND = (
    "two_paddings",
    "embedding_and_decoder",
    "kernel_by_hand",
    "gamma_by_hand",
    "subclassed",
    "blocks_with_everything_tied",
    "dense_then_inside_a_submodel",
    "discriminator_frozen_in_the_combined_model",
    "in_lists_dicts_and_tuples",
    "recurrent_cells",
    "non_trainable_state",
    "dropout",
    "one_seed_generator_in_two_layers",
    "bfloat16",
    "loss_scaling",
    "moving_averages",
    "momentum_and_schedule",
    "gradient_accumulation",
    "adamw",
    "rmsprop_with_clipping",
    "adafactor",
    "lion",
    "muon",
    "optimizers_chosen_by_path",
    "equal_but_untied",
    "three_views_of_one_table",
    "generator_discriminator_and_gan",
)
# These run every time, all others where slow tests are asked for.
OFTEN = (
    "two_paddings",
    "embedding_and_decoder",
    "kernel_by_hand",
    "subclassed",
    "discriminator_frozen_in_the_combined_model",
    "in_lists_dicts_and_tuples",
    "recurrent_cells",
    "one_seed_generator_in_two_layers",
    "loss_scaling",
    "moving_averages",
    "gradient_accumulation",
    "adamw",
    "three_views_of_one_table",
    "generator_discriminator_and_gan",
)

__all__ = [
    "CONTAINERS",
    "CONTROLS",
    "NOT_CONTAINED",
    "OFTEN",
    "OF_EACH_KIND",
    "SCENARIOS",
    "SEVERAL",
    "Mixture",
    "Motto",
    "TiedAutoencoder",
    "arrays_of",
    "compiled",
    "data_for",
    "gamma_by_hand",
    "inputs_for",
    "iterations_of",
    "kernel_by_hand",
    "models_in",
    "state_of",
    "tie_by_hand",
    "ties_of",
    "train",
    "two_paddings",
    "variables_of",
]


def ties_of(model):
    """Lists the tie groups by paths, which are the same where layers have other names."""
    return [
        [
            [f"{place.inner_path}/{place.attribute}" for place in group.places],
            list(group.shape),
            *getattr(group, "axes", ()),
        ]
        for group in tiedio.find_ties(model)
    ]
