"""Layout: a subject goes where its tokens are put.

A token carries no position. To move the subject, move its mask M and gather X_ref by the moved index: the canvas cell
(r, c) takes the reference cell (r - dr, c - dc). A new place is new data for the compiled program. A token's content
does have a size and a direction, so to scale or mirror a subject, change its picture first.

The embedded model has only seen large subjects near the ground. Where a subject is higher up, or much smaller, the
model adds something of its own beside or below it. FLUX has seen more.

    python examples/14_layout.py
    jaxpa personalize --subject examples/pictures/car.png --mask examples/pictures/car-mask.png --prompt "a yellow striped car on a beach" --place 0.35,0.65 --place 0.5,0.7 --place 0.65,0.65 --place 0.5,0.45 --out car.png
"""  # noqa: E501

from _show import save, subject
from PIL import Image

import jaxpa
from jaxpa.media.figures import sheet

PROMPT = "a yellow striped car on a beach"
PLACES = ((0.35, 0.65), (0.5, 0.7), (0.65, 0.65), (0.5, 0.45))  # x, y of the middle, in fractions of the canvas
BOXES = ((0.02, 0.4, 0.98, 0.92), (0.15, 0.3, 0.85, 0.9), (0.45, 0.55, 0.98, 0.9))  # left, top, right, bottom


def main() -> None:
    pipe = jaxpa.load("mini")

    def made(**how: object) -> Image.Image:
        return pipe.personalize(PROMPT, [subject("car", **how)], seed=0)[0]

    rows = [[(f"middle at {x:g}, {y:g}", made(at=(x, y))) for x, y in PLACES]]
    scaled, mirrored = [made(at=box) for box in BOXES], made(flip=True)
    names = ["box " + ", ".join(f"{edge:g}" for edge in box) for box in BOXES]
    rows.append([*zip(names, scaled, strict=True), ("mirrored", mirrored)])
    save(sheet(rows, 192), "14-layout")


if __name__ == "__main__":
    main()
