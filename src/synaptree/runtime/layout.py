"""Where the values of a network lie in the arena: borders that convolutions read, memory used again."""

from synaptree.runtime.ir import Net, Node, volume
from synaptree.runtime.place import Place, place

__all__ = ["UNROLLED", "Layout", "flat", "is_flat", "layout", "tight"]

UNROLLED = 4  # pixels up to which an image is too small for registers of pixels


class Layout:
    """Places of all values of a network, for `lanes` samples side by side.

    Attributes:
        lanes: samples side by side.
        places: of value n, by n.
        copied: flatten nodes whose value is a copy, not another view of the value they read.
        bytes: of the arena that values take.
    """

    def __init__(self, lanes: int, places: list[Place], copied: set[int], size: int) -> None:
        self.lanes, self.places, self.copied, self.bytes = lanes, places, copied, size


def layout(net: Net, lanes: int) -> Layout:
    """Return where values lie; a value whose readers are done gives its place to the next of the same geometry.

    Borders are zero from the start and nobody writes there, so a place can only be used again for the same geometry.
    """
    last = _last_uses(net)
    free: dict[Place, list[int]] = {}
    places: list[Place] = []
    owner: list[int] = []  # value whose memory a value lies in
    copied: set[int] = set()
    size = 0

    def take(kind: Place) -> Place:
        nonlocal size
        if free.get(kind):
            return kind.moved(free[kind].pop())
        at, size = size, size + kind.bytes
        return kind.moved(at)

    def give_back(number: int) -> None:
        for value in set(owner):
            if max(last[other] for other in range(len(places)) if owner[other] == value) == number:
                free.setdefault(places[value].moved(0), []).append(places[value].at)

    places.append(take(_wanted(net, 0, lanes)))
    owner.append(0)
    for number, node in enumerate(net.nodes, 1):
        view = _view(net, number, node, places)
        if view is None:
            if node.op == "flatten":
                copied.add(number)
            places.append(take(_wanted(net, number, lanes)))
            owner.append(number)
        else:
            places.append(view)
            owner.append(owner[node.inputs[0]])
        give_back(number)
    return Layout(lanes, places, copied, size)


def tight(shape: tuple[int, int, int]) -> Place:
    """Return the place of a tiny image at one lane: no borders, no gaps, so that it is a flat value as well."""
    channels, height, width = shape
    return Place(channels, height, width, 1, 0, 0, width, height * width)


def is_flat(where: Place) -> bool:
    """Return whether a value lies without borders and gaps."""
    image = where.height * where.width * where.lanes
    rows = where.height == 1 or where.pitch == where.width * where.lanes
    return where.top == where.left == 0 and rows and (where.channels == 1 or where.plane == image)


def flat(where: Place) -> Place:
    """Return the same floats as a flat value."""
    features = where.channels * where.height * where.width
    return Place(features, 1, 1, where.lanes, 0, 0, where.lanes, where.lanes, where.at)


def _last_uses(net: Net) -> list[int]:
    """Return, for each value, the number of the last node that reads it; behind the last for the output."""
    last = list(range(len(net.nodes) + 1))
    for number, node in enumerate(net.nodes, 1):
        for value in node.reads:
            last[value] = number
    last[net.output] = len(net.nodes) + 1
    return last


def _wanted(net: Net, value: int, lanes: int) -> Place:
    """Return the geometry of a value: with borders as wide as its readers need."""
    shape = volume(net.shape_of(value))
    if lanes == 1 and 1 < shape[1] * shape[2] <= UNROLLED:
        return tight(shape)
    convs = [node for node in net.readers(value) if node.op == "conv" and value in node.inputs]
    top, left = (max((node.options["padding"][axis] for node in convs), default=0) for axis in (0, 1))
    made_by_conv = value > 0 and net.nodes[value - 1].op == "conv"  # which writes whole registers
    readers = net.readers(value)
    if lanes == 1 and readers and all(node.op == "flatten" for node in readers) and not made_by_conv:
        return tight(shape)
    return place(shape, lanes, top, left)


def _view(net: Net, number: int, node: Node, places: list[Place]) -> Place | None:
    """Return the place of a flattened value if it need not be copied."""
    if node.op != "flatten":
        return None
    source = places[node.inputs[0]]
    if is_flat(source):
        return flat(source)
    only_linear = number != net.output and all(reader.op == "linear" for reader in net.readers(number))
    return source if only_linear else None
