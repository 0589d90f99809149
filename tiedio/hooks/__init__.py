"""Keras' own functions and callbacks, made to keep ties."""
