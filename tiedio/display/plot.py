"""`plot_ties`: Keras' own plot of a model, with what is tied in colour.

Keras draws the layers and how they are connected. What is added to its graph, and how that
looks, is decided here.
"""

import collections
import html
import posixpath
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras

from tiedio.errors import MissingPackageError, SaveError, imported
from tiedio.model.arguments import check_built
from tiedio.model.walk import walk
from tiedio.storage.locating import path_of

# The palette of Okabe and Ito, which all eyes can tell apart, with the letters that are best
# read on each. More sets than colours are told apart by their numbers.
_COLOURS = (
    ("#0072B2", "white"),
    ("#E69F00", "black"),
    ("#009E73", "black"),
    ("#D55E00", "black"),
    ("#CC79A7", "black"),
    ("#56B4E9", "black"),
)
_GREY = "#444444"

# With more lines, words are put where there is room, instead of making room for them.
_FEW_LINES = 10
_FONT, _SMALL = "Helvetica", 12  # the font is that of Keras


def plot_ties(
    model: keras.Model,
    to_file: Any = "ties.png",
    show_shapes: bool = False,
    show_dtype: bool = False,
    show_layer_names: bool = True,
    rankdir: str = "TB",
    expand_nested: bool = False,
    dpi: int = 200,
    show_layer_activations: bool = False,
    show_trainable: bool = False,
) -> Any:
    """Draws a model as `keras.utils.plot_model` does, and which of its layers are tied.

    Layers that share variables have one colour, and where there are several such sets, a
    number. A dashed line leads from the owner of variables, at its dot, to a layer that uses
    them too, and names them; what is tied inside a layer is drawn at that. Of a model that Keras
    draws as one box, which is any that is no graph of layers, the tied layers are drawn.

    Args:
        model: A built model.
        to_file: File to draw to. What ends in `.dot` is the source of the picture; `.png`,
            `.svg`, `.pdf` and others need the program `dot` of Graphviz.
        show_shapes: Whether to show shapes, as in Keras, like all that follow.
        show_dtype: Whether to show dtypes.
        show_layer_names: Whether to show the names of layers.
        rankdir: `"TB"` draws from top to bottom, `"LR"` from left to right.
        expand_nested: Whether to draw what is in nested models.
        dpi: Dots per inch.
        show_layer_activations: Whether to show activations.
        show_trainable: Whether to show which layers are trainable.

    Returns:
        The picture for a notebook, if IPython is installed and can show it, otherwise `None`.

    Raises:
        ModelNotBuiltError: If the model has no variables yet.
        MissingPackageError: If pydot, or the program `dot`, is not installed.
        SaveError: If `dot` cannot draw to such a file.

    Example:

    >>> import keras, tiedio
    >>> encoder, decoder = keras.layers.Dense(4), keras.layers.Dense(4)
    >>> model = keras.Sequential([keras.Input((4,)), encoder, decoder])
    >>> _ = tiedio.tie(decoder, to=encoder)
    >>> tiedio.plot_ties(model, "ties.dot")
    """
    check_built(model, "drawing")
    target = Path(path_of(to_file))
    kind = target.suffix[1:].lower() or "png"
    pydot = imported("pydot", "`plot_ties`", "plot")
    program = shutil.which("dot")
    if kind != "dot" and not program:
        raise MissingPackageError(
            f"Drawing `{target.name}` needs a program that is not installed.\n"
            "Expected: `dot` of Graphviz. Received: none on the PATH.\n"
            "Install Graphviz (`apt install graphviz`, `brew install graphviz`, or "
            "https://graphviz.org/download), or write a `.dot` file."
        )
    graph = keras.utils.model_to_dot(
        model,
        show_shapes=show_shapes,
        show_dtype=show_dtype,
        show_layer_names=show_layer_names,
        rankdir=rankdir,
        expand_nested=expand_nested,
        dpi=dpi,
        show_layer_activations=show_layer_activations,
        show_trainable=show_trainable,
    )
    _Drawing(graph, model, pydot).add_ties()
    if kind == "dot":
        target.write_text(graph.to_string(), encoding="utf-8")
        return None
    done = subprocess.run(
        [str(program), f"-T{kind}"], input=graph.to_string().encode(), capture_output=True
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        raise SaveError(
            f"`dot` cannot draw `{target.name}`.\n"
            f"Expected: `.png`, `.svg`, `.pdf` or the like. Received: {said.splitlines()[0]}.\n"
            "Draw to such a file, or write a `.dot` file."
        )
    target.write_bytes(done.stdout)
    return _shown(done.stdout, kind)


def _shown(picture: bytes, kind: str) -> Any:
    """Returns what a notebook shows of a picture."""
    try:
        from IPython import display  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    if kind == "svg":
        return display.SVG(picture)
    return display.Image(picture) if kind in ("png", "jpg", "jpeg", "gif") else None


class _Drawing:
    """A graph that Keras made of a model. Layers are boxes, by the `id` of each as a text."""

    def __init__(self, graph: Any, model: keras.Model, pydot: Any):
        self.graph = graph
        self.pydot = pydot
        self.walk = walk(model)
        self.layers = self.walk.layers
        self.nodes = dict(_nodes(graph))
        self.root = str(id(model))
        for layer in self.layers.values():
            if node := self.nodes.get(str(id(layer))):
                # Keras puts names there as they are, and `dot` takes `<` for a tag.
                label, name = node.get("label"), f"<b>{layer.name}</b>"
                node.set("label", label.replace(name, f"<b>{html.escape(layer.name)}</b>"))

    def add_ties(self) -> None:
        if not self.walk.ties:
            return
        if self.root in self.nodes:  # all that Keras drew
            self.graph.del_node(self.root)
            del self.nodes[self.root]
        lines = collections.defaultdict(list)
        for group in self.walk.ties:
            for alias in group.aliases:
                ends = self._box(group.owner.inner_path), self._box(alias.inner_path)
                names = (place.attribute.lstrip("_") for place in (group.owner, alias))
                lines[ends].append(" = ".join(dict.fromkeys(names)))
        # `dot` has no room for words at right-angled lines, and none for lines from box to box
        # of one height in the shape that Keras gives to boxes.
        self.graph.set("splines", "spline")
        self.graph.set("concentrate", "false")
        self.graph.set("label", "\\nDashed: the same variables; the dot is at their owner.")
        self.graph.set("fontsize", _SMALL)
        self.graph.set("fontname", _FONT)
        self.graph.set("fontcolor", _GREY)
        for node in self.nodes.values():
            node.set("shape", "plain")
        crowded = len(lines) > _FEW_LINES
        if crowded:
            self.graph.set("nodesep", 0.1)
        sets = _connected(lines)
        for number, boxes in enumerate(sets, start=1):
            colour, letters = _COLOURS[(number - 1) % len(_COLOURS)]
            for box in boxes:
                self._paint(box, colour, letters, f"{number} &#160; " if len(sets) > 1 else "")
            for ends in (ends for ends in lines if ends[0] in boxes):
                counted = collections.Counter(lines[ends]).items()
                words = [f"{count} x {name}" if count > 1 else name for name, count in counted]
                if crowded and len(sets) > 1:
                    words[0] = f"{number}: {words[0]}"
                self._draw(ends, words, colour, "xlabel" if crowded else "label")

    def _box(self, inner_path: str) -> str:
        """Returns the box of a layer, or of the one around it that is drawn."""
        path = inner_path
        while path:
            box = str(id(self.layers.get(path)))
            if box in self.nodes:
                return box
            path = posixpath.dirname(path)
        return self._add(inner_path)

    def _add(self, inner_path: str) -> str:
        """Draws a layer that Keras did not draw, below those drawn so before."""
        layer = self.layers[inner_path]
        name = html.escape(self.walk.label(inner_path))
        node = self.pydot.Node(
            str(id(layer)),
            fontname=_FONT,
            label='<<table border="0" cellborder="1" bgcolor="black" cellpadding="10"><tr>'
            '<td bgcolor="black"><font point-size="16" color="white">'
            f"<b>{name}</b> ({type(layer).__name__})</font></td></tr></table>>",
        )
        if self.nodes:
            self.graph.add_edge(self.pydot.Edge([*self.nodes][-1], node.get_name(), style="invis"))
        self.graph.add_node(node)
        self.nodes[node.get_name()] = node
        return node.get_name()

    def _paint(self, box: str, colour: str, letters: str, number: str) -> None:
        node = self.nodes[box]
        painted = f'bgcolor="{colour}" color="{colour}"'
        label = node.get("label").replace('bgcolor="black"', painted)
        label = re.sub(
            '(<font [^>]*)color="white">', rf'\g<1>color="{letters}">{number}', label, count=1
        )
        node.set("label", label)

    def _draw(self, ends: tuple[str, str], words: Sequence[str], colour: str, label: str) -> None:
        words_at: dict[str, Any] = {label: "\\n".join(f" {line} " for line in words)}
        self.graph.add_edge(
            self.pydot.Edge(
                *ends,
                **words_at,
                style="dashed",
                color=colour,
                penwidth=2,
                dir="both",
                arrowtail="dot",
                arrowhead="none",
                constraint="false",  # ties are no order of layers
                fontname=_FONT,
                fontsize=_SMALL,
                fontcolor=_GREY,
            )
        )


def _nodes(graph: Any) -> Iterator[tuple[str, Any]]:
    for node in graph.get_node_list():
        if node.get("label"):  # others are defaults
            yield node.get_name(), node
    for inner in graph.get_subgraph_list():
        yield from _nodes(inner)


def _connected(pairs: Any) -> list[list[str]]:
    """Returns the sets of boxes that lines connect."""
    sets: dict[str, list[str]] = {}
    for pair in pairs:
        first, second = (sets.setdefault(box, [box]) for box in pair)
        if first is not second:
            first += second
            sets.update(dict.fromkeys(second, first))
    return list({id(boxes): boxes for boxes in sets.values()}.values())
