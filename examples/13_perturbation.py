"""Perturbation: loosen the reference, so that the subject is not a copy (Section 3.4 of Personalize Anything).

Before the reference's tokens replace others, they change places inside windows of 3 x 3, and a square of k x k tokens
dilates or erodes the mask M_ref:

    X_ref[n] <- X_ref[p(n)],  p a random permutation of each window's masked tokens
    M_ref <- M_ref dilated, or eroded, at random

The paper has 64 x 64 tokens and k = 5. On 12 x 12 tokens a window is a good part of the car: shuffling all its tokens
smears windows and stripes (last row), and where erosion leaves little, the model draws the rest in its own way (outline
3).

    python examples/13_perturbation.py
    jaxpa personalize --subject examples/pictures/car.png --mask examples/pictures/car-mask.png --prompt "a yellow striped car on a beach" --shuffle 0.5 --outline 3 --num-images 5 --out car.png
"""  # noqa: E501

import jax
import numpy as np
from _show import save, subject

import jaxpa
from jaxpa import tokens
from jaxpa.media import images
from jaxpa.media.figures import overlay, sheet

PROMPT = "a yellow striped car on a beach"
SETTINGS = ((0.0, 0), (0.0, 3), (0.5, 0), (1.0, 0))  # share that is shuffled, side of the outline's square


def main() -> None:
    pipe = jaxpa.load("mini")
    references = pipe.references([subject("car")])
    picture, mask = images.to_image(references.images[0]), references.masks[0]  # mask: (144,) bool

    def masked(name: str, cells: jax.Array | np.ndarray) -> tuple[str, object]:
        return f"{name}\n{int(np.sum(cells))} tokens", overlay(picture, np.asarray(cells), 12, 12)

    packed = pipe.encode_image(references.images)  # (1, 144, 32)
    orders = [tokens.shuffle_windows(jax.random.key(0), mask, 12, 12, strength=s) for s in (0.5, 1.0)]
    half, whole = pipe.decode(np.concatenate([packed[:, order] for order in orders]))  # type: ignore[arg-type]
    rows: list[list] = [
        [
            masked("the mask", mask),
            masked("dilated, 3 x 3", tokens.dilate(mask, 12, 12, 3)),
            masked("eroded, 3 x 3", tokens.erode(mask, 12, 12, 3)),
            ("half of its tokens shuffled", half),
            ("all of them shuffled", whole),
        ]
    ]
    for shuffle, outline in SETTINGS:
        how = {"shuffle": shuffle, "outline": outline}
        made = [pipe.personalize(PROMPT, [subject("car")], seed=seed, **how)[0] for seed in range(5)]
        name = f"shuffle {shuffle:g}, outline {outline}" if shuffle or outline else "as it is"
        rows.append([(f"{name}\nseed {seed}", image) for seed, image in enumerate(made)])
    save(sheet(rows, 144), "13-perturbation")


if __name__ == "__main__":
    main()
