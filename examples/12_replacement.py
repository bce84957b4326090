"""Token replacement, and what tau decides.

While t > tau, the reference's tokens replace the tokens X of the target region M (Eq. 2 of Personalize Anything):

    X <- X * (1 - M) + X_ref * M

Below tau the picture is free. A low tau keeps more of the reference; tau = 1 never replaces. There are two readings of
what is replaced: the features that feed q, k and v in every block (level "layer", the official code), or the sampler's
own tokens between steps (level "token"). The embedded model's preset also starts the region in the reference's inverted
noise, which alone (tau 1) decides the shape. The official preset starts in independent noise, which suits FLUX's 4096
tokens.

    python examples/12_replacement.py
    jaxpa personalize --subject examples/pictures/car.png --mask examples/pictures/car-mask.png --prompt "a yellow striped car on a beach" --seed 3 --tau 1 0.9 0.8 0.7 0.5 0.2 --out car.png
"""  # noqa: E501

from _show import save, subject

import jaxpa
from jaxpa.media.figures import sheet

PROMPT = "a yellow striped car on a beach"
TAUS = (1.0, 0.9, 0.8, 0.7, 0.5, 0.2)
READINGS = (("mini", "layer"), ("mini", "token"), ("official", "layer"))


def main() -> None:
    pipe = jaxpa.load("mini")
    car = subject("car")
    rows = []
    for preset, level in READINGS:  # a list of taus is one call: one compiled program, the same noise
        made = pipe.personalize(PROMPT, [car], tau=TAUS, seed=3, preset=preset, level=level)
        rows.append([(f"tau {tau:g}\n{preset}, {level} level", image) for tau, image in zip(TAUS, made, strict=True)])
    save(sheet(rows, 144), "12-replacement")


if __name__ == "__main__":
    main()
