"""Where the files of a folder are migrated to: no model takes the place of another one."""

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from checkout import FIXTURES

import tiedio
from tiedio import errors, files
from tiedio.files import many
from tiedio.formats import listing
from tiedio.migration import destination

ENDINGS = {"best.h5": 1, "best.keras": 2, "best.hdf5": 3}


def saved(path, number):
    """Saves a model that is told from others by its bias."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="dense")])
    model.layers[0].bias.assign([number] * 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)
    return path


def number_of(path):
    return int(np.array(tiedio.load_tied(path).layers[0].bias)[0])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, number in ENDINGS.items():
        saved(folder / name, number)
    return folder


@pytest.fixture
def old(models, tmp_path):
    """A folder of models; fails if any of them is not what it was."""
    shutil.copytree(models, tmp_path / "old")
    yield tmp_path / "old"
    for name in ENDINGS:
        assert (tmp_path / "old" / name).read_bytes() == (models / name).read_bytes()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def migrated(old, new, **options):
    """Migrates for show, then in earnest: both say the same."""
    before = contents(old.parent)
    told = many.migrate(str(old), str(new), dry_run=True, **options)
    assert contents(old.parent) == before
    done = many.migrate(str(old), str(new), **options)
    assert [(one.filepath, one.result, str(one.error)) for one in told] == [
        (one.filepath, one.result, str(one.error)) for one in done
    ]
    return {Path(one.filepath).name: one for one in done}


def targets(outcomes):
    return {name: Path(one.result.target).name for name, one in outcomes.items() if not one.error}


def test_files_of_one_name_get_two(old, tmp_path):
    done = migrated(old, tmp_path / "new")
    expected = {
        "best.h5": "best_h5.keras",
        "best.keras": "best.keras",
        "best.hdf5": "best_hdf5.keras",
    }
    assert targets(done) == expected
    for name, number in ENDINGS.items():
        assert number_of(tmp_path / "new" / expected[name]) == number
    assert done["best.h5"].result.notes == (
        "Another file is, or becomes, `best.keras`: so this one keeps its old ending.",
    )
    assert not done["best.keras"].result.notes


def test_neither_of_two_new_names_is_the_first(old, tmp_path):
    (old / "best.keras").rename(old / "other.keras")
    done = migrated(old, tmp_path / "new")
    shutil.copy(old / "other.keras", old / "best.keras")
    assert targets(done) == {
        "best.h5": "best_h5.keras",
        "best.hdf5": "best_hdf5.keras",
        "other.keras": "other.keras",
    }


def test_a_folder_into_itself(old):
    """No file there is replaced, though any may be that is none of them."""
    done = migrated(old, old, overwrite=True)
    assert targets(done) == {"best.h5": "best_h5.keras", "best.hdf5": "best_hdf5.keras"}
    assert "is the file that is migrated" in str(done["best.keras"].error)
    assert number_of(old / "best_h5.keras") == 1
    again = migrated(old, old, overwrite=True)
    assert not targets(again)
    assert "Received: that of `" in str(again["best.h5"].error)


def test_one_file_into_its_folder(tmp_path):
    saved(tmp_path / "old" / "a.h5", 1)
    done = migrated(tmp_path / "old", tmp_path / "old")
    assert targets(done) == {"a.h5": "a.keras"}
    assert not done["a.h5"].result.notes


@pytest.mark.parametrize("linked", ["folder", "file"])
def test_links_lead_to_no_source(linked, old, tmp_path):
    new = tmp_path / "new"
    if linked == "folder":
        new.symlink_to(old)
    else:
        new.mkdir()
        (new / "best.keras").symlink_to(old / "best.keras")
    done = migrated(old, new, overwrite=True)
    assert targets(done) == {"best.h5": "best_h5.keras", "best.hdf5": "best_hdf5.keras"}


def test_links_between_new_folders(tmp_path):
    for name, number in (("a", 1), ("b", 2)):
        saved(tmp_path / "old" / name / "x.keras", number)
    (tmp_path / "new" / "a").mkdir(parents=True)
    (tmp_path / "new" / "b").symlink_to(tmp_path / "new" / "a")
    first, other = many.migrate(str(tmp_path / "old"), str(tmp_path / "new"), overwrite=True)
    assert not first.error
    assert "would be written to" in str(other.error)
    assert number_of(tmp_path / "new" / "a" / "x.keras") == 1


def test_weights_in_the_layout_of_keras_2_end_in_h5(tmp_path):
    """What they are called otherwise only their content tells; nothing else gives way for it."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    for writer, name in (("tf_2_8", "a.h5"), ("tf_2_0", "a.weights.h5")):
        shutil.copy(FIXTURES / writer / "two_paddings.weights.h5", old / name)
    options = {"accept": ["contents"]}
    for also in ({}, {"overwrite": True}):
        found = targets(migrated(old, new, **options, **also))
        assert found == {"a.h5": "a.h5", "a.weights.h5": "a_h5.h5"}
    kept = many.migrate(str(old), str(new), skip_existing=True, **options)
    assert [Path(one.skipped).name for one in kept] == ["a.h5", "a_h5.h5"]
    assert contents(new).keys() == {new / name for name in found.values()}
    named = tmp_path / "x.weights.h5"
    done = files.migrate(old / "a.weights.h5", named, **options)
    assert done.notes[-1] == (
        "Written to `x.h5`, as weights in the layout of Keras 2, for which Keras wants such a "
        "name: the file holds no config of the model (`--config` gives one)."
    )
    with pytest.raises(errors.TargetExistsError) as error:  # nobody named that path
        files.migrate(old / "a.weights.h5", named, **options, overwrite=True)
    assert str(error.value).splitlines()[-1] == (
        f"It would be written there, and not to `x.weights.h5`. Pass `{tmp_path / 'x.h5'}` with "
        "`--overwrite` to replace that, another path, or `--skip-existing` to keep it."
    )
    assert files.migrate(old / "a.h5", tmp_path / "x.h5", **options, overwrite=True).target


def test_a_name_that_another_file_has(old, tmp_path):
    saved(old / "best_h5.keras", 4)
    done = migrated(old, tmp_path / "new")
    assert number_of(tmp_path / "new" / "best_h5.keras") == 4
    assert [name for name, one in done.items() if one.error] == ["best.h5"]


def test_an_unpacked_model_beside_one_of_its_name(models, tmp_path):
    model = tiedio.load_tied(models / "best.keras")
    tiedio.save_tied(model, tmp_path / "old" / "best", zipped=False)
    shutil.copy(models / "best.h5", tmp_path / "old")
    done = migrated(tmp_path / "old", tmp_path / "new")
    assert targets(done) == {"best": "best_folder.keras", "best.h5": "best_h5.keras"}


# One file


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("target", ["best.keras", "link.keras", "../old/best.keras"])
def test_the_source_is_never_the_target(target, dry_run, old):
    (old / "link.keras").symlink_to("best.keras")
    with pytest.raises(errors.MigrationError, match="is the file that is migrated"):
        files.migrate(old / "best.keras", old / target, overwrite=True, dry_run=dry_run)


@pytest.mark.parametrize("dry_run", [True, False])
def test_the_target_is_no_part_of_the_source(dry_run, models, tmp_path):
    model = tiedio.load_tied(models / "best.keras")
    tiedio.save_tied(model, tmp_path / "best", zipped=False)
    shutil.copy(models / "best.h5", tmp_path / "best")
    before = contents(tmp_path)
    part = tmp_path / "best" / "model.weights.h5"
    for source, target, told in (
        (tmp_path / "best", part, "is a part of the one that is migrated"),
        (tmp_path / "best" / "best.h5", tmp_path / "best", "holds the file that is migrated"),
    ):
        with pytest.raises(errors.MigrationError, match=told):
            files.migrate(source, target, overwrite=True, dry_run=dry_run)
    assert contents(tmp_path) == before


def test_a_dry_run_says_what_would_be_written(old, tmp_path):
    told = files.migrate(old / "best.h5", tmp_path / "new.keras", dry_run=True)
    assert not (tmp_path / "new.keras").exists()
    assert told == files.migrate(old / "best.h5", tmp_path / "new.keras")
    with pytest.raises(errors.MigrationError, match="exists already"):
        files.migrate(old / "best.h5", tmp_path / "new.keras", dry_run=True)


# Many


def test_functions_take_what_those_of_one_file_take(models, tmp_path):
    """Whatever a verb is given beside the files, it is given for each of them."""
    sources = [models / "best.h5", str(models / "*.keras")]
    done = many.migrate(sources, tmp_path / "new", durable=False, overwrite=True)
    assert [Path(one.result.target).name for one in done] == ["best_h5.keras", "best.keras"]
    states = {many.inspect: "read", many.plan: "read", many.verify: "fine"}
    for verb, state in states.items():
        told = []
        found = verb(tmp_path / "new", told=told.append)
        assert found == told
        assert [str(one.state) for one in found] == [state, state]
        one = getattr(files, verb.__name__)(found[0].filepath)
        assert found[0].result == one
        assert found[0].to_json() == {
            "filepath": str(tmp_path / "new" / "best.keras"),
            "state": state,
            "needs": [],
            "error": "",
            "skipped": "",
            "result": one.to_json(),
        }
    for wrong in ([], 3, [3]):
        with pytest.raises(errors.ArgumentError, match="`sources`"):
            many.inspect(wrong)


def test_nothing_is_kept_of_what_failed(models, tmp_path):
    """The frames of an error hold whatever was in memory there."""
    path = tmp_path / "flipped.keras"
    content = bytearray((models / "best.keras").read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for verb in (many.inspect, many.plan, many.verify):
        for one in verb(str(tmp_path / "*.keras")):
            assert one.error is None or one.error.__traceback__ is None
    (one,) = many.migrate(str(path), str(tmp_path / "new/"))
    assert one.state == "failed"
    assert (one.error.__traceback__, one.error.__cause__, one.error.__context__) == (None,) * 3


def test_a_bar_tells_files_and_bytes(models, tmp_path, capsys):
    many.verify(str(models), progress=True)
    shown = capsys.readouterr().out
    assert "Verifying 3 of 3 files" in shown
    total = sum(path.stat().st_size for path in models.iterdir())
    assert f"{total / 1000:.1f}/{total / 1000:.1f} kB" in shown


def test_checkpoints_of_tensorflow_among_others(tmp_path):
    """A folder is one file if it holds nothing else; otherwise each checkpoint in it is one."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.index").write_bytes(b"")
        (tmp_path / f"{name}.data-00000-of-00001").write_bytes(b"")
    names = [one.name for one in listing.files(str(tmp_path)).files]
    assert names == ["a.index", "b.index"]
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "b"')
    assert not listing.is_many(str(tmp_path))  # the newest of them
    (tmp_path / "c.h5").write_bytes(b"")
    found = listing.files(str(tmp_path))
    assert [one.name for one in found.files] == ["a.index", "b.index", "c.h5"]
    assert not found.passed_over
    assert destination.renamed("a.index") == "a.keras"
