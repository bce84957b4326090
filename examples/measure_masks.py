"""How good are masks that attention finds? Overlap with the true masks of drawings that training never showed.

    python examples/measure_masks.py                     # the table, and examples/gallery/masks.png
    python examples/measure_masks.py --tune              # the settings of jaxpa.attention.observe, on other drawings

Found and true masks are compared by intersection over union (IoU): on the grid of tokens, where a token belongs to the
true mask if half of it does, and in pixels, where the found map is enlarged before the threshold. Training has seen
neither the drawings nor their combinations of family, colour and background. The captions are what a user might say;
"true" is the drawing's own caption, which also names colour, pattern and background.
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))  # the recipe's world is not installed

import jaxpa
from jaxpa.attention.observe import THRESHOLD, FoundMask, default_caption, soft_masks
from jaxpa.media.figures import overlay, sheet
from jaxpa.media.masks import token_mask
from weights.recipe.world import FAMILIES, Batch, render_many

TUNING, TESTING = 501, 502  # two worlds
BATCH = 40
GALLERY = Path(__file__).parent / "gallery" / "masks.png"


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((a & b).sum() / max((a | b).sum(), 1))


def words_of(batch: Batch) -> list[str]:
    return [FAMILIES[k] for k in batch.labels["family"]]


def found(pipe: jaxpa.Pipeline, batch: Batch, captions: list[str], threshold: float, **how: float) -> list[FoundMask]:
    """A mask for each drawing."""
    pictures, words, soft = batch.images.astype(np.float32) / 127.5 - 1, words_of(batch), []
    for k in range(0, len(words), BATCH):
        part = slice(k, k + BATCH)
        soft.append(soft_masks(pipe, pictures[part], words[part], captions[part], **how))  # type: ignore[arg-type]
    return [FoundMask(one, threshold) for one in np.concatenate(soft)]


def truth(batch: Batch, grid: tuple[int, int]) -> np.ndarray:
    """The tokens of which the true mask covers half or more: (B, N) bool."""
    return np.stack([token_mask(mask, *grid, 0.5) for mask in batch.masks])


def otsu(soft: np.ndarray) -> float:
    """The threshold that best splits a map's values in two (Otsu 1979)."""
    values = np.sort(soft.ravel())
    count = np.arange(1, len(values))
    below = np.cumsum(values)[:-1]
    between = (below / count - (values.sum() - below) / (len(values) - count)) ** 2 * count * (len(values) - count)
    k = int(between.argmax())
    return float(values[k] + values[k + 1]) / 2


def box(grid: tuple[int, int], margin: int) -> np.ndarray:
    cells = np.zeros(grid, bool)
    cells[margin : grid[0] - margin, margin : grid[1] - margin] = True
    return cells.reshape(-1)


def tune(pipe: jaxpa.Pipeline, count: int) -> None:
    """The grid of settings, best first."""
    batch = render_many(TUNING, 0, count, two=0.0, held_out=True)
    captions, tokens, results = [default_caption(word) for word in words_of(batch)], truth(batch, pipe.grid()), []
    for share, walks in itertools.product((1 / 9, 1 / 3, 2 / 3, 1), (0, 1, 2, 4, 8)):
        masks = found(pipe, batch, captions, 0.5, share=share, walks=walks)
        for threshold in (0.4, 0.45, 0.5, 0.55, 0.6):
            cut = [FoundMask(mask.soft, threshold).tokens for mask in masks]
            results.append((np.mean(list(map(iou, cut, tokens))), share, walks, threshold))
    for value, share, walks, threshold in sorted(results, reverse=True)[:12]:
        print(f"{value:.3f}  first {share:.2f} of the steps, {walks} walks, threshold {threshold}")


def row(name: str, tokens: list[float], pixels: list[float]) -> str:
    """A line of the table: means with 95% confidence."""
    cells = [f"{np.mean(x):.3f} ± {1.96 * np.std(x) / len(x) ** 0.5:.3f}" if x else "" for x in (tokens, pixels)]
    return f"| {name} | {' | '.join(cells)} |"


def measure(pipe: jaxpa.Pipeline, count: int, out: Path) -> None:
    """The table of all captions and baselines, and the contact sheet."""
    batch, grid = render_many(TESTING, 0, count, two=0.0, held_out=True), pipe.grid()
    tokens, words = truth(batch, grid), words_of(batch)
    size = (batch.masks.shape[2], batch.masks.shape[1])
    captions = {
        "a picture of a {word}": [default_caption(word) for word in words],
        "a {word}": [f"a {word}" for word in words],
        "{word}": words,
        "true caption": batch.captions,
    }
    print(f"{count} held-out drawings, IoU and its 95% confidence\n\n| mask | tokens | pixels |\n|---|---|---|")
    results = {name: found(pipe, batch, texts, THRESHOLD) for name, texts in captions.items()}
    usual = results["a picture of a {word}"]
    results["the first, not refined, cut at 0.3"] = found(pipe, batch, captions["a picture of a {word}"], 0.3, walks=0)
    results["the first, cut by Otsu"] = [FoundMask(mask.soft, otsu(mask.soft)) for mask in usual]
    for name, masks in results.items():
        pixels = [iou(mask.pixels(size), true) for mask, true in zip(masks, batch.masks, strict=True)]
        print(row(name, [iou(mask.tokens, true) for mask, true in zip(masks, tokens, strict=True)], pixels))
    boxes = {margin: [iou(box(grid, margin), true) for true in tokens] for margin in range(grid[0] // 2)}
    margin = max(boxes, key=lambda m: np.mean(boxes[m]))  # the best one, which a user could not know
    cell = size[0] // grid[1]
    in_pixels = box((size[1], size[0]), margin * cell).reshape(size[1], size[0])
    print(row("the best centred box", boxes[margin], [iou(in_pixels, true) for true in batch.masks]))
    print(row("everything", boxes[0], [float(true.mean()) for true in batch.masks]))
    blocks = tokens.reshape(-1, *grid).repeat(cell, 1).repeat(cell, 2)
    print(row("ceiling: the true tokens", [], [iou(a, b) for a, b in zip(blocks, batch.masks, strict=True)]))

    overlaps = np.array([iou(mask.tokens, true) for mask, true in zip(usual, tokens, strict=True)])
    each = {word: overlaps[np.array(words) == word].mean() for word in FAMILIES}
    print("\nby family: " + ", ".join(f"{word} {value:.2f}" for word, value in each.items()))
    print(f"below 0.5: {np.mean(overlaps < 0.5):.1%}")
    draw(batch, words, usual, overlaps, tokens, grid, out)


def draw(
    batch: Batch, words: list[str], masks: list[FoundMask], overlaps: np.ndarray, tokens: np.ndarray,
    grid: tuple[int, int], out: Path,
) -> None:  # fmt: skip
    """Four drawings as they come, and the two worst."""
    rows = []
    for k in [0, 1, 2, 3, *np.argsort(overlaps)[:2]]:
        picture = Image.fromarray(batch.images[k])
        soft = Image.fromarray(np.rint(255 * masks[k].soft).astype(np.uint8))
        worst = "one of the two worst" if k not in (0, 1, 2, 3) else ""
        rows.append([
            (f"{words[k]}\n{worst}", picture),
            ("attention", soft),
            (f"found, IoU {overlaps[k]:.2f}", overlay(picture, masks[k].tokens, *grid)),
            ("true", overlay(picture, tokens[k], *grid)),
        ])  # fmt: skip
    halves = [left + right for left, right in zip(rows[::2], rows[1::2], strict=True)]
    sheet(halves, 120).quantize(128).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size // 1024} KB", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--tune", action="store_true", help="search the settings on other drawings")
    parser.add_argument("--out", type=Path, default=GALLERY)
    args = parser.parse_args()
    pipe = jaxpa.load(args.model)
    if args.tune:
        tune(pipe, args.count)
    else:
        measure(pipe, args.count, args.out)


if __name__ == "__main__":
    main()
