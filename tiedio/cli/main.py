"""The command line: parse, call, print, exit code."""

import importlib.util
import sys
from typing import Any

import click

from tiedio.cli import options
from tiedio.display import tables
from tiedio.errors import MigrationError, MissingPackageError, TiedioError

# Libraries are imported where a command calls them, as some take their time.


class _Commands(click.Group):
    """Prints errors without a traceback, and exits as `--help` says."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MissingPackageError as error:
            raise click.UsageError(tables.shown(str(error))) from error
        except BrokenPipeError:
            raise  # whoever reads the output has enough
        except (TiedioError, OSError) as error:
            raise click.ClickException(tables.shown(str(error))) from error


@click.group(cls=_Commands)
@click.version_option(package_name="tiedio")
def main() -> None:
    """Keeps weights tied when a Keras model is saved and loaded.

    A FILE is one that any version of Keras from 2.0 on wrote, whatever it is
    called: an archive, a folder, HDF5, or the JSON of sharded weights. Only
    the demo needs Keras itself.

    \b
    Exit codes:
      0  fine
      1  refused, failed or damaged; or the files of `diff` differ
      2  wrong usage, or a package is missing
      3  ties are proposed that need an option (`plan`, `migrate --dry-run`)
    """  # noqa: D301  (click takes a backspace for a mark of lines that it leaves alone)


@main.command()
@click.argument("file")
@options.as_json
def inspect(file: str, as_json: bool) -> None:
    """Say what FILE is, who wrote it, and what it shares."""
    from tiedio.tools.inspection import inspect

    found = inspect(file)
    tables.as_json(found.to_json()) if as_json else tables.inspection(found)


@main.command()
@click.argument("file")
@options.tie
@options.ties
@options.config
@options.as_json
def plan(file: str, ties: Any, ties_file: Any, config: Any, as_json: bool) -> None:
    """Say which variables of FILE were shared, and the evidence. Nothing is written.

    The last column names the options of `migrate` that a tie needs.
    """
    from tiedio.migration import planning

    found = planning.plan(file, [*ties_file, *ties], config)
    tables.as_json(found.to_json()) if as_json else tables.plan(found)
    sys.exit(3 if any(one.needs for one in found.proposals) else 0)


@main.command()
@click.argument("src")
@click.argument("dst")
@options.tie
@options.ties
@options.config
@click.option(
    "--accept",
    multiple=True,
    metavar="contents|NAME|none",
    help="How to treat variables that merely have equal values: tie all, tie those equal to "
    "NAME, or none. May be repeated.",
)
@click.option(
    "--reconcile",
    type=click.Choice(["owner", "mean", "error"]),
    default="error",
    help="What becomes of copies with different values.  [default: error]",
)
@click.option("--dry-run", is_flag=True, help="Write nothing; say what would be done.")
@options.overwrite
@options.as_json
def migrate(
    src: str, dst: str, ties: Any, ties_file: Any, dry_run: bool, as_json: bool, **given: Any
) -> None:
    """Write SRC to DST, with shared variables tied again.

    DST ends in `.keras`, or `.weights.h5` for weights only. If SRC is a folder
    or a quoted pattern such as "runs/**/*.h5", DST is a folder, and all files
    are migrated into it; one that fails does not stop the others. Where two
    would have one name, or one would take the place of a file of SRC, the old
    ending stays in the name: `best.h5` becomes `best_h5.keras`. No file of SRC
    is ever replaced, whatever the options.
    """
    from tiedio.migration import many, planning

    # The other options are arguments of these names.
    given["ties"] = [*ties_file, *ties]
    given["progress"] = sys.stdout.isatty() and not as_json
    if many.is_many(src):
        found = many.migrate(src, dst, dry_run=dry_run, **given)
        if not found:
            raise click.ClickException(f"There is no file of Keras at `{tables.shown(src)}`.")
        tables.as_json([one.to_json() for one in found]) if as_json else tables.outcomes(found)
        failed = [one for one in found if one.error]
        needing = dry_run and all(one.needs_option for one in failed)
        sys.exit((3 if needing else 1) if failed else 0)
    said, code = "", 0
    if dry_run:
        done = planning.plan(src, given["ties"], given["config"])
        try:
            code = 3
            planning.accepted(done, given["accept"], given["reconcile"])
            code = 1
            done = planning.migrate(src, dst, dry_run=True, **given)
            code = 0
        except MigrationError as error:
            said = str(error)
    else:
        done = planning.migrate(src, dst, **given)
    tables.as_json(done.to_json()) if as_json else tables.plan(done, dry_run)
    if said:
        click.echo(f"Error: {tables.shown(said)}", err=True)
    sys.exit(code)


@main.command()
@click.argument("file")
@options.as_json
def verify(file: str, as_json: bool) -> None:
    """Say whether FILE is as it was saved.

    Every tensor is compared with its digest in the record, or, where there is
    no record, with the checksum of the archive; hard links with the record.
    Exit code 1 also if the file has no digests and no checksum.
    """
    from tiedio.tools.verification import verify

    found = verify(file)
    tables.as_json(found.to_json()) if as_json else tables.verification(found)
    sys.exit(0 if found.is_verified else 1)


@main.command()
@click.argument("a")
@click.argument("b")
@options.as_json
def diff(a: str, b: str, as_json: bool) -> None:
    """Say how the ties and values of the files A and B differ.

    The state of optimizers is not compared.
    """
    from tiedio.tools.comparison import diff

    found = diff(a, b)
    tables.as_json(found.to_json()) if as_json else tables.comparison(found)
    sys.exit(0 if found.is_equal else 1)


@main.command()
@click.argument("src")
@click.argument("dst")
@options.overwrite
@options.as_json
def export(src: str, dst: str, overwrite: bool, as_json: bool) -> None:
    """Write SRC to DST, one of which ends in `.safetensors`.

    Aliases are in its metadata, as safetensors has them for torch. What else
    the file holds is there too, so that it can come back.
    """
    from tiedio.tools.export import export

    progress = sys.stdout.isatty() and not as_json
    done = export(src, dst, overwrite, progress=progress)
    tables.as_json(done.to_json()) if as_json else tables.exported(done)


@main.command()
def demo() -> None:
    """Save, reload and fine-tune a model with shared weights.

    Trains two convolutions that share a kernel and a bias on handwritten
    digits, saves them with stock Keras and with tiedio, reloads both in new
    processes and trains on. Takes about a minute.

    Exit code: 0 if tiedio restored everything, 1 if not, 2 if a package that
    the demo needs is missing.
    """
    # Before Keras is imported: this answer should not take seconds.
    if importlib.util.find_spec("sklearn") is None:
        raise MissingPackageError("scikit-learn is missing: pip install 'tiedio[demo]'")
    from tiedio.cli.demo import run

    raise SystemExit(0 if run() else 1)
