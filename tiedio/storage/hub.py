"""A repository on the Hugging Face Hub."""

import contextlib
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from tiedio.errors import FileFormatError, imported
from tiedio.storage.base import Storage

_MODEL_CARD = """---
library_name: keras
---

A Keras model with shared weights, for any backend. `tiedio.load_tied` shares them again;
`keras.saving.load_model` opens it too, without the sharing.
"""


class Hub(Storage):
    """A repository of the Hugging Face Hub, which is a folder, and keeps all its versions."""

    def __init__(self, repository: str):
        super().__init__(f"hf://{repository}")
        self._hub = imported("huggingface_hub", f"`{self.name}`", "hf")
        errors = imported("huggingface_hub.errors", f"`{self.name}`", "hf")
        self._not_found = errors.RepositoryNotFoundError
        self._repository = repository
        if repository.count("/") > 1:
            raise FileFormatError(
                f"`{self.name}` is no repository of the Hugging Face Hub.\n"
                f"Expected: `hf://namespace/name`. Received: {self.name}.\n"
                "Check the path."
            )

    def is_folder(self) -> bool:
        return True

    @contextlib.contextmanager
    def reading_folder(self) -> Iterator[Path]:
        try:
            folder = self._hub.snapshot_download(self._repository, library_name="keras")
        except self._not_found as error:
            raise self._missing("no such repository, or one that is private") from error
        yield Path(folder)

    @contextlib.contextmanager
    def replacing_folder(self, replaced: Collection[str], durable: bool) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            api = self._hub.HfApi(library_name="keras")
            repository = api.create_repo(self._repository, exist_ok=True).repo_id
            if not api.file_exists(repository, "README.md"):
                Path(folder, "README.md").write_text(_MODEL_CARD)
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message="Save a model with tied weights.",
                # In the same commit: what the model no longer has.
                delete_patterns=[*replaced, *(f"{name}/*" for name in replaced)],
            )
