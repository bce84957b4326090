"""What the shapes of a single file tell of a network's configuration, and the errors where they do not."""

import re

Shape = tuple[int, ...]


def count_blocks(shapes: dict[str, Shape], pattern: str) -> int:
    """How many blocks a numbered name has. Raises ValueError where there is none, or a number beyond the tensors."""
    numbers = {match[1] for key in shapes if (match := re.match(pattern, key, re.ASCII))}
    if not numbers:
        raise ValueError(f"no tensor's name begins with {pattern.partition('(')[0].replace(chr(92), '')}0")
    longest = max(numbers, key=lambda number: (len(number), number))
    if len(longest) > len(str(len(shapes))) or int(longest) >= len(shapes):
        raise ValueError(f"a block has the number {longest:.20}, but there are only {len(shapes):,} tensors")
    return 1 + int(longest)


def axes(shapes: dict[str, Shape], key: str, rank: int) -> Shape:
    """The shape of a tensor that the configuration follows from. Raises ValueError where it tells none."""
    if (shape := shapes.get(key)) is None:
        raise ValueError(f"tensor {key!r} is missing, so the configuration is not known")
    if len(shape) < rank or 0 in shape:
        raise ValueError(f"tensor {key!r} is mis-shaped, {list(shape)}, so the configuration is not known")
    return shape
