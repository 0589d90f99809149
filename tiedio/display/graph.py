"""The graph that Keras draws of a model, or of several side by side: its boxes, and their looks."""

import html
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from tiedio.model.several import Models
from tiedio.model.walk import walk

GREY = "#444444"
FONT = "Helvetica"  # that of Keras, as is the next
_TITLE = '<font point-size="16"'


class Graph:
    """A graph of one model, or with a cluster for each of several.

    Lines go from end to end, which is a box or a cluster. An end has a name: that of a box, or
    for one of several models its inner_path.

    Args:
        model: A model, or `Models`.
        pydot: The package.
        options: Those of `keras.utils.model_to_dot`.

    Attributes:
        drawn: The graph, of pydot.
        walk: The places in it.
        layers: The layers, by every inner_path.
        nodes: The boxes, by name.
        clusters: The clusters of several models, and of what is expanded in them, by name.
        names: What people call the layers at ends that were asked for.
    """

    def __init__(self, model: Any, pydot: Any, **options: Any):
        if not model.built:  # only its parts are, and Keras would not draw it
            model = Models({model.name: model})
        named = model.models if isinstance(model, Models) else {}
        self._pydot = pydot
        self.drawn = keras.utils.model_to_dot(model, **options)
        if named:
            self.drawn.del_node(str(id(model)))
            # Lines can end at clusters, between which there is room for them.
            self.set(compound="true", nodesep=1.2)
            # Parts before the whole: so the path of a layer leads to its box in the part.
            sizes = {name: len(one._flatten_layers()) for name, one in named.items()}
            model = Models({name: named[name] for name in sorted(named, key=sizes.__getitem__)})
        self.walk = walk(model)
        self.layers = {
            path: visit.saveable
            for visit in self.walk.visits
            if visit.inner_path in self.walk.layers
            for path in visit.inner_paths
        }
        self.clusters: dict[str, Any] = {}
        self.names: dict[str, str] = {}
        self.nodes: dict[str, Any] = {}
        self._wholes: set[str] = set()
        tops = dict.fromkeys(self.walk.models[name] for name in named)
        for top in tops:
            self._add_model(top, options)
        self.nodes = dict(_nodes(self.drawn))
        # What is all that Keras drew of a model gives way to layers that are added.
        self._wholes = {self._box(top, self.layers[top]) for top in tops or [""]} & {*self.nodes}
        layers = {str(id(layer)): layer for layer in self.layers.values()}
        for box, node in self.nodes.items():
            if layer := layers.get(box.rpartition("_")[2]):
                # Keras puts names there as they are, and `dot` takes `<` for a tag.
                label, name = node.get("label"), f"<b>{layer.name}</b>"
                node.set("label", label.replace(name, f"<b>{html.escape(layer.name)}</b>"))

    def _add_model(self, top: str, options: Mapping[str, Any]) -> None:
        model = self.layers[top]
        names = [name for name, path in self.walk.models.items() if path == top]
        to = self._add_cluster(top, " = ".join(names), self.drawn, style="rounded", penwidth=3)
        if model.built:
            drawn = keras.utils.model_to_dot(model, subgraph=True, **options)
            self._copy(drawn, to, model, top)
        else:
            self._add(top, top)

    def _add_cluster(self, end: str, title: str, to: Any, **look: Any) -> Any:
        cluster = self._pydot.Cluster(str(len(self.clusters)), margin=16, fontname=FONT, **look)
        self.clusters[end] = cluster
        cell = f'{_TITLE} color="white"><b>{html.escape(title)}</b></font>'
        cluster.set(
            "label", f'<<table border="0" cellpadding="4"><tr><td>{cell}</td></tr></table>>'
        )
        self.paint(end, GREY, GREY, "")
        to.add_subgraph(cluster)
        return cluster

    def _copy(self, drawn: Any, to: Any, model: Any, top: str) -> None:
        """Copies what Keras drew of a model, by other names: `dot` knows one box of a name."""
        start = self._box(top, None).removesuffix(str(id(None)))
        for node in drawn.get_nodes():
            name = f"{start}{node.get_name()}"
            to.add_node(self._pydot.Node(name, **node.get_attributes()))
        for edge in drawn.get_edges():
            ends = (f"{start}{end}" for end in (edge.get_source(), edge.get_destination()))
            to.add_edge(self._pydot.Edge(*ends, **edge.get_attributes(), weight=9))  # straight
        for inner in drawn.get_subgraphs():
            nested = model.get_layer(inner.get("label"))
            end = self._box(top, nested)
            self._copy(inner, self._add_cluster(end, nested.name, to, style="dashed"), nested, top)

    def set(self, **look: Any) -> None:
        """Says how all of it looks."""
        for name, value in look.items():
            self.drawn.set(name, value)

    def model_of(self, inner_path: str) -> str:
        """Returns the inner_path of the one of several models in which a place is."""
        return next((top for top in self.clusters if f"{inner_path}/".startswith(f"{top}/")), "")

    def _box(self, top: str, layer: Any) -> str:
        """Names the box of a layer: each of several models has its own."""
        return f"model{[*self.clusters].index(top)}_{id(layer)}" if top else str(id(layer))

    def end(self, inner_path: str) -> str:
        """Returns the end at a layer, or at the one around it that is drawn."""
        end, path = self._end(inner_path)
        self.names.setdefault(end, self.walk.label(path))
        return end

    def _end(self, inner_path: str) -> tuple[str, str]:
        if inner_path in self.clusters:
            return inner_path, inner_path
        top = self.model_of(inner_path)
        path = inner_path
        while path != top:
            box = self._box(top, self.layers.get(path))
            if box in self.nodes or box in self.clusters:
                return box, path
            path = posixpath.dirname(path)
        return self._add(inner_path, top), inner_path

    def is_drawn(self, inner_path: str) -> bool:
        """Whether the end at a layer is its own."""
        box = self._box(self.model_of(inner_path), self.layers[inner_path])
        return self.end(inner_path) in (inner_path, box)

    def _add(self, inner_path: str, top: str) -> str:
        """Draws a layer that Keras did not draw, below those drawn so before."""
        graph, layer = self.clusters.get(top, self.drawn), self.layers[inner_path]
        whole = self._box(top, self.layers[top])
        if whole in self._wholes:
            self._wholes.remove(whole)
            graph.del_node(whole)
            del self.nodes[whole]
        name = self.walk.label(inner_path)
        if top:
            name = name.removeprefix(f"{self.walk.label(top)}/")
        node = self._pydot.Node(
            self._box(top, layer),
            fontname=FONT,
            shape="plain",
            label='<<table border="0" cellborder="1" bgcolor="black" cellpadding="10"><tr>'
            f'<td bgcolor="black">{_TITLE} color="white">'
            f"<b>{html.escape(name)}</b> ({type(layer).__name__})</font></td></tr></table>>",
        )
        if before := [box for box, _ in _nodes(graph)]:
            graph.add_edge(self._pydot.Edge(before[-1], node.get_name(), style="invis"))
        graph.add_node(node)
        self.nodes[node.get_name()] = node
        return node.get_name()

    def paint(self, end: str, colour: str, letters: str, number: str) -> None:
        """Gives a box, or a cluster, a colour, and a number before its name."""
        drawn = self.nodes.get(end) or self.clusters[end]
        if end in self.clusters:  # on white
            letters = colour
            drawn.set("color", colour)
        label = drawn.get("label").replace(
            'bgcolor="black"', f'bgcolor="{colour}" color="{colour}"'
        )
        of_name = rf'\g<1>color="{letters}">{number}'
        drawn.set("label", re.sub('(<font [^>]*)color="[^"]*">', of_name, label, count=1))

    def connect(self, ends: tuple[str, str], **look: Any) -> None:
        """Draws a line between two ends."""
        boxes = [self._at_height_of(other, end) for end, other in (ends, ends[::-1])]
        for cut, end in zip(("ltail", "lhead"), ends, strict=True):
            if end in self.clusters:  # `dot` draws from box to box
                look[cut] = self.clusters[end].get_name()
        self.drawn.add_edge(self._pydot.Edge(*boxes, **look))

    def _at_height_of(self, other: str, end: str) -> str:
        """Returns the box itself, or of a cluster one that is about as high as the other end."""
        if end not in self.clusters:
            return end
        boxes = [box for box, _ in _nodes(self.clusters[end])]
        around = [[box for box, _ in _nodes(cluster)] for cluster in self.clusters.values()]
        height = max((one.index(other) for one in around if other in one), default=0)
        return boxes[min(height, len(boxes) - 1)]


def _nodes(graph: Any) -> Iterator[tuple[str, Any]]:
    for node in graph.get_node_list():
        if node.get("label"):  # others are defaults
            yield node.get_name(), node
    for inner in graph.get_subgraph_list():
        yield from _nodes(inner)
