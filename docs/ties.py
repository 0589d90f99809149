"""Draws `ties.png`: a translator with one table in three layers. Run as `python docs/ties.py`."""

from pathlib import Path

import keras

import tiedio


class Logits(keras.layers.Embedding):
    """Tells by a table of embeddings which token comes next."""

    def call(self, inputs):
        return keras.ops.matmul(inputs, keras.ops.transpose(self.embeddings))


source, target = (keras.Input((None,), name=name) for name in ("source", "target"))
source_embedding = keras.layers.Embedding(32_000, 512, name="source_embedding")
target_embedding = keras.layers.Embedding(32_000, 512, name="target_embedding")
encoder = keras.layers.GRU(512, return_sequences=True, name="encoder")
decoder = keras.layers.GRU(512, return_sequences=True, name="decoder")
encoded = encoder(source_embedding(source))
decoded = decoder(target_embedding(target))
attended = keras.layers.Attention(name="attention")([decoded, encoded])
logits = Logits(32_000, 512, name="logits")
model = keras.Model([source, target], logits(attended), name="translator")

tiedio.tie(target_embedding, to=source_embedding)
tiedio.tie(logits, to=source_embedding)
tiedio.tie(decoder, to=encoder)
tiedio.summary(model)
tiedio.plot_ties(model, Path(__file__).with_name("ties.png"), dpi=110)
