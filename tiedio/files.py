"""The verbs of the command line as functions of the same names: what is asked of a file.

Each function names its arguments, what it returns and what it raises; none needs Keras, or the
code of a model. `tiedio.many` has those that take many files.

Example:

>>> import keras, tiedio
>>> from tiedio import files
>>> encoder, decoder = (keras.layers.Dense(4, name=name) for name in ("encoder", "decoder"))
>>> model = keras.Sequential([keras.Input((4,)), encoder, decoder])
>>> tiedio.save_tied(tiedio.tie(decoder, to=encoder) and model, "tied.keras")
>>> files.verify("tied.keras").is_verified
True
>>> files.diff("tied.keras", "tied.keras").is_equal
True
"""

from tiedio.migration.planning import migrate, plan
from tiedio.tools.comparison import diff
from tiedio.tools.export import export
from tiedio.tools.inspection import inspect
from tiedio.tools.verification import verify

__all__ = ["diff", "export", "inspect", "migrate", "plan", "verify"]
