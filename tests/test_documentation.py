"""Every example in README, docs and docstrings runs, and shows what it says."""

import re
import subprocess
import sys
from pathlib import Path

import command_line
import keras
import pytest
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.doctest import DocTestParser
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

import tiedio

ROOT = Path(__file__).parent.parent
GUIDES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
API = list((ROOT / "docs" / "api").glob("*.md"))
PAGES = [*GUIDES, *API]


def run_commands(example):
    """Runs each line of a block as a user would."""
    for command in example.parsed.splitlines():
        program = command.replace("tiedio", f"{sys.executable} -m tiedio", 1)
        subprocess.run(["bash", "-euc", program], check=True)  # noqa: S607


MARKDOWN = Sybil([PythonCodeBlockParser()], path=str(ROOT), patterns=["*.md"])
WITH_COMMANDS = Sybil(
    [PythonCodeBlockParser(), CodeBlockParser("shell", run_commands)],
    path=str(ROOT),
    patterns=["*.md"],
)
DOCSTRINGS = Sybil(
    [DocTestParser()],
    path=str(ROOT),
    patterns=["*.py"],
    document_types={".py": PythonDocStringDocument},
)


NEED_ORBAX = ("docs/large-scale.md", "tiedio/hooks/orbax.py")


def examples():
    for sybil, paths in (
        (MARKDOWN, [page for page in PAGES if page.name != "old-files.md"]),
        (WITH_COMMANDS, [ROOT / "docs" / "old-files.md"]),
        (DOCSTRINGS, (ROOT / "tiedio").rglob("*.py")),
    ):
        for path in sorted(paths):
            if list(sybil.parse(path).examples()):  # without one, there is nothing to test
                name = str(path.relative_to(ROOT))
                marks = [pytest.mark.orbax] if name in NEED_ORBAX else []
                yield pytest.param(sybil, path, id=name, marks=marks)


@pytest.fixture
def anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.utils.clear_session()


@pytest.mark.parametrize(("sybil", "path"), list(examples()))
def test_examples(anywhere, sybil, path):
    for example in sybil.parse(path).examples():
        example.evaluate()


@pytest.mark.parametrize(
    "name",
    [name for name in tiedio.__all__ if name[0].islower()]
    + ["AssertTied", "TiedBackupAndRestore", "TiedModelCheckpoint", "TiedOrbaxCheckpoint"],
)
def test_every_public_function_has_an_example(name):
    assert "Example:\n\n" in getattr(tiedio, name).__doc__
    assert ">>> " in getattr(tiedio, name).__doc__


def test_every_command_is_documented_by_its_help():
    page = command_line.PAGE.read_text()
    renew = (
        f"{command_line.PAGE.name} shows other helps: run `python tests/support/command_line.py`"
    )
    assert command_line.written(page) == page, renew
    assert all(text in page for text in command_line.helps()), renew


def test_the_changelog_has_this_version():
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[:2] == ["Unreleased", tiedio.__version__]


def test_issue_forms_ask_for_what_there_is():
    forms = (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")
    text = "".join(form.read_text() for form in forms)
    assert set(re.findall(r"`tiedio (\w+)", text)) == {"doctor", "inspect", "plan"}
    assert {"doctor", "inspect", "plan"} <= set(command_line.main.commands)
    assert all((ROOT / page).exists() for page in re.findall(r"`(docs/[\w-]+\.md)`", text))


def links_on(page):
    return re.findall(r"(?:\]\(|src=\")(?!https?:)([^)#\"]+)", page.read_text())


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_links_and_paths_lead_somewhere(page):
    paths = re.findall(r"`((?:tiedio|tests|docs|fixtures|benchmarks)/[\w/.-]+)", page.read_text())
    targets = [page.parent / link for link in links_on(page)] + [ROOT / path for path in paths]
    assert not [target for target in targets if not target.exists()]


def test_readme_leads_to_every_guide_in_two_steps():
    def linked(page):
        return {(page.parent / link).resolve() for link in links_on(page)} & set(GUIDES)

    first = linked(ROOT / "README.md")
    assert first.union(*map(linked, first)) | {ROOT / "README.md"} == set(GUIDES)


def test_the_api_has_every_public_name():
    named = {
        name for page in API for name in re.findall("^::: (.+)", page.read_text(), re.MULTILINE)
    }
    public = {f"tiedio.{name}" for name in tiedio.__all__}
    public |= {f"tiedio.files.{name}" for name in tiedio.files.__all__}
    public |= {
        f"tiedio.errors.{name}"
        for name, kind in vars(tiedio.errors).items()
        if isinstance(kind, type) and issubclass(kind, tiedio.TiedioError)
    } - {"tiedio.errors.TiedioError"}
    assert not public - named


def test_design_names_every_folder_and_module_that_exists():
    page = (ROOT / "DESIGN.md").read_text()
    folders = {path.parent.name for path in (ROOT / "tiedio").glob("*/__init__.py")}
    assert folders == set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    modules = re.findall(rf"`((?:{'|'.join(folders)})/\w+)(?:\.py)?`", page)
    assert not [name for name in modules if not (ROOT / "tiedio" / f"{name}.py").exists()]
