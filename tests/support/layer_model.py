"""What layers show, one above the other, by containerd's rules: the reference that the snapshotters are compared with.

As its archive applier does with the overlay snapshotter (pkg/archive of containerd, 1.6 to 2.4): names go by way of the
links of the layer itself alone; every entry, a whiteout too, has the directories that lead to it; one that a layer only
implies takes the place of a lower layer's file or link, and looks as what the path leads to below. Where containerd
refuses a layer (a whiteout below what the same layer has made a file or has hidden) or its snapshotters differ, the
OCI image-spec decides: what a layer hides is what lower layers have, in whichever order its entries come.
"""

from dataclasses import dataclass, field

_MOST_LINKS = 40
Looks = tuple[int, int, int]
"""Mode, owner, group."""
_IMPLIED: Looks = (0o755, 0, 0)


class Refused(Exception):
    """No layer may have such an entry."""


class LowerHardLink(Refused):
    """A hard link to what is not in the same layer: containerd refuses it but where layers are copies."""


@dataclass(eq=False)
class Node:
    """Anything but a directory. ``kind``: file, link, or a type of device; ``content`` says the rest."""

    kind: str
    content: object
    looks: Looks


@dataclass(eq=False)
class Tree:
    """A directory. ``is_cut``: opaque by way of a whiteout of its own name."""

    looks: Looks = _IMPLIED
    is_implied: bool = True
    is_opaque: bool = False
    is_cut: bool = False
    names: "dict[str, Tree | Node | None]" = field(default_factory=dict)
    """None: a whiteout."""

    @property
    def is_idle(self) -> bool:
        return self.is_implied and all(
            below is None or (isinstance(below, Tree) and below.is_idle) for below in self.names.values()
        )


class Layer:
    """A layer by itself. ``is_disputed``: it hides what it has itself, on which containerd's snapshotters disagree."""

    def __init__(self) -> None:
        self.root = Tree()
        self.is_disputed = False

    def add(self, path: list[str], node: Node) -> None:
        self._parent(path).names[path[-1]] = node

    def add_directory(self, path: list[str], looks: Looks) -> None:
        if not path:
            self.root.looks, self.root.is_implied = looks, False
            return
        names = self._parent(path).names
        present = names.get(path[-1])
        if not isinstance(present, Tree):
            present = names[path[-1]] = self._new(is_cut=path[-1] in names)
        present.looks, present.is_implied = looks, False

    def add_hard_link(self, path: list[str], target: list[str], looks: Looks) -> None:
        names = self._parent(path).names
        try:
            present = self._walk(target[:-1], None).names.get(target[-1])
        except (LookupError, NotADirectoryError):
            present = None
        if present is None:
            raise LowerHardLink
        if isinstance(present, Tree):
            raise Refused
        present.looks = (present.looks[0] if present.kind == "link" else looks[0], *looks[1:])
        replaced = names.get(path[-1])
        names[path[-1]] = present
        if isinstance(replaced, Tree) and not self._has(target):
            raise Refused  # it would take the place of what it is a link to

    def _has(self, path: list[str]) -> bool:
        try:
            return path[-1] in self._walk(path[:-1], None).names
        except (LookupError, NotADirectoryError):
            return False

    def hide(self, path: list[str]) -> None:
        try:
            names = self._walk(path[:-1], False).names
        except (LookupError, NotADirectoryError):
            return
        present = names.get(path[-1])
        self.is_disputed |= present is not None
        if isinstance(present, Tree) and not present.is_idle:
            present.is_opaque = present.is_cut = True
        elif present is None or isinstance(present, Tree):
            names[path[-1]] = None

    def hide_below(self, path: list[str]) -> None:
        try:
            directory = self._walk(path, False)
        except (LookupError, NotADirectoryError):
            return
        directory.is_opaque = True
        self.is_disputed |= bool(directory.names)

    def _parent(self, path: list[str]) -> Tree:
        try:
            return self._walk(path[:-1], True)
        except NotADirectoryError:
            raise Refused from None

    def _walk(self, path: list[str], over_whiteouts: bool | None) -> Tree:
        """Find a directory, making what is missing. None: make nothing. Raises LookupError, NotADirectoryError."""
        todo, way, links = path[::-1], [self.root], 0
        while todo:
            part = todo.pop()
            names = way[-1].names
            found = names.get(part)
            if part == "..":
                way = way[:-1] or way
            elif isinstance(found, Tree):
                way.append(found)
            elif found is not None and found.kind == "link":
                links += 1
                if links > _MOST_LINKS:
                    raise Refused
                target = str(found.content)
                todo += [step for step in reversed(target.split("/")) if step not in ("", ".")]
                way = [self.root] if target.startswith("/") else way
            elif found is not None:
                raise NotADirectoryError
            elif over_whiteouts is None or (part in names and not over_whiteouts):
                raise LookupError
            else:
                made = names[part] = self._new(is_cut=part in names)
                way.append(made)
        return way[-1]

    def _new(self, is_cut: bool) -> Tree:
        self.is_disputed |= is_cut
        return Tree(is_opaque=is_cut, is_cut=is_cut)


class Stack:
    """Layers on each other. ``root`` is what they show.

    ``doubtful``: paths of directories whose looks depend in containerd on which layers have a link and what it leads
    to, or on what is hidden.
    """

    def __init__(self) -> None:
        self.root = Tree()
        self.doubtful: set[str] = set()
        self.is_disputed = False

    def put(self, layer: Layer) -> None:
        below = self.root
        self.is_disputed |= layer.is_disputed
        self.root = self._merge(layer.root, self.root, below, [], is_hidden=False)

    def _merge(self, upper: Tree, lower: "Tree | None", below: Tree, path: list[str], is_hidden: bool) -> Tree:
        looks = upper.looks
        if upper.is_implied and not upper.is_cut:
            if lower is None or is_hidden:
                self.doubtful.add("/".join(path))
            if not is_hidden and (facts := lower or _follow(below, path)) is not None:
                looks = facts.looks
        is_hidden = is_hidden or upper.is_opaque
        names = {} if lower is None or is_hidden else dict(lower.names)
        for name, node in upper.names.items():
            if node is None:
                names.pop(name, None)
            elif isinstance(node, Tree):
                there = names.get(name)
                under = there if isinstance(there, Tree) else None
                names[name] = self._merge(node, under, below, [*path, name], is_hidden)
            else:
                names[name] = node
        return Tree(looks, is_implied=False, names=names)


def _follow(below: Tree, path: list[str]) -> Tree | None:
    """Return the directory that a path leads to, by way of links; None where there is none."""
    todo, way, links = path[::-1], [below], 0
    while todo:
        part = todo.pop()
        if part == "..":
            way = way[:-1] or way
            continue
        found = way[-1].names.get(part)
        if isinstance(found, Tree):
            way.append(found)
        elif found is not None and found.kind == "link" and links < _MOST_LINKS:
            links += 1
            target = str(found.content)
            todo += [step for step in reversed(target.split("/")) if step not in ("", ".")]
            way = [below] if target.startswith("/") else way
        else:
            return None
    return way[-1]


def described(root: Tree) -> dict[str, object]:
    """All that is shown, by path: kind, content, looks, and the first name of the same file."""
    found: dict[str, object] = {}
    first: dict[int, str] = {}

    def walk(tree: Tree, path: str) -> None:
        found[path or "."] = ("directory", "", *tree.looks)
        for name in sorted(tree.names):
            node, below = tree.names[name], f"{path}/{name}" if path else name
            if isinstance(node, Tree):
                walk(node, below)
            elif node is not None:
                found[below] = (node.kind, node.content, *node.looks, first.setdefault(id(node), below))

    walk(root, "")
    return found
