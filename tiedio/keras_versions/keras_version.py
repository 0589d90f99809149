"""Which Keras wrote a file, as far as anything depends on it."""

import dataclasses
import re

from tiedio.errors import FileFormatError


@dataclasses.dataclass(frozen=True)
class KerasVersion:
    """A version of Keras.

    Attributes:
        text: As a file states it, such as `2.2.4-tf`; empty if it does not.
    """

    text: str

    @property
    def numbers(self) -> tuple[int, ...]:
        """The first two, `(2, 15)` for 2.15.0; empty if the version is unknown."""
        found = re.match(r"(\d{1,9})\.(\d{1,9})", self.text)
        return tuple(map(int, found.groups())) if found else ()

    @property
    def is_of_keras_3(self) -> bool:
        return self.numbers >= (3,)

    @property
    def is_of_keras_1(self) -> bool:
        return bool(self.numbers) and self.numbers < (2,)

    @property
    def is_multi_backend(self) -> bool:
        """Whether it is 2.3 or before, on several backends and not in TensorFlow.

        Its optimizers keep slots of each place of a tied variable.
        """
        return bool(self.numbers) and self.numbers < (2, 4) and not self.text.endswith("-tf")


# Keras 2.3 still does, and has other names for all of it.
INSTEAD = "Load it with Keras 2.0 to 2.3, which read such files, save it there, and use that file."


def check_known(filepath: str, keras_version: str) -> None:
    """Refuses what Keras 1 wrote: its layers take other arguments, and keep other weights.

    Raises:
        FileFormatError: If that wrote it.
    """
    if KerasVersion(keras_version).is_of_keras_1:
        raise FileFormatError(
            f"`{filepath}` was written by Keras {keras_version}, which has other layers.\n"
            f"Expected: a file of Keras 2.0 or newer. Received: one of Keras 1.\n{INSTEAD}"
        )
