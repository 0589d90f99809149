"""What `summary` prints of models and files, and what notebooks show of tie groups."""

import pickle
import re
import subprocess
import sys
import types

import keras
import pytest
import rich.console
import sample_files
from checkout import environment
from keras import layers

import tiedio
from tiedio import files
from tiedio.record.ties import Place, TieGroup, Ties


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sample_files.write(tmp_path_factory.mktemp("files"))


def printed(what, **options):
    lines = []
    tiedio.summary(what, print_fn=lines.append, **options)
    return lines


def rows(lines):
    """Returns the cells of a table, line by line; a rule is between tie groups."""
    cells = [line.split("│")[1:-1] for line in lines if line[0] in "│├"]
    return [[cell.strip() for cell in row] for row in cells]


def autoencoder(**options):
    parts = [layers.Dense(8, name=name) for name in ("encoder", "code", "decoder")]
    model = keras.Sequential([keras.Input((8,)), *parts], name="autoencoder")
    tiedio.tie(parts[2], to=parts[0], **options)
    return model


def test_a_model():
    model = autoencoder()
    tiedio.tie(model.layers[1], to=model.layers[2], weights=["kernel"])
    model.layers[0].bias.trainable = False
    lines = printed(model)
    assert lines[0] == 'Tied variables of "autoencoder"'
    assert [title.strip() for title in lines[2].split("┃")[1:-1]] == [
        "tied",
        "shape, dtype",
        "saves",
        "trainable",
    ]
    assert rows(lines) == [
        ["encoder/kernel =", "(8, 8)", "512 bytes", "yes"],
        ["code/kernel =", "float32", "", ""],
        ["decoder/kernel", "", "", ""],
        [],
        ["encoder/bias =", "(8,)", "32 bytes", "no"],
        ["decoder/bias", "float32", "", ""],
    ]
    assert lines[-1] == (
        "2 tie groups of 5 variables; to store and hold them once saves 544 bytes."
    )


def test_it_is_printed_and_nothing_is_returned(capsys):
    model = autoencoder(weights=["kernel"])
    assert tiedio.summary(model) is None
    assert capsys.readouterr().out.splitlines() == printed(model)


def test_a_model_without_ties():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2)], name="[bold]plain")
    assert printed(model) == ['"[bold]plain" has no tied variables.']


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_bytes_of_other_dtypes(dtype):
    parts = [layers.Dense(8, dtype=dtype, name=name) for name in "ab"]
    model = keras.Sequential([keras.Input((8,), dtype=dtype), *parts])
    tiedio.tie(parts[1], to=parts[0], weights=["kernel"])
    size = {"bfloat16": 2, "float16": 2, "float64": 8}[dtype]
    assert rows(printed(model))[0][2] == f"{64 * size} bytes"


class Twins(keras.Model):
    """Two layers of one name, and one that knows its variable by two attributes."""

    def __init__(self):
        super().__init__(name="twins")
        self.one, self.other = layers.Dense(4, name="twin"), layers.Dense(4, name="twin")

    def build(self, shape):
        self.one.build(shape)
        self.other.build(shape)

    def call(self, inputs):
        return self.other(self.one(inputs))


def test_layers_of_one_name_are_told_apart_by_their_paths():
    model = Twins()
    model.build((1, 4))
    tiedio.tie(model.other, to=model.one, weights=["kernel"])
    assert [row[0] for row in rows(printed(model))] == [
        "layers/dense/kernel =",
        "layers/dense_1/kernel",
    ]


def test_two_attributes_of_one_layer_save_nothing():
    model = Twins()
    model.build((1, 4))
    model.one.also = model.one.kernel
    assert rows(printed(model))[0] == ["layers/dense/kernel =", "(4, 4)", "0 bytes", "yes"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("tied.keras", "kernel"),
        ("folder", "kernel"),
        ("tied.h5", "kernel"),
        ("tied.weights.h5", "0"),
        ("tied.weights.json", "0"),
    ],
)
def test_files(folder, name, part):
    lines = printed(folder / name)
    assert lines[0].endswith(f'{name}"')
    assert rows(lines) == [
        [f"encoder/{part} =", "(8, 8)", "256 bytes", "yes"],
        [f"decoder/{part}", "float32", "", ""],
    ]
    assert lines[-1] == "1 tie group of 2 variables, which makes the file 256 bytes smaller."


def test_a_file_says_what_its_model_says(folder):
    model = tiedio.load_tied(folder / "tied.keras")
    assert rows(printed(folder / "tied.keras")) == rows(printed(model))


def test_an_open_file_and_a_url(folder):
    import fsspec

    whole = printed(folder / "tied.keras")
    with (folder / "tied.keras").open("rb") as file:
        assert printed(file)[1:] == whole[1:]
    with fsspec.open("memory://summary/tied.keras", "wb") as target:
        target.write((folder / "tied.keras").read_bytes())
    assert printed("memory://summary/tied.keras")[1:] == whole[1:]


def test_a_file_without_ties(folder):
    (line,) = printed(folder / "lost.keras")
    assert line.endswith('lost.keras" has no tied variables.')


def test_a_variable_that_is_not_trained_is_known_from_the_record(tmp_path):
    model = autoencoder(weights=["kernel"])
    model.layers[0].kernel.trainable = False
    tiedio.save_tied(model, tmp_path / "frozen.keras")
    assert rows(printed(tmp_path / "frozen.keras"))[0][-1] == "no"


def test_who_knows_what_is_not_said(folder, tmp_path):
    """Links alone do not say what is trained."""

    def drop(file):
        del file["tiedio"]

    linked = sample_files.edited(folder / "tied.weights.h5", tmp_path / "linked.weights.h5", drop)
    assert rows(printed(linked))[0][-1] == "unknown"


def test_files_are_read_without_keras(folder):
    script = (
        "import sys, tiedio\n"
        f"tiedio.summary({str(folder / 'tied.keras')!r})\n"
        "print('keras' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    assert "encoder/kernel =" in done.stdout


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A file of 30 tie groups with 12 aliases each, of names that rich would take for markup."""
    names = {}
    for group in range(30):
        owner = f"[bold]{'layer_of_a_long_name_' * 4}{group:02}"
        names[owner] = [f"{owner}[/bold]_alias_{n:02}" for n in range(12)]
    return names, sample_files.weights(
        tmp_path_factory.mktemp("long") / "long.weights.h5",
        {f"layers/{owner.replace('/', '-')}/vars/0": range(4) for owner in names},
        {
            f"layers/{alias.replace('/', '-')}/vars/0": f"layers/{owner}/vars/0"
            for owner, aliases in names.items()
            for alias in aliases
        },
    )


def test_long_names_have_a_line_each(long):
    """So that programs may search."""
    names, file = long
    lines = printed(file, verbose=True)
    assert {len(line) for line in lines[1:-1]} == {len(lines[1])}
    seen = "".join(row[0] if row else "\n" for row in rows(lines)).replace(" ", "").split("\n")
    assert sorted(seen) == sorted("=".join(group) for group in written(names))
    assert len(rows(lines)) == 30 * 13 + 29


def written(names):
    """Yields the names of each tie group as they are in the file."""
    for owner, aliases in names.items():
        yield [f"{name.replace('/', '-')}/0" for name in (owner, *aliases)]


def check_is_whole(lines, names, width):
    """Where a table has no room, no name is cut off or broken; nothing else is longer."""
    words = " ".join(lines).split()
    assert {name for group in written(names) for name in group} <= set(words)
    assert all(len(line) <= width or " " not in line.removesuffix(" =") for line in lines)


@pytest.mark.parametrize("width", [60, 100])
def test_long_names_are_not_broken(long, width):
    names, file = long
    check_is_whole(printed(file, line_length=width, verbose=True)[1:-1], names, width)


def test_a_terminal_breaks_no_name(long):
    names, file = long
    script = f"import tiedio; tiedio.summary({str(file)!r}, verbose=True)"
    wide = environment(COLUMNS="100", FORCE_COLOR="1")
    done = subprocess.run([sys.executable, "-c", script], env=wide, capture_output=True, text=True)
    plain = re.sub(r"\x1b\[[\d;]*m", "", done.stdout)
    check_is_whole(plain.splitlines()[1:-1], names, 100)


# Notebooks


def test_tie_groups_are_a_tuple_still():
    ties = tiedio.find_ties(autoencoder())
    assert type(ties) is Ties
    assert ties == tuple(ties)
    assert hash(ties) == hash(tuple(ties))
    again = pickle.loads(pickle.dumps(ties))  # noqa: S301
    assert (again, type(again)) == (ties, Ties)
    assert tiedio.find_ties(layers.Dense(2)) == ()


def test_tables_for_notebooks():
    ties = tiedio.find_ties(autoencoder())
    table = ties._repr_html_()
    assert table.count("<tr>") == 1 + 2
    for group in ties:
        alone = group._repr_html_()
        assert alone.count("<tr>") == 1 + 1
        for cell in (f"{group.owner} =<br>{group.aliases[0]}", f"{group.shape}<br>float32", "yes"):
            assert f">{cell}<" in alone
            assert f">{cell}<" in table
    assert "No variables are tied." in Ties()._repr_html_()


def test_names_are_escaped():
    owner, alias = Place("layers/<b>", "k&l"), Place("layers/</table>", '"m"\u202e')
    table = TieGroup(owner, (alias,), (2,), "<i>", False)._repr_html_()
    for name in (str(owner), str(alias), "<i>", "\u202e"):
        assert name not in table
    assert "layers/&lt;b&gt;/k&amp;l" in table
    assert "layers/&lt;/table&gt;/&quot;m&quot;\\u202e" in table
    assert ">no<" in table


def test_what_files_tell_is_a_table_too(folder):
    for told in (files.inspect(folder / "tied.keras"), files.plan(folder / "tied.keras")):
        page = told._repr_html_()
        assert page.count("<table") == 1
        assert "encoder/kernel =" in page and "decoder/kernel" in page
    for told in (
        files.verify(folder / "tied.keras"),
        files.diff(folder / "tied.keras", folder / "lost.keras"),
    ):
        assert str(folder / "tied.keras") in told._repr_html_()


def test_a_notebook_shows_a_summary_as_html(monkeypatch):
    shown = []
    display = types.SimpleNamespace(HTML=lambda page: page, display=shown.append)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(display=display))
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    monkeypatch.setattr(rich, "_console", None)  # which one is made once, and kept
    tiedio.summary(autoencoder())
    (page,) = shown
    assert "encoder/kernel =<br>decoder/kernel" in page and "1 tie" not in page
    assert "2 tie groups of 4 variables" in page


# Many


def blocks(count, tied_to):
    """Two layers in each block; tied to the first ones, or to one another."""
    parts = [layers.Dense(8, name=f"block_{n}_{part}") for n in range(count) for part in "ab"]
    model = keras.Sequential([keras.Input((8,)), *parts])
    for number, part in enumerate(parts):
        if (owner := parts[tied_to(number)]) is not part:
            tiedio.tie(part, to=owner)
    return model


@pytest.mark.seldom
def test_blocks_that_share_fit_on_a_screen():
    one, pairs = blocks(60, lambda number: number % 2), blocks(60, lambda number: number // 2 * 2)
    for model in (one, pairs):
        lines = printed(model, line_length=100)
        assert len(lines) <= 40
        assert max(map(len, lines)) <= 100
        whole = "\n".join(printed(model, verbose=True))
        assert all(f"block_{n}_{part}/kernel" in whole for n in range(60) for part in "ab")
    assert rows(printed(one))[0] == [
        "block_0_a/kernel … block_59_a/kernel",
        "(8, 8)",
        "15,104 bytes",
        "yes",
    ]
    assert [row[0] for row in rows(printed(pairs))[:5]] == [
        "block_0_a/kernel =",
        "block_0_b/kernel",
        "… 60 of these, to",
        "block_59_a/kernel =",
        "block_59_b/kernel",
    ]
    assert rows(printed(pairs))[0][2] == "60 x 256 bytes"
    assert str(tiedio.find_ties(one)[0]).startswith(
        "block_0_a/kernel = block_1_a/kernel … block_59_a/kernel  (8, 8)"
    )


def test_layers_in_several_places_follow(tmp_path, monkeypatch):
    cell, series = keras.layers.GRUCell(4, name="cell"), keras.Input((None, 3))
    first, second = (keras.layers.RNN(cell, name=name) for name in ("first", "second"))
    model = keras.Model(series, first(series) + second(series), name="twice")
    assert lines_of(model) == [
        'Shared in "twice":',
        "One layer in 2 places: first/cell = second/cell",
    ]
    tiedio.save_tied(model, tmp_path / "twice", zipped=False)
    monkeypatch.chdir(tmp_path / "twice")
    assert lines_of(".")[1] == "One layer in 2 places: first/cell = second/cell"


def test_several_models(tmp_path):
    """By the names that they were given; places that are the models themselves come first."""
    encoder, decoder = (
        keras.Sequential([keras.Input((4,)), layers.Dense(4, name=name)], name=f"a_{name}")
        for name in ("code", "image")
    )
    inputs = keras.Input((4,))
    whole = keras.Model(inputs, decoder(encoder(inputs)), name="whole")
    models = {"autoencoder": whole, "encoder": encoder, "decoder": decoder}
    places = [
        "One model in 2 places: encoder = autoencoder/encoder",
        "One model in 2 places: decoder = autoencoder/decoder",
    ]
    assert lines_of(models) == [
        'Shared in "autoencoder", "encoder" and "decoder":',
        *places,
    ]
    tiedio.tie(decoder.layers[0], to=encoder.layers[0], weights=["bias"])
    lines = lines_of(models)
    assert lines[0] == 'Tied variables of "autoencoder", "encoder" and "decoder"'
    assert lines[-2:] == places
    tiedio.save_tied(models, tmp_path / "models.keras")
    assert lines_of(tmp_path / "models.keras")[-2:] == places
    cell = {"image": decoder, "layer": keras.Sequential([keras.Input((4,)), decoder.layers[0]])}
    assert lines_of(cell)[-1].startswith("One layer in 2 places: image/image = layer/")


def lines_of(model_or_filepath):
    lines = []
    tiedio.summary(model_or_filepath, print_fn=lines.append)
    return lines
