"""What Keras 2 called otherwise than Keras 3 does, as tables.

To add what a version renamed, add a row where it belongs; `config_translation` applies them.
Rows say which versions wrote it and why it is translated so, and are applied to files of Keras 2
only.
What may not change: a row keeps outputs exactly. What has no equal in Keras 3 is in
`WITHOUT_EQUAL`, or in the row of an argument of which only the `harmless` values are left out.
"""

import dataclasses
from typing import Any

LAYERS = "keras.layers"
INITIALIZERS = "keras.initializers"
OPTIMIZERS = "keras.optimizers"
LOSSES = "keras.losses"
METRICS = "keras.metrics"


@dataclasses.dataclass(frozen=True)
class Argument:
    """An argument that Keras 3 does not know by this name.

    Attributes:
        classes: The classes that have it; all of the module if empty.
        old: Its name.
        versions: Of Keras 2, that write it.
        why: It is renamed or left out.
        harmless: The values that may be left out; any if `None`.
        new: Its name in Keras 3; empty if it is left out there.
        role: The module of the classes.
    """

    classes: tuple[str, ...]
    old: str
    versions: str
    why: str
    harmless: tuple[Any, ...] | None = None
    _: dataclasses.KW_ONLY
    new: str = ""
    role: str = LAYERS


@dataclasses.dataclass(frozen=True)
class Value:
    """A value that Keras 3 spells otherwise, or that has another default there.

    Attributes:
        classes: The classes that have it; all of the module if empty.
        argument: Its name in Keras 3.
        old: The value, or `ABSENT`.
        new: The value in Keras 3.
        versions: Of Keras 2, that write it.
        why: It is so.
        role: The module of the classes.
    """

    classes: tuple[str, ...]
    argument: str
    old: Any
    new: Any
    versions: str
    why: str
    _: dataclasses.KW_ONLY
    role: str = LAYERS


ABSENT = object()

# Layers of another name: what Keras 3 calls them, and the arguments that make them the same.
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    # tf.keras 1.x and 2.0, which had two of them.
    "BatchNormalizationV1": ("BatchNormalization", {}),
    "BatchNormalizationV2": ("BatchNormalization", {}),
    # 2.2 to 2.15; both are arguments now.
    "SyncBatchNormalization": ("BatchNormalization", {"synchronized": True}),
    "ThresholdedReLU": ("ReLU", {}),
}

_SEPARABLE = ("SeparableConv1D", "SeparableConv2D", "DepthwiseConv1D", "DepthwiseConv2D")
_CONVOLUTIONS = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose", *_SEPARABLE)
_RECURRENT = (
    *("RNN", "SimpleRNN", "SimpleRNNCell", "LSTM", "LSTMCell", "GRU", "GRUCell"),
    *("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "StackedRNNCells", "Bidirectional"),
)
_RANDOM = (
    *("RandomBrightness", "RandomContrast", "RandomFlip"),
    *("RandomRotation", "RandomTranslation", "RandomZoom"),
)
# They take less than other layers do.
_WITHOUT_BASE = ("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "Discretization")
_LOOKUPS = ("IntegerLookup", "StringLookup", "TextVectorization")
_NORMALIZATION = ("BatchNormalization",)
_OFF = (False, None)  # harmless: what the argument would switch on is off

ARGUMENTS: tuple[Argument, ...] = (
    Argument(("InputLayer",), "batch_input_shape", "all", "renamed", new="batch_shape"),
    Argument((), "batch_input_shape", "all", "an InputLayer has it instead"),
    Argument((), "input_dtype", "2.2", "an InputLayer has it instead"),
    Argument(("InputLayer",), "ragged", "2.1 on", "new in Keras 3.11", _OFF),
    Argument(("Embedding",), "input_length", "all", "it was for shapes only"),
    Argument(("LeakyReLU",), "alpha", "all", "renamed", new="negative_slope"),
    Argument(("ReLU",), "theta", "all", "of ThresholdedReLU", new="threshold"),
    Argument(_CONVOLUTIONS, "groups", "2.3 on", "inherited, unused", (1, None)),
    Argument(_SEPARABLE, "kernel_initializer", "all", "inherited, unused"),
    Argument(_SEPARABLE, "kernel_regularizer", "all", "inherited, unused"),
    Argument(_SEPARABLE, "kernel_constraint", "all", "inherited, unused"),
    Argument(_RECURRENT, "implementation", "all", "chose between equal ways"),
    Argument(_RECURRENT, "time_major", "1.14 on", "inputs have the batch first in Keras 3", _OFF),
    Argument(_RECURRENT, "num_constants", "all", "cells take no constants in Keras 3", (0, None)),
    Argument(
        ("StackedRNNCells",),
        "reverse_state_order",
        "1.13 on",
        "Keras 3 has one order of states",
        _OFF,
    ),
    Argument(_NORMALIZATION, "renorm", "tf.keras", "unused in Keras 3", _OFF),
    Argument(_NORMALIZATION, "renorm_clipping", "tf.keras", "unused in Keras 3", (None,)),
    Argument(_NORMALIZATION, "renorm_momentum", "tf.keras", "unused in Keras 3"),
    Argument(_NORMALIZATION, "fused", "tf.keras", "unused in Keras 3"),
    Argument(_NORMALIZATION, "virtual_batch_size", "tf.keras", "unused in Keras 3", (None,)),
    Argument(_NORMALIZATION, "adjustment", "tf.keras", "unused in Keras 3", (None,)),
    Argument(("MultiHeadAttention",), "query_shape", "2.4 on", "for building"),
    Argument(("MultiHeadAttention",), "key_shape", "2.4 on", "for building"),
    Argument(("MultiHeadAttention",), "value_shape", "2.4 on", "for building"),
    Argument(
        ("MultiHeadAttention", "Softmax"),
        "softmax_robust_masking",
        "tf-keras 2.16 on",
        "Keras 3 masks in one way",
        _OFF,
    ),
    Argument(
        ("Attention", "AdditiveAttention"),
        "causal",
        "2.1 to 2.9",
        "it is an argument of the call now, `use_causal_mask`",
        _OFF,
    ),
    Argument(_WITHOUT_BASE, "trainable", "all", "unused: it has no weights"),
    Argument(_WITHOUT_BASE, "noise_shape", "all", "unused: it has no weights"),
    Argument(_RANDOM, "rng_type", "2.9 on", "Keras 3 seeds in one way"),
    Argument(_LOOKUPS, "vocabulary_size", "2.6 on", "told by the vocabulary"),
    Argument(("CategoryEncoding",), "max_tokens", "2.3 to 2.5", "renamed", new="num_tokens"),
    Argument(("Discretization",), "bins", "2.3 to 2.5", "renamed", new="bin_boundaries"),
    Argument((), "dtype", "tf.keras 1.x", "it is given when called", role=INITIALIZERS),
    Argument((), "partition_info", "tf.keras 1.x", "it is given when called", role=INITIALIZERS),
    Argument((), "lr", "2.2", "renamed", new="learning_rate", role=OPTIMIZERS),
    Argument(("Nadam",), "schedule_decay", "2.2", "constant now", (0.004, None), role=OPTIMIZERS),
    Argument((), "is_legacy_optimizer", "2.11 on", "told old optimizers from new", role=OPTIMIZERS),
    Argument((), "jit_compile", "2.11 on", "an argument of `compile` now", role=OPTIMIZERS),
    Argument(
        ("LossScaleOptimizer",),
        "dynamic",
        "2.4 on",
        "Keras 3 always adapts the scale",
        (True, None),
        role=OPTIMIZERS,
    ),
)

VALUES: tuple[Value, ...] = (
    Value(("GRU", "GRUCell"), "reset_after", ABSENT, False, "2.2", "it is True now"),
    Value(("CategoryEncoding",), "output_mode", "binary", "multi_hot", "to 2.5", "renamed"),
    Value(("TextVectorization",), "output_mode", "binary", "multi_hot", "to 2.5", "renamed"),
    Value(("TextVectorization",), "output_mode", "tf-idf", "tf_idf", "to 2.5", "renamed"),
    Value(
        ("VarianceScaling",),
        "distribution",
        "normal",
        "truncated_normal",
        "2.2, tf.keras 1.x",
        "it was truncated then, too",
        role=INITIALIZERS,
    ),
    Value((), "reduction", "auto", "sum_over_batch_size", "2.3 on", "what it meant", role=LOSSES),
    Value((), "epsilon", None, 1e-7, "2.2", "it stood for `epsilon()`", role=OPTIMIZERS),
    Value(
        ("Adagrad",),
        "initial_accumulator_value",
        ABSENT,
        0.0,
        "2.2",
        "it is 0.1 now",
        role=OPTIMIZERS,
    ),
)

# Layers that nothing in Keras 3 equals, and what to do.
_AS_FUNCTION = "wrap the operation in a layer of your own, and give it as `custom_objects`"
_CUDNN = (
    "its kernels are transposed and it has two biases: "
    "load it in the Keras that wrote it and copy its weights into {} there"
)
_LOCAL = "Keras 3 has no local convolutions: register a layer of your own by that name"
WITHOUT_EQUAL: dict[str, str] = {
    "CuDNNLSTM": _CUDNN.format("LSTM"),
    "CuDNNGRU": _CUDNN.format("GRU(reset_after=True)"),
    "LocallyConnected1D": _LOCAL,
    "LocallyConnected2D": _LOCAL,
    "TensorFlowOpLayer": f"it runs an operation of TensorFlow: {_AS_FUNCTION}",
    "TFOpLambda": f"it runs a function of TensorFlow: {_AS_FUNCTION}",
    "SlicingOpLambda": f"it slices a tensor of TensorFlow: {_AS_FUNCTION}",
    "ClassMethod": f"it runs a method of TensorFlow: {_AS_FUNCTION}",
    "InstanceMethod": f"it runs a method of TensorFlow: {_AS_FUNCTION}",
    "InstanceProperty": f"it reads a property of TensorFlow: {_AS_FUNCTION}",
    "AddLoss": "write the loss into `call` of a layer, with `add_loss`",
    "AddMetric": "give the metric to `compile`",
    "Merge": "it is of Keras 1: save the model with Keras 2 first",
    "MaxoutDense": "it is of Keras 1: save the model with Keras 2 first",
    "Highway": "it is of Keras 1: save the model with Keras 2 first",
    "DenseFeatures": "feature columns are gone: use preprocessing layers",
    "RandomCrop": "Keras 3 does not crop when it predicts: use CenterCrop, or crop the data",
    "RandomHeight": "it is gone from Keras 3: leave it out, as it does nothing but in training",
    "RandomWidth": "it is gone from Keras 3: leave it out, as it does nothing but in training",
    "ConvLSTM2DCell": "Keras 3 does not export it: use ConvLSTM2D",
}

# Functions by the names that only Keras 2 gives them, or that Keras 3 does not read back.
FUNCTIONS: dict[str, str] = {
    # Keras 3 reads these as losses of a `.keras` file only.
    **dict.fromkeys(("mse", "MSE"), "mean_squared_error"),
    **dict.fromkeys(("mae", "MAE"), "mean_absolute_error"),
    **dict.fromkeys(("mape", "MAPE"), "mean_absolute_percentage_error"),
    **dict.fromkeys(("msle", "MSLE"), "mean_squared_logarithmic_error"),
    **dict.fromkeys(("bce", "BCE"), "binary_crossentropy"),
    # Keras 2.2 to 2.15.
    **dict.fromkeys(("kld", "KLD", "kullback_leibler_divergence"), "kl_divergence"),
    **dict.fromkeys(("cosine", "cosine_proximity"), "cosine_similarity"),
    "logcosh": "log_cosh",
    "huber_loss": "huber",
    # TensorFlow's own functions, which tf.keras names by theirs.
    "softmax_v2": "softmax",
}

# The same, where metrics are of another name than losses.
METRIC_FUNCTIONS = {**FUNCTIONS, "logcosh": "log_cosh_error", "log_cosh": "log_cosh_error"}


def described(
    module: str | None, class_name: str, config: Any, registered_name: str | None = None
) -> dict[str, Any]:
    """Describes an object as Keras 3 does."""
    about = {"config": config, "registered_name": registered_name}
    return {"module": module, "class_name": class_name, **about}


# Keras 2's hard_sigmoid is max(0, min(1, 0.2 x + 0.5)); Keras 3's has a slope of a sixth.
_SLOPE = described(LAYERS, "Rescaling", {"name": "slope", "scale": 0.2, "offset": 0.5})
_BOUNDS = described(LAYERS, "ReLU", {"name": "bounds", "max_value": 1.0})
HARD_SIGMOID = described(
    "keras", "Sequential", {"name": "hard_sigmoid", "layers": [_SLOPE, _BOUNDS]}
)

# What Keras 3 has, by module. (Classes that need no row above, but a module.)
BUILT_IN: dict[str, frozenset[str]] = {
    module: frozenset(names.split())
    for module, names in {
        LAYERS: (
            "Activation ActivityRegularization Add AdditiveAttention AlphaDropout Attention "
            "Average AveragePooling1D AveragePooling2D AveragePooling3D BatchNormalization "
            "Bidirectional CategoryEncoding CenterCrop Concatenate Conv1D Conv1DTranspose Conv2D "
            "Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Cropping1D "
            "Cropping2D Cropping3D Dense DepthwiseConv1D DepthwiseConv2D Discretization Dot "
            "Dropout ELU EinsumDense Embedding Flatten GRU GRUCell GaussianDropout GaussianNoise "
            "GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D "
            "GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization "
            "HashedCrossing Hashing Identity InputLayer IntegerLookup LSTM LSTMCell Lambda Layer "
            "LayerNormalization LeakyReLU Masking MaxPooling1D MaxPooling2D MaxPooling3D Maximum "
            "Minimum MultiHeadAttention Multiply Normalization PReLU Permute RNN RandomBrightness "
            "RandomContrast RandomFlip RandomRotation RandomTranslation RandomZoom "
            "ReLU RepeatVector Rescaling Reshape Resizing SeparableConv1D SeparableConv2D "
            "SimpleRNN SimpleRNNCell Softmax SpatialDropout1D SpatialDropout2D SpatialDropout3D "
            "SpectralNormalization StackedRNNCells StringLookup Subtract TextVectorization "
            "TimeDistributed UnitNormalization UpSampling1D UpSampling2D UpSampling3D Wrapper "
            "ZeroPadding1D ZeroPadding2D ZeroPadding3D"
        ),
        INITIALIZERS: (
            "Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity LecunNormal "
            "LecunUniform Ones Orthogonal RandomNormal RandomUniform TruncatedNormal "
            "VarianceScaling Zeros"
        ),
        "keras.regularizers": "L1 L1L2 L2 OrthogonalRegularizer",
        "keras.constraints": "MaxNorm MinMaxNorm NonNeg UnitNorm",
        OPTIMIZERS: (
            "Adadelta Adafactor Adagrad Adam AdamW Adamax Ftrl Lamb Lion LossScaleOptimizer Muon "
            "Nadam RMSprop ScheduleFreeAdamW SGD"
        ),
        "keras.optimizers.schedules": (
            "CosineDecay CosineDecayRestarts ExponentialDecay InverseTimeDecay "
            "PiecewiseConstantDecay PolynomialDecay"
        ),
        LOSSES: (
            "BinaryCrossentropy BinaryFocalCrossentropy CategoricalCrossentropy "
            "CategoricalFocalCrossentropy CategoricalHinge CosineSimilarity Hinge Huber "
            "KLDivergence LogCosh MeanAbsoluteError MeanAbsolutePercentageError MeanSquaredError "
            "MeanSquaredLogarithmicError Poisson SparseCategoricalCrossentropy SquaredHinge"
        ),
        METRICS: (
            "AUC Accuracy BinaryAccuracy BinaryCrossentropy BinaryIoU CategoricalAccuracy "
            "CategoricalCrossentropy CategoricalHinge CosineSimilarity F1Score FBetaScore "
            "FalseNegatives FalsePositives Hinge IoU KLDivergence LogCoshError Mean "
            "MeanAbsoluteError MeanAbsolutePercentageError MeanIoU MeanMetricWrapper "
            "MeanSquaredError MeanSquaredLogarithmicError OneHotIoU OneHotMeanIoU Poisson "
            "Precision PrecisionAtRecall R2Score Recall RecallAtPrecision RootMeanSquaredError "
            "SensitivityAtSpecificity SparseCategoricalAccuracy SparseCategoricalCrossentropy "
            "SparseTopKCategoricalAccuracy SpecificityAtSensitivity SquaredHinge Sum "
            "TopKCategoricalAccuracy TrueNegatives TruePositives"
        ),
    }.items()
}

# The first version with a layer of that name. In a file of an older one it is somebody's own.
# Multi-backend Keras ended with 2.3 and had none of these.
SINCE: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("Attention", "AdditiveAttention", "LayerNormalization"), (2, 2)),
    **dict.fromkeys(("Normalization", "Rescaling", "Resizing", "Conv1DTranspose"), (2, 3)),
    **dict.fromkeys(("CenterCrop", "TextVectorization", "CategoryEncoding"), (2, 3)),
    **dict.fromkeys(("MultiHeadAttention", "EinsumDense"), (2, 4)),
    **dict.fromkeys(("UnitNormalization", "DepthwiseConv1D"), (2, 9)),
    **dict.fromkeys(("GroupNormalization", "Identity"), (2, 11)),
    "SpectralNormalization": (2, 13),
    **dict.fromkeys(("Lamb", "Muon", "ScheduleFreeAdamW"), (3, 0)),
}
