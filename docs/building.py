"""Builds the site of what is in the repository: pages where they lie, docstrings as they are.

`mkdocs.yml` names it twice, as a hook of MkDocs and as an extension of Griffe.
"""

import re
import textwrap
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
ELSEWHERE = [*ROOT.glob("*.md"), ROOT / "benchmarks" / "results.png"]
ERRORS = re.findall(r"^class (\w+)", (ROOT / "tiedio" / "errors.py").read_text(), re.MULTILINE)
# As Keras writes it, not indented, after an empty line; what follows belongs to it.
EXAMPLE = re.compile(r"^Example:\n\n(.*)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Gives each file the path that it has in the repository, so that links are true in both."""
    for file in files.documentation_pages() + files.media_files():
        if file.src_dir == config.docs_dir:
            files.remove(file)
            files.append(_file(Path(file.abs_src_path), config, file.dest_uri))
    for path in ELSEWHERE:
        files.append(_file(path, config))
    return files


def _file(path: Path, config: MkDocsConfig, dest_uri: str | None = None) -> File:
    src_uri = path.relative_to(ROOT).as_posix()
    return File(src_uri, str(ROOT), config.site_dir, config.use_directory_urls, dest_uri=dest_uri)


class Docstrings(griffe.Extension):
    """Makes of the docstrings what Griffe knows."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Makes a section of an example."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(
                lambda found: "Examples:\n" + textwrap.indent(found[1], "    "), obj.docstring.value
            )

    def on_module(self, *, mod: griffe.Module, **kwargs: object) -> None:
        """Lets each module know the errors that its docstrings name, for links."""
        for name in ERRORS:
            if name not in mod.members:
                mod.members[name] = griffe.Alias(name, f"tiedio.errors.{name}", parent=mod)
