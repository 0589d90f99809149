"""Files of old versions stay readable, and the scripts beside them still say how they were made."""

import io
import json
import re
import subprocess
import sys
import tomllib
import zipfile

import h5py
import keras
import numpy as np
import pytest
from checkout import FIXTURES

import tiedio

# But for one that no Keras of today runs.
SCRIPTS = sorted({*FIXTURES.glob("*.py")} - {FIXTURES / "keras_1.py"})


def header(script):
    """Reads the PEP 723 header of a script."""
    (lines,) = re.findall(r"(?ms)^# /// script$\n(.*?)^# ///$", script.read_text())
    return tomllib.loads(re.sub(r"(?m)^# ?", "", lines))


def content(filepath):
    """Reads what must not change: not the date, the addresses of objects, the backend's choices."""
    with zipfile.ZipFile(filepath) as archive:
        metadata = json.loads(archive.read("metadata.json"))
        del metadata["date_saved"]
        # Of what there are digests, which are of the kind of a version; values are compared below.
        if "tiedio" in metadata:
            metadata["tiedio"]["digests"] = sorted(metadata["tiedio"]["digests"])
        config = re.sub(
            rb'"shared_object_id": \d+', b'"shared_object_id": 0', archive.read("config.json")
        )
        config = json.loads(config)
        del config["compile_config"]["jit_compile"]
        for place in "module", "registered_name":  # on torch, an optimizer has a class of its own
            del config["compile_config"]["optimizer"][place]
        datasets = {}
        with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as weights:
            weights.visititems(
                lambda path, item: (
                    datasets.update({path: item[()].tolist()})
                    if isinstance(item, h5py.Dataset)
                    else None
                )
            )
        return metadata, config, datasets


def test_every_file_has_its_script():
    assert {f.stem for f in FIXTURES.glob("*.keras")} == {script.stem for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
@pytest.mark.slow
def test_scripts_and_files_are_in_step(script, tmp_path):
    pinned = dict(dependency.split("==") for dependency in header(script)["dependencies"])
    frozen = script.with_suffix(".keras")
    if pinned:
        assert content(frozen)[0]["keras_version"] == pinned["keras"]
    if pinned.get("keras", keras.__version__) != keras.__version__:
        return  # another Keras writes another file; the header above was checked
    subprocess.run([sys.executable, script, tmp_path], check=True)
    remade = tmp_path / frozen.name
    if zipfile.is_zipfile(frozen):
        assert content(remade) == content(frozen)
    else:
        assert remade.read_bytes() == frozen.read_bytes()


def test_a_tied_file_of_version_1_loads_tied_and_resumes():
    model = tiedio.load_tied(FIXTURES / "tied_v1.keras")
    same, valid = model.layers[1:3]
    assert same.kernel is valid.kernel
    assert same.bias is not valid.bias
    kernel = (np.arange(18) / 18).astype("float32").reshape(3, 3, 1, 2)
    assert np.array_equal(keras.ops.convert_to_numpy(same.kernel), kernel)
    assert int(model.optimizer.iterations) == 7
    assert len(model.optimizer.variables) == 2 + 2 * 3
    assert np.array_equal(keras.ops.convert_to_numpy(model.optimizer.variables[2]), kernel)


def test_a_stock_file_loads_as_in_keras_and_says_what_helps():
    with pytest.warns(tiedio.TiedioWarning, match="`tiedio migrate .* NEW` ties") as warned:
        model = tiedio.load_tied(FIXTURES / "stock_3_15.keras")
    assert len(warned) == 1
    same, valid = model.layers[1:3]
    assert same.kernel is not valid.kernel
    assert np.array_equal(
        keras.ops.convert_to_numpy(same.kernel), keras.ops.convert_to_numpy(valid.kernel)
    )


def array(variable):
    return np.array(keras.ops.convert_to_numpy(variable))


def test_hard_links_without_a_record_are_ties():
    model = tiedio.load_tied(FIXTURES / "hard_links.keras")
    (ties,) = tiedio.find_ties(model)
    assert [place.attribute for place in ties.places] == ["_kernel"] * 4
    kernel = (np.arange(18) / 18).astype("float32").reshape(3, 3, 1, 2)
    assert np.array_equal(array(model.layers[1].kernel), kernel)
    assert int(model.optimizer.iterations) == 7
    slots = list(map(array, model.optimizer.variables[2:]))
    assert len(slots) == 2 * 5 and np.array_equal(slots[1], kernel)

    untied = keras.models.clone_model(model)
    tiedio.load_tied_weights(untied, FIXTURES / "hard_links.weights.h5")
    assert tiedio.find_ties(untied) == (ties,)
    for ours, theirs in zip(untied.weights, model.weights, strict=True):
        assert np.array_equal(array(ours), array(theirs))


def test_no_hard_link_leads_into_another_shard():
    """What is linked in one shard is tied; a copy in the next one is a variable by itself."""
    tied = tiedio.load_tied(FIXTURES / "hard_links.keras", compile=False)
    (ties,) = tiedio.find_ties(tied)
    values = [array(variable) for variable in tied.weights]
    for variable in tied.weights:
        variable.assign(keras.ops.zeros(variable.shape))
    untied = keras.models.clone_model(tied)
    for model in tied, untied:
        tiedio.load_tied_weights(model, FIXTURES / "hard_links.weights.json")
    assert tiedio.find_ties(tied) == (ties,)
    assert all(map(np.array_equal, map(array, tied.weights), values))
    assert tiedio.find_ties(untied) == (ties.at(ties.places[:3]),)
    *_, apart = [layer for layer in untied.layers if hasattr(layer, "kernel")]
    assert np.array_equal(array(apart.kernel), values[0])


def test_a_truncated_file_is_refused():
    with pytest.raises(tiedio.TiedioError, match="it was truncated"):
        tiedio.load_tied(FIXTURES / "truncated.keras")


WRITERS = FIXTURES / "writers"


def test_every_folder_has_its_writer():
    folders = {path.name for path in FIXTURES.iterdir() if path.is_dir()} - {
        "writers",
        "lambdas",  # by several versions, and its own script
        "__pycache__",
    }
    assert folders == {script.stem for script in WRITERS.glob("*.py")} - {"models"}


# What models it has, and what other programs wrote, says no version of Keras.
OF_KERAS = sorted(one for one in WRITERS.glob("*.py") if one.stem not in ("models", "others"))


@pytest.mark.parametrize("script", OF_KERAS, ids=lambda script: script.stem)
def test_writers_name_exact_versions_and_all_files(script):
    needs = header(script)
    folder = FIXTURES / script.stem
    truth = json.loads((folder / "truth.json").read_text())
    written_by = truth["versions"]
    assert written_by["python"].startswith(needs["requires-python"].strip("=*"))
    exact = re.compile(r"([\w-]+)==(\d[\w.]*)")
    pins = dict(exact.fullmatch(pin).groups() for pin in needs["dependencies"])
    assert pins.get("tensorflow-cpu", pins.get("tensorflow")) == written_by["tensorflow"]
    if "keras" in pins:
        assert pins.get("tf-keras", pins["keras"]) == written_by["keras"]
    assert {path.name for path in folder.iterdir()} == {*truth["files"], "truth.json", "truth.npz"}
    arrays = np.load(folder / "truth.npz")
    for name, entry in truth["files"].items():
        assert {path for tie in entry["ties"] for path in tie} <= entry["variables"].keys(), name
        assert entry["predictions"] in arrays
        if "continued" in entry:
            sizes = (np.prod(variable["shape"]) for variable in entry["variables"].values())
            assert arrays[entry["continued"]["weights"]].size == sum(sizes)
