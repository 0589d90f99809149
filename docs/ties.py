"""Draws the pictures of the docs. Run as `python docs/ties.py`.

`ties.png` is a translator with one table in three layers, transposed in the last; `several.png` a
GAN in three models; `many.png` two towers of twelve tied layers each.
"""

from pathlib import Path

import keras

import tiedio

source, target = (keras.Input((None,), name=name) for name in ("source", "target"))
source_embedding = keras.layers.Embedding(32_000, 512, name="source_embedding")
target_embedding = keras.layers.Embedding(32_000, 512, name="target_embedding")
encoder = keras.layers.GRU(512, return_sequences=True, name="encoder")
decoder = keras.layers.GRU(512, return_sequences=True, name="decoder")
encoded = encoder(source_embedding(source))
decoded = decoder(target_embedding(target))
attended = keras.layers.Attention(name="attention")([decoded, encoded])
logits = keras.layers.Dense(32_000, use_bias=False, name="logits")
model = keras.Model([source, target], logits(attended), name="translator")

tiedio.tie(target_embedding, to=source_embedding)
tiedio.tie(logits, to=source_embedding, weights={"kernel": "embeddings"}, transpose=True)
tiedio.tie(decoder, to=encoder)
tiedio.summary(model)
tiedio.plot_ties(model, Path(__file__).with_name("ties.png"), dpi=110)

noise, picture = keras.Input((64,), name="noise"), keras.Input((784,), name="picture")
hidden = keras.layers.Dense(256, name="hidden")(noise)
generator = keras.Model(noise, keras.layers.Dense(784, name="painted")(hidden), name="generator")
features = keras.layers.Dense(128, name="features")(picture)
score = keras.layers.Dense(1, name="score")(features)
discriminator = keras.Model(picture, score, name="discriminator")
gan = keras.Model(noise, discriminator(generator(noise)), name="gan")

models = {"generator": generator, "gan": gan, "discriminator": discriminator}
tiedio.summary(models)
tiedio.plot_ties(models, Path(__file__).with_name("several.png"), dpi=110)

query, document = ends = [keras.Input((64,), name=name) for name in ("query", "document")]
towers = [[keras.layers.Dense(64, name=f"{end.name}_{n}") for n in range(12)] for end in ends]
for tower in zip(*towers, strict=True):
    ends = [layer(end) for layer, end in zip(tower, ends, strict=True)]
    tiedio.tie(tower[1], to=tower[0])
search = keras.Model([query, document], keras.layers.Dot(1, name="score")(ends), name="search")
tiedio.summary(search)
tiedio.plot_ties(search, Path(__file__).with_name("many.png"), dpi=70)
