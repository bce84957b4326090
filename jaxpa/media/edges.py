"""Edges of a picture, as FLUX.1-Canny reads them. OpenCV finds them; it is an extra."""

from importlib import import_module

import numpy as np

from jaxpa.errors import JaxpaError

# Of the gradient, by OpenCV's measure: edges above HIGH, and what joins them above LOW. The original release trained
# and draws with these, on pictures of the canvas' size.
LOW, HIGH = 50, 200


def canny(pixels: np.ndarray) -> np.ndarray:
    """White edges on black: (H, W, 3) in [-1, 1] -> (H, W, 3) in {-1, 1}. Raises JaxpaError without OpenCV."""
    try:
        cv2 = import_module("cv2")
    except ImportError as error:
        raise JaxpaError(f"finding edges needs OpenCV ({error}): pip install 'jaxpa[edges]'") from None
    found = cv2.Canny(np.rint((pixels + 1) * 127.5).astype(np.uint8), LOW, HIGH)
    return np.repeat(found[..., None] / np.float32(127.5) - 1, 3, -1)
