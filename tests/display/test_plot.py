"""What `plot_ties` adds to the plot of Keras: read from the sources that it writes."""

import html
import importlib.util
import os
import re
import shutil
import subprocess
import sys

import keras
import pydot
import pytest
from checkout import environment
from keras import layers

import tiedio
from tiedio import errors
from tiedio.display import plot

COLOURS = [colour for colour, _ in plot._COLOURS]
needs_dot = pytest.mark.skipif(
    not shutil.which("dot"), reason="pictures are drawn by the program `dot` of Graphviz"
)


class Drawn:
    """A source that was written, by the names of layers."""

    def __init__(self, model, folder, **options):
        assert tiedio.plot_ties(model, folder / "ties.dot", **options) is None
        (self.graph,) = pydot.graph_from_dot_file(folder / "ties.dot")
        self.colours, self.numbers, self.clusters, named = {}, {}, {}, {}
        for cluster, node in self._nodes(self.graph):
            if not (label := node.get("label")):
                continue
            (name,) = re.findall("<b>(.*?)</b>", label)
            name = named[node.get_name()] = html.unescape(name)
            self.colours[name] = re.search('bgcolor="(.*?)"', label)[1]
            number = re.search(r">(\d+) &#160;", label)
            self.numbers[name] = int(number[1]) if number else None
            self.clusters[name] = cluster
        self.ties = {}
        for edge in self.graph.get_edges():
            ends = tuple(named[end] for end in (edge.get_source(), edge.get_destination()))
            if edge.get("style") == "dashed":
                assert ends not in self.ties
                self.ties[ends] = edge

    def _nodes(self, graph, cluster=None):
        yield from ((cluster, node) for node in graph.get_nodes())
        for inner in graph.get_subgraphs():
            yield from self._nodes(inner, inner.get("label").strip('"'))

    def words(self, *ends, label="label"):
        return self.ties[ends].get(label).strip('"').replace(" ", "").split("\\n")

    @property
    def tied(self):
        return {name: colour for name, colour in self.colours.items() if colour != "black"}


def dense(*names, units=4):
    return [layers.Dense(units, name=name) for name in names]


def chain(parts, **options):
    return keras.Sequential([keras.Input((4,)), *parts], **options)


@pytest.fixture
def pair():
    model = chain(dense("encoder", "code", "decoder"))
    tiedio.tie(model.layers[2], to=model.layers[0])
    return model


def test_layers_that_share_have_one_colour_and_one_line(pair, tmp_path):
    drawn = Drawn(pair, tmp_path)
    assert drawn.colours == {"encoder": COLOURS[0], "code": "black", "decoder": COLOURS[0]}
    assert set(drawn.numbers.values()) == {None}
    assert list(drawn.ties) == [("encoder", "decoder")]
    assert drawn.words("encoder", "decoder") == ["kernel", "bias"]
    edge = drawn.ties["encoder", "decoder"]
    assert edge.get("constraint") == "false"
    assert edge.get("color").strip('"') == COLOURS[0]
    assert (edge.get("arrowtail"), edge.get("arrowhead")) == ("dot", "none")


def test_what_is_connected_by_ties_is_one_set(tmp_path):
    parts = dense(*"abcde")
    model = chain(parts)
    tiedio.tie(parts[1], to=parts[0], weights=["kernel"])
    tiedio.tie(parts[4], to=parts[3])
    tiedio.tie(parts[2], to=parts[1], weights=["bias"])
    drawn = Drawn(model, tmp_path)
    assert drawn.numbers == {"a": 1, "b": 1, "c": 1, "d": 2, "e": 2}
    assert drawn.tied == {name: COLOURS[number - 1] for name, number in drawn.numbers.items()}
    assert set(drawn.ties) == {("a", "b"), ("b", "c"), ("d", "e")}
    assert drawn.words("a", "b") == ["kernel"]
    assert drawn.words("b", "c") == ["bias"]


def test_more_sets_than_colours_are_told_apart_by_numbers(tmp_path):
    owners, users = (dense(*(f"{kind}_{n}" for n in range(30))) for kind in ("owner", "user"))
    model = chain([*owners, *users])
    for owner, user in zip(owners, users, strict=True):
        tiedio.tie(user, to=owner)
    drawn = Drawn(model, tmp_path)
    for n in range(30):
        ends = f"owner_{n}", f"user_{n}"
        assert {drawn.numbers[end] for end in ends} == {n + 1}
        assert {drawn.colours[end] for end in ends} == {COLOURS[n % len(COLOURS)]}
    # A legend takes the place of the lines.
    assert not drawn.ties
    legend = re.findall("<td.*?>(.*?)</td>", drawn.graph.get("label"))
    assert legend[-3:] == [
        "1 … 30",
        "owner_0 = user_0 … owner_29 = user_29",
        "kernel, bias",
    ]


def towers():
    left, right = (
        chain(dense(f"{side}_one", f"{side}_two"), name=side) for side in ("left", "right")
    )
    for one, other in zip(left.layers, right.layers, strict=True):
        tiedio.tie(other, to=one)
    query, document = keras.Input((4,)), keras.Input((4,))
    return keras.Model([query, document], layers.Dot(1)([left(query), right(document)]))


def test_what_is_tied_in_nested_models_is_drawn_at_their_boxes(tmp_path):
    drawn = Drawn(towers(), tmp_path)
    assert set(drawn.tied) == {"left", "right"}
    assert list(drawn.ties) == [("left", "right")]
    assert drawn.words("left", "right") == ["2xkernel", "2xbias"]


def test_nested_models_can_be_expanded(tmp_path):
    drawn = Drawn(towers(), tmp_path, expand_nested=True)
    assert drawn.tied == {
        f"{side}_{part}": colour
        for side in ("left", "right")
        for part, colour in zip(("one", "two"), COLOURS, strict=False)
    }
    assert set(drawn.ties) == {("left_one", "right_one"), ("left_two", "right_two")}
    assert drawn.clusters["right_two"] == "right"


class Speech(keras.Model):
    """Keras draws it as one box."""

    def __init__(self):
        super().__init__(name="speech")
        self.encoder = chain(dense("first", "second"), name="encoder")
        self.middle = layers.Dense(4, name="middle")
        self.decoder = layers.Dense(4, name="decoder")

    def call(self, inputs):
        return self.decoder(self.middle(self.encoder(inputs)))


def test_a_model_of_one_box_is_drawn_as_its_tied_layers(tmp_path):
    model = Speech()
    model(keras.ops.zeros((1, 4)))
    tiedio.tie(model.decoder, to=model.encoder.layers[1], weights=["kernel"])
    drawn = Drawn(model, tmp_path)
    # In the order of the walk, which is that of names.
    assert set(drawn.colours) == {"encoder/second", "decoder"}
    assert set(drawn.tied.values()) == {COLOURS[0]}
    assert list(drawn.ties) == [("encoder/second", "decoder")]
    (order,) = (edge for edge in drawn.graph.get_edges() if edge.get("style") == "invis")
    assert order.get("constraint") is None


@keras.saving.register_keras_serializable("plots")
class Block(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.up, self.down = dense("up", "down")

    def build(self, shape):
        self.up.build(shape)
        self.down.build(shape)

    def call(self, inputs):
        return self.down(self.up(inputs))


def test_what_is_tied_inside_a_box_is_drawn_at_it(tmp_path):
    block = Block(name="block")
    model = chain([block, *dense("after")])
    tiedio.tie(block.down, to=block.up, weights=["kernel"])
    drawn = Drawn(model, tmp_path)
    assert drawn.tied == {"block": COLOURS[0]}
    assert list(drawn.ties) == [("block", "block")]
    assert drawn.words("block", "block") == ["kernel"]


class Uses(layers.Layer):
    def __init__(self, owner, **options):
        super().__init__(**options)
        self.find = lambda: owner.kernel

    def build(self, shape):
        self.shared = self.find()

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.shared)


def test_variables_of_two_names(tmp_path):
    (one,) = dense("one")
    model = chain([one, Uses(one, name="other")])
    drawn = Drawn(model, tmp_path)
    assert drawn.words("one", "other") == ["kernel=shared"]


def test_a_layer_that_is_called_twice_is_not_tied(tmp_path):
    (shared,) = dense("shared")
    inputs = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), shared], name="inner")
    model = keras.Model(inputs, shared(inner(shared(inputs))))
    tiedio.plot_ties(model, tmp_path / "ties.dot")
    # Without ties, it is what Keras draws.
    assert (tmp_path / "ties.dot").read_text() == keras.utils.model_to_dot(model).to_string()


class Several:
    """A source of several models that was written, by their names and `model/layer`."""

    def __init__(self, models, folder, **options):
        tiedio.plot_ties(models, folder / "several.dot", **options)
        (self.graph,) = pydot.graph_from_dot_file(folder / "several.dot")
        self.colours, self.numbers, self._names = {}, {}, {}
        for cluster in self.graph.get_subgraphs():
            self._read(cluster, "")
        self.lines = {
            self._ends(edge): edge
            for edge in self.graph.get_edges()
            if edge.get("style") == "dashed"
        }

    def _read(self, cluster, around):
        title = self._enter(cluster, around, cluster.get("color").strip('"'))
        for node in cluster.get_nodes():
            self._enter(node, title, re.search('bgcolor="(.*?)"', node.get("label"))[1])
        for inner in cluster.get_subgraphs():
            self._read(inner, title)

    def _enter(self, item, around, colour):
        (name,) = re.findall("<b>(.*?)</b>", item.get("label"))
        name = self._names[item.get_name()] = f"{around}/{name}".lstrip("/")
        number = re.search(r">(\d+) &#160;", item.get("label"))
        self.numbers[name] = int(number[1]) if number else None
        self.colours[name] = colour
        return name

    def _ends(self, edge):
        nodes = edge.get_source(), edge.get_destination()
        cut = [(edge.get(key) or "").strip('"') for key in ("ltail", "lhead")]
        return tuple(self._names[one or node] for one, node in zip(cut, nodes, strict=True))

    @property
    def tied(self):
        """The colours of what has one, by their numbers in the palette."""
        return {
            name: COLOURS.index(colour)
            for name, colour in self.colours.items()
            if colour in COLOURS
        }

    def look(self, *ends):
        line = self.lines[ends]
        return line.get("arrowtail"), (line.get("label") or "").strip('" ').replace(" \\n ", " ")


@pytest.fixture
def gan():
    """A generator and a discriminator are parts of a third model, and tied to a fourth."""
    generator = chain(dense("hidden", "picture"), name="painter")
    discriminator = chain(dense("features", "score"), name="critic")
    inputs = keras.Input((4,), name="noise")
    whole = keras.Model(inputs, discriminator(generator(inputs)), name="whole")
    mirror = chain(dense("back"), name="mirror")
    tiedio.tie(mirror.layers[0], to=generator.layers[0], weights=["kernel"])
    return {"gan": whole, "generator": generator, "discriminator": discriminator, "mirror": mirror}


def test_a_model_that_is_part_of_another_one_has_one_colour_there(gan, tmp_path):
    """Each is drawn once, in the order in which they were given, with its layers."""
    drawn = Several(gan, tmp_path)
    assert [name for name in drawn.colours if "/" not in name] == [*gan]
    assert {name for name in drawn.colours if name.startswith("generator/")} == {
        "generator/hidden",
        "generator/picture",
    }
    assert drawn.tied == {
        **dict.fromkeys(("generator", "gan/painter"), 0),
        **dict.fromkeys(("discriminator", "gan/critic"), 1),
        **dict.fromkeys(("generator/hidden", "mirror/back"), 2),
    }
    assert {name: number - 1 for name, number in drawn.numbers.items() if number} == drawn.tied
    assert len(drawn.lines) == 3
    assert drawn.look("generator", "gan/painter") == ("none", "")
    assert drawn.look("discriminator", "gan/critic") == ("none", "")
    assert drawn.look("generator/hidden", "mirror/back") == ("dot", "kernel")


def test_parts_that_are_expanded_are_one_with_the_model(gan, tmp_path):
    drawn = Several(gan, tmp_path, expand_nested=True)
    assert drawn.tied["gan/critic"] == drawn.tied["discriminator"] == 1
    assert ("discriminator", "gan/critic") in drawn.lines
    assert drawn.colours["gan/critic/score"] == "black"


def test_layers_that_stand_in_two_models(tmp_path):
    """Each has a colour of its own, from left to right; what is not drawn is named."""
    first, second, third = dense("first", "second", "third")
    encoder, whole = chain([first, second]), chain([first, second, third], name="w")
    drawn = Several({"encoder": encoder, "whole": whole, "decoder": chain([third])}, tmp_path)
    assert drawn.tied == {
        **dict.fromkeys(("encoder/first", "whole/first"), 0),
        **dict.fromkeys(("encoder/second", "whole/second"), 1),
        **dict.fromkeys(("whole/third", "decoder/third"), 2),
    }
    around = keras.Model(inputs := keras.Input((4,)), whole(inputs))
    drawn = Several({"encoder": encoder, "around": around}, tmp_path)
    assert drawn.look("encoder/first", "around/w") == ("none", "first")
    assert drawn.look("encoder/second", "around/w") == ("none", "second")


def test_a_class_that_holds_the_others(gan, tmp_path):
    """Of what is no graph the shared parts are drawn; it need not be built, and can be the one."""

    class Adversaries(keras.Model):
        def __init__(self):
            super().__init__(name="adversaries")
            self.one, self.other = gan["generator"], gan["discriminator"]

    holder = Adversaries()
    drawn = Several({"holder": holder, "generator": gan["generator"], "also": holder}, tmp_path)
    assert drawn.tied == {"generator": 0, "holder = also/generator": 0}
    assert set(drawn.colours) - set(drawn.tied) == {
        "holder = also",
        "generator/hidden",
        "generator/picture",
    }
    assert set(Several(holder, tmp_path).colours) == {"adversaries", "adversaries/adversaries"}


@needs_dot
@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"rankdir": "LR"}, marks=pytest.mark.slow),
        pytest.param({"expand_nested": True}, marks=pytest.mark.slow),
    ],
)
def test_pictures_of_several_models(gan, tmp_path, options):
    """`dot` draws whatever they share: also layers in another order, and in crowds."""
    parts = dense(*(f"layer_{number}" for number in range(12)))
    more = {"ordered": chain(parts), "reversed": chain(parts[::-1])}
    tiedio.plot_ties({**gan, **more}, tmp_path / "several.svg", **options)
    assert (tmp_path / "several.svg").read_text().count("stroke-dasharray") >= 15


@needs_dot
@pytest.mark.parametrize(
    ("name", "starts"),
    [("ties.png", b"\x89PNG"), ("ties", b"\x89PNG"), ("ties.svg", b"<?xml"), ("t.pdf", b"%PDF")],
)
def test_pictures(pair, tmp_path, name, starts):
    shown = tiedio.plot_ties(pair, tmp_path / name, show_shapes=True, rankdir="LR", dpi=50)
    assert (tmp_path / name).read_bytes().startswith(starts)
    can_show = importlib.util.find_spec("IPython") and not name.endswith("pdf")
    assert (shown is not None) == bool(can_show)


@needs_dot
def test_boxes_of_one_height(tmp_path):
    """`dot` fails to connect them in the shape that Keras gives to boxes."""
    inputs = [keras.Input((4,), name=name) for name in ("source", "target")]
    embeddings = [layers.Embedding(9, 4, name=f"{one.name}_embedding") for one in inputs]
    recurrent = [layers.GRU(4, name=name) for name in ("encoder", "decoder")]
    ends = [r(e(i)) for r, e, i in zip(recurrent, embeddings, inputs, strict=True)]
    model = keras.Model(inputs, layers.Dot(1)(ends))
    tiedio.tie(embeddings[1], to=embeddings[0])
    tiedio.tie(recurrent[1], to=recurrent[0])
    tiedio.plot_ties(model, tmp_path / "ties.svg")
    assert (tmp_path / "ties.svg").read_text().count("stroke-dasharray") == 2


@needs_dot
def test_names_that_are_markup(tmp_path):
    model = chain([layers.Dense(4, name=name) for name in ("a<b>&c", 'd"e')])
    tiedio.tie(model.layers[1], to=model.layers[0])
    assert set(Drawn(model, tmp_path).tied) == {"a<b>&c", 'd"e'}
    tiedio.plot_ties(model, tmp_path / "ties.svg")
    assert "a&lt;b&gt;&amp;c" in (tmp_path / "ties.svg").read_text()


@needs_dot
def test_a_file_that_dot_cannot_draw(pair, tmp_path):
    with pytest.raises(errors.SaveError) as error:
        tiedio.plot_ties(pair, tmp_path / "ties.keras")
    first, second, third = str(error.value).splitlines()
    assert first == "`dot` cannot draw `ties.keras`."
    assert second.startswith("Expected: `.png`, `.svg`, `.pdf` or the like. Received: Format: ")
    assert third == "Draw to such a file, or write a `.dot` file."
    assert os.listdir(tmp_path) == []


def test_a_model_that_is_not_built(tmp_path):
    with pytest.raises(errors.ModelNotBuiltError, match="before drawing"):
        tiedio.plot_ties(keras.Sequential(dense("a")), tmp_path / "ties.dot")


def test_dot_is_not_installed(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImportError) as error:
        tiedio.plot_ties(pair, tmp_path / "ties.png")
    assert type(error.value) is errors.MissingPackageError
    assert str(error.value) == (
        "Drawing `ties.png` needs a program that is not installed.\n"
        "Expected: `dot` of Graphviz. Received: none on the PATH.\n"
        "Install Graphviz (`apt install graphviz`, `brew install graphviz`, or "
        "https://graphviz.org/download), or write a `.dot` file."
    )
    tiedio.plot_ties(pair, tmp_path / "ties.dot")
    assert os.listdir(tmp_path) == ["ties.dot"]


@pytest.mark.slow
def test_pydot_is_not_installed(tmp_path):
    """In a process that finds, before pydot, what says that there is none."""
    (tmp_path / "pydot.py").write_text("raise ModuleNotFoundError(\"No module named 'pydot'\")")
    for fork in ("pydot_ng", "pydotplus"):
        (tmp_path / f"{fork}.py").write_text("raise ImportError")
    script = (
        "import keras, tiedio\n"
        "model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])\n"
        "try: tiedio.plot_ties(model)\n"
        "except tiedio.TiedioError as error: print(type(error).__name__, error, sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [
        "MissingPackageError",
        "`plot_ties` needs a package that is not installed.",
        "Expected: `pydot`. Received: No module named 'pydot'.",
        "Install it: `pip install 'tiedio[plot]'`.",
    ], done.stderr
