"""Weights loaded by tiedio itself, and by code that knows Keras only."""

import tiedio


def load_directly(model, path, **options):
    tiedio.load_tied_weights(model, path, **options)


def load_patched(model, path, **options):
    with tiedio.patch():
        model.load_weights(path, **options)
