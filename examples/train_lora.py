"""A subject learnt: the same prompts without a LoRA of it, and with one at half and at whole scale.

    python -m weights.recipe.lora --out subject.safetensors       minutes on two cores
    python examples/train_lora.py subject.safetensors subject-lora.png

The first command draws five pictures of one red striped mug, subject-0.png to subject-4.png, and trains a LoRA of rank
4 on them. Prompts name a red striped mug and nothing of what makes it this one: cream stripes, its shape, the handle on
the right. The weights stay where they are; the scale is data, so all three columns run one program. The last prompt
is of something else, and should stay as it was.
"""

import sys
from pathlib import Path

import jaxpa
from jaxpa.media.figures import sheet

PROMPTS = ("a red striped mug on a beach", "a red striped mug under a night sky", "a blue car in the snow")
SCALES = (0.0, 0.5, 1.0)


def main(file: Path, out: Path) -> None:
    bare = jaxpa.load("mini")
    pipes = [bare.with_loras([(file, scale)]) for scale in SCALES]
    rows = []
    for prompt in PROMPTS:
        made = [pipe.generate(prompt, seed=0)[0] for pipe in pipes]
        rows.append([(f"{prompt}, {scale:g}", picture) for scale, picture in zip(SCALES, made, strict=True)])
    sheet(rows, 192).save(out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python examples/train_lora.py LORA PICTURE")
    main(*map(Path, sys.argv[1:]))
