"""The command line: parse, call, print, exit code."""

import functools
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from tiedio.cli import options
from tiedio.display import outcomes, printing
from tiedio.errors import MissingPackageError, OptionNeededError, TiedioError
from tiedio.record.report import printable

# Libraries are imported where a command calls them, as some take their time.

# Exit codes beside those of click: 0, and 2 for wrong usage.
FAILED, NEEDS_OPTION, INTERRUPTED = 1, 3, 130

# TensorFlow logs as it is imported, and its library for layers as well, which reads no files.
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}


class _OptionNeeded(click.ClickException):
    exit_code = NEEDS_OPTION


class _Commands(click.Group):
    """Prints errors without a traceback, and exits as `--help` says."""

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # names may have what a locale has not
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except MissingPackageError as error:
            raise click.UsageError(_told(error)) from error
        except BrokenPipeError:
            raise  # whoever reads the output has enough
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(INTERRUPTED)
        except (TiedioError, OSError) as error:
            kind = _OptionNeeded if isinstance(error, OptionNeededError) else click.ClickException
            raise kind(_told(error)) from error


def _told(error: Exception) -> str:
    prefix = "Error: "  # which click puts before it
    return printing.folded(prefix + printable(str(error)), err=True).removeprefix(prefix)


def _answer(
    ask: Callable[..., Any],
    paths: Sequence[str],
    show_all: Callable[[Any], None],
    *,
    as_json: bool,
    writes: bool = False,
) -> None:
    """Asks a function of `tiedio.files.many`, prints what became of the files, and exits.

    Args:
        ask: The function, with all arguments but how far it is.
        paths: What was passed for the files.
        show_all: Prints the outcomes of several files.
        as_json: Whether to print JSON.
        writes: Whether files are written, so that a second run may go on.
    """
    from tiedio.formats import listing

    found: list[Any] = []
    others = listing.counted(listing.files(paths).passed_over)
    report = functools.partial(ask, progress=sys.stdout.isatty() and not as_json, told=found.append)
    if len(paths) == 1 and not listing.is_many(paths[0]):
        (one,) = report()
        if one.result is None and one.error:
            raise one.error
        if as_json:
            printing.as_json((one.result or one).to_json())
        elif one.result:
            printing.report(one.result.report())
        else:
            printing.line(f"Skipped: `{one.skipped}` is there already.")
        # What a plan needs is in its JSON; that a file is not written is an error anyhow.
        if one.error and (writes or (isinstance(one.error, OptionNeededError) and not as_json)):
            raise one.error
    else:
        interrupted = None
        try:
            report()
        except KeyboardInterrupt as error:  # whoever does that still wants to know
            interrupted = error
        if as_json:
            printing.as_json([one.to_json() for one in found])
        else:
            show_all(found)
            outcomes.passed_over(others)
        if interrupted:
            if writes:
                told = "What is written is whole; the same with `--skip-existing` goes on."
                printing.line(told, err=True)
            raise interrupted
    states = {one.state for one in found}
    if states & {"failed", "nothing to verify against"}:
        sys.exit(FAILED)
    sys.exit(NEEDS_OPTION if "needs an option" in states else 0)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tiedio")
@click.pass_context
def main(context: click.Context) -> None:
    """Keeps weights tied when a Keras model is saved and loaded.

    A FILE is one that any version of Keras from 2.0 on wrote, whatever it is
    called: an archive, a folder, HDF5, or the JSON of sharded weights; or what
    TensorFlow or Orbax saved. FILES are any number of them, folders, or quoted
    patterns such as "runs/**/*.h5". Only the demo needs Keras itself.

    \b
    Exit codes:
      0    fine
      1    refused, failed or damaged, one file at least; or those of `diff` differ
      2    wrong usage, or a package is missing
      3    an option is needed, which is named (`plan`, `migrate`); nothing failed
      130  interrupted
    """  # noqa: D301  (click takes a backspace for a mark of lines that it leaves alone)
    for name in _QUIET.keys() - os.environ.keys():
        os.environ[name] = _QUIET[name]
        context.call_on_close(functools.partial(os.environ.pop, name))


@main.command()
@options.files
@options.as_json
def inspect(files: Sequence[str], as_json: bool) -> None:
    """Say what FILES are, who wrote them, and what they share."""
    from tiedio.files import many

    ask = functools.partial(many.inspect, files)
    _answer(ask, files, outcomes.inspected, as_json=as_json)


@main.command()
@options.files
@options.tie
@options.ties
@options.config
@options.lambdas
@options.as_json
def plan(
    files: Sequence[str], ties: Any, ties_file: Any, config: Any, as_json: bool, **given: Any
) -> None:
    """Say which variables of FILES were shared, and the evidence. Nothing is written.

    The last column names the options of `migrate` that a tie needs.
    """
    from tiedio.files import many

    ask = functools.partial(many.plan, files, ties=[*ties_file, *ties], config=config, **given)
    _answer(ask, files, outcomes.planned, as_json=as_json)


@main.command()
@click.argument("src", nargs=-1, metavar="SRC...", type=options.PATH)
@click.argument("dst", type=options.PATH)
@options.tie
@options.ties
@options.config
@options.lambdas
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
@click.option(
    "--skip-existing", is_flag=True, help="Leave out files whose new file is there already."
)
@options.as_json
def migrate(
    src: Sequence[str], dst: str, ties: Any, ties_file: Any, as_json: bool, **given: Any
) -> None:
    """Write SRC to DST, with shared variables tied again.

    DST ends in `.keras`, or `.weights.h5` for weights only; or it is a folder
    that exists, or ends in a slash. SRC may be several files, folders, and
    quoted patterns such as "runs/**/*.h5": then DST is a folder, and all files
    are migrated into it; one that fails does not stop the others. Those that
    need an option can be migrated later, with that and `--skip-existing`.
    Where two would have one name, or one would take the place of a file of
    SRC, the old ending stays in the name: `best.h5` becomes `best_h5.keras`.
    No file of SRC is ever replaced, whatever the options.
    """
    from tiedio.files import many

    if not src:  # click gave the one path that there is to DST
        raise click.MissingParameter(param_type="argument", param_hint="'DST'")
    # The other options are arguments of these names.
    ask = functools.partial(many.migrate, src, dst, ties=[*ties_file, *ties], **given)
    show_all = functools.partial(outcomes.migrated, dry_run=given["dry_run"])
    _answer(ask, src, show_all, as_json=as_json, writes=True)


@main.command()
@options.files
@options.as_json
def verify(files: Sequence[str], as_json: bool) -> None:
    """Say whether FILES are as they were saved.

    Every tensor is compared with its digest in the record, or, where there is
    no record, with the checksum of the archive; hard links with the record.
    Exit code 1 also if a file has no digests and no checksum.
    """
    from tiedio.files import many

    ask = functools.partial(many.verify, files)
    _answer(ask, files, outcomes.verified, as_json=as_json)


@main.command()
@click.argument("a", type=options.PATH)
@click.argument("b", type=options.PATH)
@options.as_json
def diff(a: str, b: str, as_json: bool) -> None:
    """Say how the ties and values of the files A and B differ.

    The state of optimizers is not compared.
    """
    from tiedio.tools.comparison import diff

    found = diff(a, b)
    printing.as_json(found.to_json()) if as_json else printing.report(found.report())
    sys.exit(0 if found.is_equal else 1)


@main.command()
@click.argument("src", type=options.PATH)
@click.argument("dst", type=options.PATH)
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
    printing.as_json(done.to_json()) if as_json else printing.report(done.report())


@main.command(context_settings={"allow_extra_args": True})
@options.as_json
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Say what is installed, and what is missing or broken.

    An issue should contain it. Keras is not imported; `tiedio.doctor()` in your
    own program also says which Keras that uses, and whether it is patched.

    Exit code: 0 if tiedio can work, 1 if something has to be done first.
    """
    if context.args:
        raise click.UsageError(
            "It is about no file: `tiedio verify FILE` says whether one is as it was saved, "
            "`tiedio inspect FILE` what it is."
        )
    from tiedio.tools.installation import installation

    found = installation()
    printing.as_json(found.to_json()) if as_json else print(*found.parts, sep="\n")
    sys.exit(0 if found.is_fine else FAILED)


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
    from tiedio.tools.installation import installation

    if wrong := "; ".join(str(part) for part in installation().parts if part.is_wrong):
        raise MissingPackageError(
            "The demo cannot run here.\n"
            f"Expected: an installation that works. Received: {' '.join(wrong.split())}.\n"
            "Do what is said there; `tiedio doctor` says it of all that is installed."
        )
    raise SystemExit(0 if run() else 1)
