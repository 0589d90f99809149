"""Files that Keras did not write: each is called what it is, whoever opens it."""

import shutil
import zipfile

import keras
import pytest
import sample_files
from checkout import FIXTURES

import tiedio
from tiedio import errors, files
from tiedio.files import many
from tiedio.storage.locating import at

OTHERS = FIXTURES / "others"
KINDS = {
    "array.h5": ("an array of NumPy", "numpy.load"),
    "config.weights.json": ("the config of a model", "--config"),
    "data.h5": ("an HDF5 file of other data (`images`, `labels`)", "Check the path"),
    "empty.keras": ("an empty file", "Copy, or download"),
    "git_annex.h5": ("a pointer of git-annex", "git annex get"),
    "git_lfs.h5": ("a pointer of Git LFS to 12,345 bytes", "git lfs pull"),
    "gzip.keras": ("a gzip archive", "Unpack it"),
    "lite.h5": ("a model of TensorFlow Lite", "from which this one was made"),
    "numpy.keras": ("an archive of arrays, of NumPy", "numpy.load"),
    "pickle.h5": ("a pickle of Python", "It may run any code"),
    "refused.keras": ("XML, as servers answer where they refuse", "signing in"),
    "safetensors.h5": ("a file of safetensors", "tiedio export"),
    "tar.keras": ("a tar archive", "Unpack it"),
    "torch.h5": ("an archive of `torch.save`", "torch.load"),
    "torch_before_1_6.h5": ("a file of `torch.save`", "torch.load"),
    "web_page.h5": ("a web page", "raw or download"),
    "zeros.h5": ("zero bytes, as of a copy that was broken off", "Copy, or download"),
    "zip.keras": ("an archive with a file of Keras inside", "Unpack it"),
}


def model():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="dense")])


DOORS = {
    "inspect": files.inspect,
    "plan": files.plan,
    "verify": files.verify,
    "diff": lambda path: files.diff(FIXTURES / "tied_v1.keras", path),
    "migrate": lambda path: files.migrate(path, path.parent / "new.keras"),
    "export": lambda path: files.export(path, path.parent / "new.safetensors"),
    "load_tied": tiedio.load_tied,
    "load_tied_weights": lambda path: tiedio.load_tied_weights(model(), path),
}


def test_every_one_is_here():
    names = {one.name for one in OTHERS.iterdir() if not one.name.endswith("_savedmodel")}
    assert names == KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_whoever_opens_it_says_the_same(name, tmp_path):
    shutil.copy(OTHERS / name, tmp_path)
    said = set()
    for door in DOORS.values():
        with pytest.raises(errors.FileFormatError) as error:
            door(tmp_path / name)
        said.add(str(error.value))
    (one,) = said
    what, advice = KINDS[name]
    first, received, last = one.splitlines()
    assert first == f"`{tmp_path / name}` is not a Keras file."
    assert received.endswith(f"Received: {what}.")
    assert advice in last


def test_pointers_in_the_place_of_weights(tmp_path):
    """A repository that was cloned without what Git LFS keeps elsewhere."""
    tiedio.save_tied(model(), tmp_path / "folder", zipped=False)
    shutil.copy(OTHERS / "git_lfs.h5", tmp_path / "folder" / "model.weights.h5")
    tiedio.save_tied_weights(model(), tmp_path / "m.weights.json", max_shard_size=1e-7)
    for shard in tmp_path.glob("*.weights.h5"):
        shutil.copy(OTHERS / "git_lfs.h5", shard)
    for name in ("folder", "m.weights.json"):
        with pytest.raises(errors.FileFormatError) as error:
            files.verify(tmp_path / name)
        assert str(error.value) == (
            f"`{tmp_path / name}` has weights that are no HDF5 file.\n"
            "Expected: weights as Keras stores them. "
            "Received: a pointer of Git LFS to 12,345 bytes."
            "\nFetch the file that it stands for: `git lfs pull`."
        )


def test_links_that_lead_nowhere(tmp_path):
    (tmp_path / "annexed.h5").symlink_to("../.git/annex/objects/aa/bb/key.h5")
    (tmp_path / "broken.h5").symlink_to("gone.h5")
    for name, received, advice in (
        ("annexed.h5", "a link to `../.git/annex/objects/aa/bb/key.h5`", "git annex get"),
        ("broken.h5", "a link to `gone.h5`, where nothing is", "Check the path."),
    ):
        with pytest.raises(errors.MissingFileError) as error:
            files.inspect(tmp_path / name)
        assert received in str(error.value)
        assert advice in str(error.value)


@pytest.mark.parametrize("load", ["load_tied", "load_tied_weights"])
@pytest.mark.parametrize(
    ("path", "is_a", "advice"),
    [
        ("tf_1_15/nested_ckpt", "checkpoint", "`tiedio migrate` makes"),
        ("tf_1_15/nested_ckpt/ckpt", "checkpoint", "`--config`"),
        ("tf_1_15/nested_ckpt/ckpt.index", "checkpoint", "`--config`"),
        (
            "tf_1_15/nested_savedmodel",
            "SavedModel",
            "`tiedio migrate` makes a `.keras` file of it.",
        ),
        ("tf_2_8/nested_savedmodel", "SavedModel", "`tiedio migrate` makes a `.keras` file of it."),
        ("tf_2_8/nested_savedmodel/saved_model.pb", "SavedModel", "`tiedio migrate` makes"),
        ("others/module_savedmodel", "SavedModel", "`keras.layers.TFSMLayer` runs it."),
        ("others/exported_savedmodel", "SavedModel", "`keras.layers.TFSMLayer` runs it."),
    ],
)
def test_what_tensorflow_wrote_is_called_so(path, is_a, advice, load):
    with pytest.raises(errors.FileFormatError) as error:
        DOORS[load](FIXTURES / path)
    first, _, last = str(error.value).splitlines()
    assert first == f"`{FIXTURES / path}` is a {is_a} of TensorFlow."
    assert advice in last


CONFIG = {
    "class_name": "Sequential",
    "config": {"layers": [{"class_name": "Dense", "config": {"name": "a", "units": 2}}]},
}


@pytest.mark.parametrize("name", ["module", "exported"])
def test_no_migration_is_promised_that_is_refused(name, tmp_path):
    pytest.importorskip("tensorflow")
    with pytest.raises(errors.MigrationError, match=r"`keras\.layers\.TFSMLayer` runs it") as error:
        files.migrate(OTHERS / f"{name}_savedmodel", tmp_path / "new.keras")
    assert not isinstance(error.value, errors.OptionNeededError)  # no option helps
    assert "`model.export`" in str(error.value)
    with pytest.raises(errors.MigrationError) as given:  # nor a config
        files.migrate(OTHERS / f"{name}_savedmodel", tmp_path / "new.keras", config=CONFIG)
    assert str(given.value) == str(error.value)
    planned = many.plan(OTHERS / f"{name}_savedmodel")
    assert [(str(one.state), str(one.error)) for one in planned] == [("failed", str(error.value))]


def test_a_plan_says_that_a_config_is_needed(tmp_path):
    pytest.importorskip("tensorflow")
    path = FIXTURES / "tf_2_3/two_paddings_ckpt"
    with pytest.raises(errors.OptionNeededError) as error:
        files.migrate(path, tmp_path / "new.keras")
    assert error.value.plan == files.plan(path)
    assert (files.plan(path).refused, files.plan(path).needs) == (
        str(error.value),
        ("--config FILENAME",),
    )


def test_checkpoints_of_tensorflow_are_verified(tmp_path):
    pytest.importorskip("tensorflow")
    folder = shutil.copytree(FIXTURES / "tf_2_8/nested_ckpt", tmp_path / "ckpt")
    found = files.verify(folder)
    assert (found.is_verified, found.against, found.tensors) == (True, "checksums", 16)
    data = folder / "ckpt.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[5] ^= 1
    data.write_bytes(content)
    found = files.verify(folder)
    assert not found.is_verified
    assert [problem.what for problem in found.problems] == ["not the values that were saved"]


def test_open_files_are_recognised_too():
    with open(OTHERS / "torch.h5", "rb") as file:
        assert at(file).name
        with pytest.raises(errors.FileFormatError, match=r"archive of `torch\.save`"):
            tiedio.load_tied(file)


def test_a_file_of_keras_that_lacks_a_member(tmp_path):
    model().save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        weights = archive.read("model.weights.h5")
    sample_files.zipped(tmp_path / "other.keras", {"model.weights.h5": weights})
    with pytest.raises(errors.FileFormatError, match=r"it has no `config\.json`"):
        files.inspect(tmp_path / "other.keras")
