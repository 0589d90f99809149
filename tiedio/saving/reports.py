"""What a load cannot restore: which of it is an error, and which a warning."""

import contextlib
from collections.abc import Iterator, Mapping

from tiedio.errors import (
    BUILD_IT,
    BUILD_PARTS,
    SAME_CLASSES,
    FileFormatError,
    LoadError,
    TiedioError,
    first_line,
    listed,
    warn,
)
from tiedio.formats import damage
from tiedio.formats.hdf5_reader import WeightsFile


class Reports:
    """Errors on the way, which are raised, or noted as warnings.

    Args:
        strict: Whether it is an error if what the file describes cannot be restored.
        skip_mismatch: Whether values that do not fit are left out.
        exists: Whether the model is the caller's: what training needs is best effort then.

    Attributes:
        strict: Whether it is an error, as passed, and nothing may be left out.
        warnings: What was given up, where it is no error.
        unreadable: The error for what is damaged, if something is.
        mismatching: The layers of which is told already that values do not fit.
    """

    def __init__(self, *, strict: bool, skip_mismatch: bool = False, exists: bool = False):
        self.warnings: list[str] = []
        self.unreadable: FileFormatError | None = None
        self.strict = strict and not skip_mismatch
        self._exists = exists
        self._skip_mismatch = skip_mismatch
        self._failed: dict[str, Exception | None] = {}
        self.mismatching: set[str] = set()
        self._failed_to_resume: dict[str, Exception | None] = {}
        self._unresumed: list[TiedioError | None] = []

    @property
    def has_failed(self) -> bool:
        """Whether some values were not read, whatever the reason."""
        return bool(self._failed or self.unreadable)

    def note(self, error: TiedioError | None) -> None:
        """Notes what is no error for anybody."""
        if error:
            self.warnings.append(str(error))

    def described(self, error: TiedioError | None) -> None:
        """Raises, or with `strict=False` notes, that what the file describes is not restored."""
        if error and self.strict:
            raise error.or_pass("strict=False")
        self.note(error)

    def mismatch(self, error: TiedioError | None) -> None:
        """Raises, or with `skip_mismatch=True` notes, that values do not fit."""
        if error and not self._skip_mismatch:
            raise error.or_pass("skip_mismatch=True") if self._exists and self.strict else error
        self.note(error)

    def unresumed(self, *errors: TiedioError | None) -> None:
        """Keeps that training state is not restored, for the end."""
        self._unresumed += errors

    @contextlib.contextmanager
    def reading(self, name: str, *, training: bool = False) -> Iterator[None]:
        """Keeps what fails inside, as there may be more."""
        try:
            yield
        except FileFormatError as error:  # a damaged tensor
            self.unreadable = self.unreadable or error
        except TiedioError:
            raise
        except Exception as error:  # the code of layers may raise anything
            failed = self._failed_to_resume if training else self._failed
            if name in self.mismatching:
                return
            failed[name] = None if failed else error  # whose frames hold what was read

    def finish(self, weights: WeightsFile) -> None:
        """Tells what failed.

        Raises:
            FileFormatError: If tensors are damaged; all are named.
        """
        if weights.damaged or self.unreadable:
            names = weights.find_damaged()
            if self.unreadable and len(names) < 2:
                raise self.unreadable
            raise damage.error_at(weights.filepath, names, "others") from self.unreadable
        self.mismatch(self._failure(self._failed))
        unresumed = [e for e in (*self._unresumed, self._failure(self._failed_to_resume)) if e]
        for error in unresumed:
            self.note(error) if self._exists else self.described(error)

    def warn(self) -> None:
        """Warns of all that was given up, once."""
        warn(["\n".join(self.warnings)] if self.warnings else [])

    def _failure(self, failed: Mapping[str, Exception | None]) -> LoadError | None:
        """The error for what code of layers or optimizers raised, the first of which is kept."""
        first, cause = next(iter(failed.items()), ("", None))
        if cause is None:
            return None
        advice = BUILD_PARTS if "was never built" in str(cause) else SAME_CLASSES
        error = LoadError(
            f"Cannot load the state of {listed(failed)}.\n"
            f"Received, for `{first}`: {first_line(cause)}\n"
            f"{BUILD_IT if self._exists else advice}"
        )
        error.__cause__ = cause
        return error
