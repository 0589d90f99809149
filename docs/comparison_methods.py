"""The ways to save and load a model of two tied layers that `comparison.py` compares.

Each does what its own documentation says. What it needs is imported when it is used.
"""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

WIDTH, STEPS = 128, 3
DATA = np.random.default_rng(0).normal(size=(8, WIDTH)).astype("float32")


class Method:
    """One way to save and load.

    What two layers share is the `kind` of a model: nothing (`untied`); a kernel, by the `code` that
    builds it, or by `hand` afterwards; or all, as one `layer` in two others or in `several` models.

    Attributes:
        name: What the table calls it.
        packages: What it is made of.
        needs_code: Whether it fills a model that code has built.
        tied_by_code: The kind of a model whose code ties it, and what is built to load it into.
    """

    name: ClassVar[str]
    packages: ClassVar[list[str]]
    needs_code: ClassVar[bool] = True
    tied_by_code: ClassVar[tuple[str, str | None]] = ("code", "code")

    def build(self, kind: str, dropout: float = 0.0) -> Any:
        """Makes a model and its optimizer, or several models."""
        raise NotImplementedError

    def train(self, built: Any) -> None:
        """Makes some steps."""
        raise NotImplementedError

    def state(self, built: Any) -> list[np.ndarray]:
        """Lists the values of weights, optimizer and random generators."""
        raise NotImplementedError

    def kernels(self, built: Any, kind: str) -> tuple[Any, Any]:
        """Returns the two variables that may be one."""
        raise NotImplementedError

    def save(self, built: Any, folder: Path) -> None:
        """Writes files into an empty folder."""
        raise NotImplementedError

    def load(self, folder: Path, into: Any) -> Any:
        """Loads what `save` wrote, `into` what `build` made if the method needs code."""
        raise NotImplementedError

    def train_and_save(self, folder: Path, dropout: float) -> list[np.ndarray]:
        """Trains, saves, trains on. Returns the state that others must reach."""
        built = self.build("code", dropout)
        self.train(built)
        self.save(built, folder)
        self.train(built)
        return self.state(built)

    def resume(self, folder: Path, dropout: float) -> list[np.ndarray]:
        """Does what `train_and_save` did after it saved."""
        built = self.load(folder, self.build("code", dropout) if self.needs_code else None)
        self.train(built)
        return self.state(built)


class Tiedio(Method):
    """A model of Keras on TensorFlow, as all that follow it up to `TensorFlow`."""

    name, packages, needs_code = "tiedio", ["tiedio"], False

    def build(self, kind: str, dropout: float = 0.0) -> Any:
        import keras

        import tiedio

        if kind == "class":
            return keras.Sequential([keras.Input((WIDTH,)), twins()()])
        encoder, decoder = keras.layers.Dense(WIDTH), keras.layers.Dense(WIDTH)
        if kind in ("layer", "several"):
            decoder = encoder
        halves = [keras.Sequential([keras.Input((WIDTH,)), half]) for half in (encoder, decoder)]
        if kind in ("code", "hand"):
            tiedio.tie(decoder, to=encoder, weights=["kernel"])
        if kind == "several":
            return {"encoder": halves[0], "decoder": halves[1]}
        model = keras.Sequential([halves[0], keras.layers.Dropout(dropout, seed=0), halves[1]])
        model.compile("adam", "mse")
        return model

    def train(self, built: Any) -> None:
        built.fit(DATA, DATA, epochs=STEPS, shuffle=False, verbose=0)

    def state(self, built: Any) -> list[np.ndarray]:
        return [np.array(value) for value in [*built.variables, *built.optimizer.variables]]

    def kernels(self, built: Any, kind: str) -> tuple[Any, Any]:
        if kind == "class":
            return built.layers[0].encoder.kernel, built.layers[0].decoder.kernel
        first, *_, last = built.values() if kind == "several" else built.layers
        return first.layers[0].kernel, last.layers[0].kernel

    def save(self, built: Any, folder: Path) -> None:
        import tiedio

        tiedio.save_tied(built, folder / "model.keras")

    def load(self, folder: Path, into: Any) -> Any:
        import tiedio

        if into is None:
            return tiedio.load_tied(folder / "model.keras")
        tiedio.load_tied_weights(into, folder / "model.keras")
        return into


def twins() -> Any:
    """Makes a class whose own code ties its parts, and lets Keras know it."""
    import keras

    import tiedio

    @keras.saving.register_keras_serializable("comparison")
    class Twins(keras.layers.Layer):
        def __init__(self, **options: Any):
            super().__init__(**options)
            self.encoder, self.decoder = keras.layers.Dense(WIDTH), keras.layers.Dense(WIDTH)

        def build(self, shape: Any) -> None:
            self.encoder.build(shape)
            self.decoder.build(shape)
            tiedio.tie(self.decoder, to=self.encoder, weights=["kernel"])

        def call(self, inputs: Any) -> Any:
            return self.decoder(self.encoder(inputs))

    return Twins


class StockKeras(Tiedio):
    """Whole models."""

    name, packages = "Keras, `.keras`", ["keras", "tensorflow-cpu"]
    tied_by_code = "class", None

    def save(self, built: Any, folder: Path) -> None:
        if isinstance(built, dict):
            raise NotImplementedError
        built.save(folder / "model.keras")

    def load(self, folder: Path, into: Any) -> Any:
        import keras

        twins()
        return keras.saving.load_model(folder / "model.keras")


class KerasWeights(Tiedio):
    """Weights, for what the code builds."""

    name, packages, needs_code = "Keras, weights", ["keras", "tensorflow-cpu"], True

    def save(self, built: Any, folder: Path) -> None:
        if isinstance(built, dict):
            raise NotImplementedError
        built.save_weights(folder / "model.weights.h5")

    def load(self, folder: Path, into: Any) -> Any:
        into.optimizer.build(into.trainable_variables)  # else it is not loaded
        into.load_weights(folder / "model.weights.h5")
        return into


class TensorFlow(Tiedio):
    """Graphs of objects."""

    name, packages, needs_code = "tf.train. Checkpoint", ["tensorflow-cpu", "keras"], True

    def save(self, built: Any, folder: Path) -> None:
        import tensorflow as tf

        parts = built if isinstance(built, dict) else {"model": built}
        tf.train.Checkpoint(**parts).write(str(folder / "model"))

    def load(self, folder: Path, into: Any) -> Any:
        import tensorflow as tf

        parts = into if isinstance(into, dict) else {"model": into}
        status = tf.train.Checkpoint(**parts).read(str(folder / "model"))
        status.assert_existing_objects_matched()
        return into


class Nnx(Method):
    """The state of a module of flax and of its optimizer, saved by Orbax."""

    name, packages = "flax nnx, by Orbax", ["flax", "jax", "orbax-checkpoint"]

    def build(self, kind: str, dropout: float = 0.0) -> Any:
        import optax
        from flax import nnx

        rngs = nnx.Rngs(0)
        encoder, decoder = (nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(2))
        if kind in ("layer", "several"):
            decoder = encoder
        if kind in ("code", "hand"):
            decoder.kernel = encoder.kernel
        halves = nnx.Sequential(encoder), nnx.Sequential(decoder)
        if kind == "several":
            return nnx.Dict(encoder=halves[0], decoder=halves[1])
        model = nnx.Sequential(halves[0], nnx.Dropout(dropout, rngs=rngs), halves[1])
        return nnx.Dict(model=model, optimizer=nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param))

    def train(self, built: Any) -> None:
        from flax import nnx

        for _ in range(STEPS):
            slopes = nnx.grad(lambda model: ((model(DATA) - DATA) ** 2).mean())(built.model)
            built.optimizer.update(built.model, slopes)

    def state(self, built: Any) -> list[np.ndarray]:
        import jax
        from flax import nnx

        leaves = jax.tree.leaves(nnx.state(built))
        keys = [jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
        pairs = zip(leaves, keys, strict=True)
        return [np.array(jax.random.key_data(leaf) if key else leaf) for leaf, key in pairs]

    def kernels(self, built: Any, kind: str) -> tuple[Any, Any]:
        several = kind == "several"
        first, *_, last = (built.encoder, built.decoder) if several else built.model.layers
        return first.layers[0].kernel, last.layers[0].kernel

    def save(self, built: Any, folder: Path) -> None:
        import orbax.checkpoint as ocp
        from flax import nnx

        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / "model", nnx.state(built))

    def load(self, folder: Path, into: Any) -> Any:
        import orbax.checkpoint as ocp
        from flax import nnx

        with ocp.StandardCheckpointer() as checkpointer:
            nnx.update(into, checkpointer.restore(folder / "model", nnx.state(into)))
        return into


class Orbax(Method):
    """A tree of arrays, of which two leaves are one."""

    name, packages, needs_code = "Orbax, arrays", ["orbax-checkpoint", "jax"], False

    def build(self, kind: str, dropout: float = 0.0) -> Any:
        import jax

        if kind in ("layer", "several"):
            raise NotImplementedError
        keys = jax.random.split(jax.random.key(0))
        first, last = (jax.random.normal(key, (WIDTH, WIDTH)) for key in keys)
        return {"encoder": first, "decoder": last if kind == "untied" else first}

    def kernels(self, built: Any, kind: str) -> tuple[Any, Any]:
        return built["encoder"], built["decoder"]

    def save(self, built: Any, folder: Path) -> None:
        import orbax.checkpoint as ocp

        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / "model", built)

    def load(self, folder: Path, into: Any) -> Any:
        import orbax.checkpoint as ocp

        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder / "model", into)


class Safetensors(Method):
    """`save_model` and `load_model`, of a module of torch."""

    name, packages = "safetensors", ["safetensors", "torch"]

    def build(self, kind: str, dropout: float = 0.0) -> Any:
        import torch
        from torch.nn import Dropout, Linear, ModuleDict, Sequential

        torch.manual_seed(0)
        encoder, decoder = Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH)
        if kind in ("layer", "several"):
            decoder = encoder
        if kind in ("code", "hand"):
            decoder.weight = encoder.weight
        halves = Sequential(encoder), Sequential(decoder)
        if kind == "several":
            return ModuleDict({"encoder": halves[0], "decoder": halves[1]}), None
        model = Sequential(halves[0], Dropout(dropout), halves[1])
        return model, torch.optim.Adam(model.parameters())

    def train(self, built: Any) -> None:
        import torch

        model, optimizer = built
        data = torch.tensor(DATA)
        for _ in range(STEPS):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(data), data).backward()
            optimizer.step()

    def state(self, built: Any) -> list[np.ndarray]:
        model, optimizer = built
        slots = [v for slot in optimizer.state_dict()["state"].values() for v in slot.values()]
        return [v.detach().numpy().copy() for v in [*model.state_dict().values(), *slots]]

    def kernels(self, built: Any, kind: str) -> tuple[Any, Any]:
        first, *_, last = built[0].children()
        return first[0].weight, last[0].weight

    def save(self, built: Any, folder: Path) -> None:
        from safetensors.torch import save_model

        save_model(built[0], str(folder / "model.safetensors"))

    def load(self, folder: Path, into: Any) -> Any:
        from safetensors.torch import load_model

        load_model(into[0], str(folder / "model.safetensors"))
        return into


class Transformers(Method):
    """`from_pretrained` and `Trainer`, of a language model whose head is its table."""

    name, packages = "transformers", ["transformers", "torch", "accelerate"]
    needs_code = False

    def build(self, kind: str, dropout: float = 0.0) -> Any:
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel

        if kind == "several":
            raise NotImplementedError
        torch.manual_seed(0)
        sizes = {"vocab_size": 1024, "n_positions": 8, "n_embd": WIDTH, "n_layer": 2, "n_head": 2}
        rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
        ends = {"bos_token_id": None, "eos_token_id": None}
        config = GPT2Config(**sizes, **rates, **ends, tie_word_embeddings=kind != "untied")
        model = GPT2LMHeadModel(config)
        first, last = (block.mlp for block in model.transformer.h)
        if kind == "hand":
            last.c_fc.weight = first.c_fc.weight
        if kind == "layer":
            last.c_fc = first.c_fc
        return model

    def kernels(self, built: Any, kind: str) -> tuple[Any, Any]:
        if kind == "code":
            return built.transformer.wte.weight, built.lm_head.weight
        first, last = (block.mlp.c_fc.weight for block in built.transformer.h)
        return first, last

    def save(self, built: Any, folder: Path) -> None:
        built.save_pretrained(folder)

    def load(self, folder: Path, into: Any) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder)

    def train_and_save(self, folder: Path, dropout: float) -> list[np.ndarray]:
        return self._trained(folder, dropout)

    def resume(self, folder: Path, dropout: float) -> list[np.ndarray]:
        saved = str(folder / f"checkpoint-{STEPS}")
        return self._trained(folder, dropout, resume_from_checkpoint=saved)

    def _trained(self, folder: Path, dropout: float, **options: Any) -> list[np.ndarray]:
        """Trains for twice the steps, and saves in the middle."""
        from transformers import Trainer, TrainingArguments

        rows = [{"input_ids": row, "labels": row} for row in np.arange(64).reshape(8, 8).tolist()]
        steps = {"max_steps": 2 * STEPS, "save_steps": STEPS}
        arguments = TrainingArguments(str(folder), **steps, report_to=[], use_cpu=True)
        trainer = Trainer(self.build("code", dropout), arguments, train_dataset=rows)
        trainer.train(**options)
        return Safetensors().state((trainer.model, trainer.optimizer))


METHODS: dict[str, Method] = {
    method.__name__: method()
    for method in (
        Tiedio,
        StockKeras,
        KerasWeights,
        TensorFlow,
        Nnx,
        Orbax,
        Safetensors,
        Transformers,
    )
}
