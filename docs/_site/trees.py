"""Token trees as pictures. A block

    ```tree
    # Caption.
    def
      read   p 0.6   accepted
        _csv         bonus
      load   p 0.3   rejected
    ```

becomes an SVG with the root at the left. Two blanks of indentation are one level. The first word of
a line is the token; the last may be one of `STATES`; what is between them is written below the
node. Colours are those of site.css, so that the picture is legible on light and on dark pages.
"""

import html
import re
from dataclasses import dataclass, field

STATES = ("root", "accepted", "rejected", "bonus", "unseen", "drafted")
FENCE = re.compile(r"^```tree\n(.*?)^```$", re.S | re.M)
ACROSS, DOWN, HIGH, MARGIN = 158, 58, 28, 10
LETTER, SMALL = 8.2, 5.8  # widths of a letter of a token and of a note


@dataclass
class Node:
    token: str
    note: str
    state: str
    depth: int
    children: list["Node"] = field(default_factory=list)
    row: float = 0.0

    @property
    def wide(self) -> float:
        return max(44.0, LETTER * len(self.token) + 20)

    @property
    def beside(self) -> float:
        """How far the note reaches beyond the node, on either side."""
        return max(0.0, (SMALL * len(self.note) - self.wide) / 2)

    @property
    def x(self) -> float:
        return ACROSS * self.depth

    @property
    def y(self) -> float:
        return MARGIN + DOWN * self.row + HIGH / 2


def parse(text: str) -> tuple[str, Node]:
    """The caption and the root. Raises ValueError for a block that is no tree."""
    caption: list[str] = []
    path: list[Node] = []
    root: Node | None = None
    for line in text.splitlines():
        if line.startswith("# "):
            caption.append(line[2:])
            continue
        words = line.split()
        depth, odd = divmod(len(line) - len(line.lstrip()), 2)
        if not words or odd or depth > len(path) or (depth == 0) != (root is None):
            raise ValueError(f"no line of a tree: {line!r}")
        state = words[-1] if len(words) > 1 and words[-1] in STATES else ""
        note = " ".join(words[1 : len(words) - bool(state)])
        node = Node(words[0], note, state or ("drafted" if depth else "root"), depth)
        if root is None:
            root = node
        else:
            path[depth - 1].children.append(node)
        path[depth:] = [node]
    if root is None:
        raise ValueError("a tree needs a root")
    return " ".join(caption), root


def nodes(root: Node) -> list[Node]:
    """The root and everything below it, parents first."""
    return [root, *(below for child in root.children for below in nodes(child))]


def _place(node: Node, row: float) -> float:
    """Give rows to a node and all below it; returns the next free row."""
    if not node.children:
        node.row = row
        return row + 1
    for child in node.children:
        row = _place(child, row)
    node.row = (node.children[0].row + node.children[-1].row) / 2
    return row


def drawn(text: str) -> str:
    """A block as a figure, without blank lines, so that Markdown leaves it alone."""
    caption, root = parse(text)
    rows = _place(root, 0.0)
    every = nodes(root)
    left = min(node.x - node.beside for node in every) - MARGIN
    width = max(node.x + node.wide + node.beside for node in every) + MARGIN - left
    height = MARGIN * 2 + DOWN * rows - (DOWN - HIGH) + 16
    shapes = []
    for parent in every:
        for child in parent.children:
            start, end = parent.x + parent.wide, child.x
            middle = (start + end) / 2
            shapes.append(
                f'<path class="edge {child.state}" d="M{start:g},{parent.y:g} C{middle:g},'
                f'{parent.y:g} {middle:g},{child.y:g} {end:g},{child.y:g}"/>'
            )
    for node in every:
        shapes.append(
            f'<rect class="node {node.state}" x="{node.x:g}" y="{node.y - HIGH / 2:g}" '
            f'width="{node.wide:g}" height="{HIGH}" rx="6"/>'
        )
        centre = node.x + node.wide / 2
        shapes.append(
            f'<text class="token {node.state}" x="{centre:g}" y="{node.y + 4.5:g}">'
            f"{html.escape(node.token)}</text>"
        )
        if node.note:
            shapes.append(
                f'<text class="note" x="{centre:g}" y="{node.y + HIGH / 2 + 13:g}">'
                f"{html.escape(node.note)}</text>"
            )
    label = html.escape(caption or "A token tree")
    figure = [
        '<figure class="tree">',
        f'<svg viewBox="{left:g} 0 {width:g} {height:g}" width="{width:g}" role="img" '
        f'aria-label="{label}">',
        *shapes,
        "</svg>",
        *([f"<figcaption>{_coded(label)}</figcaption>"] if caption else []),
        "</figure>",
    ]
    return "\n".join(figure)


def _coded(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)


def with_trees(markdown: str) -> str:
    """A page with its tree blocks drawn."""
    return FENCE.sub(lambda found: drawn(found[1]), markdown)
