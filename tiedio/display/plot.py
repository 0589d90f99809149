"""`plot_ties`: Keras' own plot of a model, with what is tied in colour.

Keras draws the layers and how they are connected. What lines and colours are added to its graph
is decided here.
"""

import collections
import html
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from tiedio.display.graph import FONT, GREY, Graph
from tiedio.errors import MissingPackageError, SaveError, imported
from tiedio.model.arguments import as_one, check_built
from tiedio.record import runs
from tiedio.record.report import printable, telling
from tiedio.record.ties import TransposedTie
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

# With more lines, a legend has the words; and in one model it takes the place of the lines.
_FEW_LINES = 10
_SMALL = 12


def plot_ties(
    model: keras.Model | Mapping[str, keras.Model],
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
    them too, and names them; what is tied inside a layer is drawn at that. Of many, a legend
    says by number what is tied, instead of lines. Of a model that Keras draws as one box, which
    is any that is no graph of layers, the tied layers are drawn.

    Several models stand side by side, in the order in which they are given. A layer that stands
    in two of them, or a model that is part of another one, has one colour, too, and a dashed
    line without a dot from one place to the other.

    Args:
        model: A built model, or several by name.
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
        ArgumentError: If something else is passed than a model, or models by name, and a path.
        ModelNotBuiltError: If the model has no variables yet.
        MissingPackageError: If pydot, or the program `dot`, is not installed.
        SaveError: If `dot` cannot draw to such a file.

    Example:

    >>> import keras, tiedio
    >>> encoder, decoder = keras.layers.Dense(4), keras.layers.Dense(4)
    >>> model = keras.Sequential([keras.Input((4,)), encoder, decoder])
    >>> _ = tiedio.tie(decoder, to=encoder)
    >>> tiedio.plot_ties(model, "ties.dot")
    >>> tiedio.plot_ties({"encoder": keras.Sequential([encoder]), "both": model}, "several.dot")
    """
    given = as_one(model)
    check_built(given, "drawing")
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
    graph = Graph(
        given,
        pydot,
        show_shapes=show_shapes,
        show_dtype=show_dtype,
        show_layer_names=show_layer_names,
        rankdir=rankdir,
        expand_nested=expand_nested,
        dpi=dpi,
        show_layer_activations=show_layer_activations,
        show_trainable=show_trainable,
    )
    _add_ties(graph)
    source = graph.drawn.to_string()
    if kind == "dot":
        target.write_text(source, encoding="utf-8")
        return None
    done = subprocess.run([str(program), f"-T{kind}"], input=source.encode(), capture_output=True)
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


def _add_ties(graph: Graph) -> None:
    """Paints what is shared, and draws a line to the first place of it from each other one."""
    ties, layers = _lines_of_ties(graph), _lines_of_layers(graph)
    if not (ties or layers):
        return
    order = [*graph.clusters, *graph.nodes]
    lines = {**layers, **ties}
    lines = {
        ends: lines[ends] for ends in sorted(lines, key=lambda ends: [*map(order.index, ends)])
    }
    crowded = len(lines) > _FEW_LINES
    sets = _connected(lines)
    # `dot` has no room for words at right-angled lines, and none for lines from box to box
    # of one height in the shape that Keras gives to boxes.
    graph.set(splines="spline", concentrate="false", fontsize=_SMALL, fontname=FONT, fontcolor=GREY)
    graph.set(label=_legend(graph, sets, lines) if crowded else _caption(bool(ties), bool(layers)))
    for node in graph.nodes.values():
        node.set("shape", "plain")
    for number, ends in enumerate(sets, start=1):
        colour, letters = _COLOURS[(number - 1) % len(_COLOURS)]
        for end in ends:
            graph.paint(end, colour, letters, f"{number} &#160; " if len(sets) > 1 else "")
        for pair in (pair for pair in lines if pair[0] in ends):
            look = _line([] if crowded else lines[pair])
            if pair in ties:  # which are no order of layers
                look.update(arrowtail="dot", constraint="false")
            else:  # beside each other
                look.update(arrowtail="none", minlen=0)
            if graph.clusters or not crowded:
                graph.connect(pair, color=colour, **look)


def _caption(has_ties: bool, has_layers: bool) -> str:
    told = "Dashed: the same variables; the dot is at their owner."
    if has_layers:
        told = "Dashed: one layer or model in several places."
        told += "\\nWith a dot at their owner: the same variables." if has_ties else ""
    return f"\\n{told}"


def _legend(
    graph: Graph, sets: Sequence[Sequence[str]], lines: Mapping[tuple[str, str], Iterable[str]]
) -> str:
    """Says what is tied, by the numbers in the picture; owners come first."""
    words = []
    for ends in map(set, sets):
        held = (_words(lines[pair]) for pair in lines if pair[0] in ends)
        words.append("; ".join(dict.fromkeys(filter(None, held))))
    names = [[graph.names[end] for end in ends] for ends in sets]
    rows = []
    for run in runs.runs(names, words):
        numbers = runs.joined([str(position + 1) for position in run.shown])
        rows.append(
            (
                numbers * (len(sets) > 1),
                runs.joined([" = ".join(runs.told(names[one])) for one in run.shown]),
                words[run.shown[0]],
            )
        )
    cells = (
        "".join(f'<td align="left">{html.escape(printable(cell))}</td>' for cell in row)
        for row in telling([("", "tied", "variables"), *rows])
    )
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<<table border="0" cellspacing="6">{body}</table>>'


def _words(names: Iterable[str]) -> str:
    counted = collections.Counter(names).items()
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in counted)


def _line(names: Iterable[str]) -> dict[str, Any]:
    """Says how a line looks: dashed, with what it connects."""
    label = "\\n".join(f" {line} " for line in _words(names).split(", "))
    return {
        **({"label": label} if label.strip() else {}),
        "style": "dashed",
        "penwidth": 2,
        "dir": "both",
        "arrowhead": "none",
        "fontname": FONT,
        "fontsize": _SMALL,
        "fontcolor": GREY,
    }


def _lines_of_ties(graph: Graph) -> Mapping[tuple[str, str], list[str]]:
    """Returns by their two ends the lines from owners to layers that use the same variables."""
    lines = collections.defaultdict(list)
    for group in (*graph.walk.ties, *graph.walk.transposed_ties):
        how = " transposed" if isinstance(group, TransposedTie) else ""
        for alias in group.aliases:
            ends = graph.end(group.owner.inner_path), graph.end(alias.inner_path)
            names = (place.attribute.lstrip("_") for place in (group.owner, alias))
            lines[ends].append(" = ".join(dict.fromkeys(names)) + how)
    return lines


def _lines_of_layers(graph: Graph) -> Mapping[tuple[str, str], list[str]]:
    """Returns likewise those between the places of one layer in several models.

    A layer that is not drawn itself is named.
    """
    lines = collections.defaultdict(list)
    for first, *others in graph.walk.shared_layers:
        for other in others:
            if graph.model_of(first) != graph.model_of(other):
                ends = graph.end(first), graph.end(other)
                if not (graph.is_drawn(first) and graph.is_drawn(other)):
                    lines[ends].append(graph.layers[first].name)
                lines.setdefault(ends, [])
    return lines


def _connected(pairs: Any) -> list[list[str]]:
    """Returns the sets of boxes that lines connect."""
    sets: dict[str, list[str]] = {}
    for pair in pairs:
        first, second = (sets.setdefault(box, [box]) for box in pair)
        if first is not second:
            first += second
            sets.update(dict.fromkeys(second, first))
    return list({id(boxes): boxes for boxes in sets.values()}.values())
