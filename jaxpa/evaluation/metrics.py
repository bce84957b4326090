"""The paper's metrics, by trained networks of torch: CLIP-T, CLIP-I, SegCLIP-I, DINO, DreamSim and FID.

    scored = evaluate(pipe, cases, settings, metrics=[metrics.clip(), metrics.dino()])

Each of `clip`, `dino` and `dreamsim` loads its network and returns a callable

    metric(pictures (S, H, W, 3), reference (H, W, 3), mask (H, W), prompt or None) -> {name: (S,)}

of pictures in [-1, 1], all of one size. The reference is the user's own picture, as DreamBench compares with the real
ones. Several subjects have an axis in front of reference and mask, (K, H, W, 3) and (K, H, W), and a value is the mean
over them. `fid` compares sets of pictures: its number is a setting's, not a picture's, and stands beside the table.

Making pictures needs none of this: torch and the other packages are imported on first use, and come with jaxpa[eval].
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from jaxpa.errors import JaxpaError
from jaxpa.media import images

# The paper names the metrics, not the networks. DINO's is DreamBooth's own choice (ViT-S/16); CLIP's is what
# DreamBench is usually scored with, and the 0.317 that the paper's Table 3 has for a prompt alone is in its range.
CLIP, DINO, DREAMSIM = "openai/clip-vit-base-patch32", "facebook/dino-vits16", "ensemble"
WHITE = 1.0

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray, str | None], Mapping[str, np.ndarray]]
Sets = Mapping[str, Sequence[images.Picture]]
Forward = Callable[[Any], Any]  # a batch as a processor makes it -> (B, E), both of torch


# Metrics of a picture ----------------------------------------------------------------------------------------


def clip(model: str | Path = CLIP, device: str | None = None, batch: int = 32, fill: float = WHITE) -> Metric:
    """Cosines of CLIP's embeddings: `clip_t` with the prompt, `clip_i` with the reference, `seg_clip_i` with its
    subject alone.

    SegCLIP-I takes the background out of the reference, not out of the picture that is judged; in its place is `fill`,
    in [-1, 1]: white, as everywhere here behind what is transparent. No `clip_t` where prompt is None; of a long prompt
    CLIP reads 77 tokens. model: a hub id, or a folder with network, image processor and tokenizer; safetensors only.
    device: of torch; None: CUDA where torch has it. Raises JaxpaError.
    """
    torch = _need("torch")
    network, process = _load(model, device)
    if network.config.model_type != "clip":
        raise JaxpaError(f"{model} is not a CLIP but a {type(network).__name__}: give one such as {CLIP}")
    tokenizer = _read(_need("transformers").AutoTokenizer, model)
    length = network.config.text_config.max_position_embeddings

    def look(x: Any) -> Any:
        return network.get_image_features(pixel_values=x).pooler_output

    def metric(
        pictures: np.ndarray, reference: np.ndarray, mask: np.ndarray, prompt: str | None
    ) -> dict[str, np.ndarray]:
        references, masks = _stacked(reference, 3), _stacked(mask, 2)  # (K, H, W, 3), (K, H, W)
        alone = np.where(masks[..., None] > 0.5, references, np.float32(fill))  # (K, H, W, 3)
        seen = _embed(look, process, np.concatenate([pictures, references, alone]), network.device, batch)
        made, whole, cut = np.split(seen, np.cumsum([len(pictures), len(references)]))  # (S, E), (K, E), (K, E)
        values = {"clip_i": (made @ whole.T).mean(1), "seg_clip_i": (made @ cut.T).mean(1)}
        if prompt is None:
            return values
        words = tokenizer([prompt], truncation=True, max_length=length, return_tensors="pt").to(network.device)
        with torch.inference_mode():
            text = _unit(network.get_text_features(**words).pooler_output.cpu().numpy())  # (1, E)
        return {"clip_t": made @ text[0], **values}

    return metric


def dino(model: str | Path = DINO, device: str | None = None, batch: int = 32) -> Metric:
    """`dino`: the cosine of the class tokens, after the last norm, of the picture and the reference.

    model: a hub id or a folder of a vision transformer with a class token (DINO, DINOv2) and of its image processor;
    safetensors only. device: as for `clip`. Raises JaxpaError.
    """
    network, process = _load(model, device)
    if network.main_input_name != "pixel_values":
        raise JaxpaError(f"{model} is not a vision transformer but a {type(network).__name__}: give one such as {DINO}")

    def look(x: Any) -> Any:
        return network(pixel_values=x).last_hidden_state[:, 0]

    def metric(pictures: np.ndarray, reference: np.ndarray, *_: object) -> dict[str, np.ndarray]:
        both = np.concatenate([pictures, _stacked(reference, 3)])  # (S + K, H, W, 3)
        seen = _embed(look, process, both, network.device, batch)  # (S + K, E)
        return {"dino": (seen[: len(pictures)] @ seen[len(pictures) :].T).mean(1)}

    return metric


def dreamsim(model: str = DREAMSIM, device: str | None = None, batch: int = 32) -> Metric:
    """`dreamsim`: DreamSim's distance from the reference, 0 for the same picture.

    model: which of the networks of the package `dreamsim`; it fetches their weights from its own page, into torch's
    cache. device: as for `clip`. Raises JaxpaError.
    """
    torch, package = _need("torch"), _need("dreamsim")
    place, folder = _device(device), Path(torch.hub.get_dir()) / "dreamsim"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        network, process = package.dreamsim(device=place, cache_dir=str(folder), dreamsim_type=model)
    except (OSError, KeyError) as error:
        raise JaxpaError(f"dreamsim has no network {model!r}, or cannot fetch it ({_line(error)})") from error

    def tensors(arrays: np.ndarray) -> Any:  # (B, H, W, 3) -> (B, 3, 224, 224)
        return torch.cat([process(images.to_image(each)) for each in arrays]).to(place)

    def metric(pictures: np.ndarray, reference: np.ndarray, *_: object) -> dict[str, np.ndarray]:
        apart = []  # of each subject, (S,)
        with torch.inference_mode():
            for one in tensors(_stacked(reference, 3)):
                parts = [tensors(some) for some in _batches(pictures, batch)]
                apart.append(np.concatenate([network(x, one.expand_as(x)).cpu().numpy() for x in parts]))
        return {"dreamsim": np.mean(apart, 0)}

    return metric


METRICS = {"clip": clip, "dino": dino, "dreamsim": dreamsim}


# A metric of sets --------------------------------------------------------------------------------------------


def fid(real: str | Path, device: str | None = None, feature: Any = 2048) -> Callable[[Sets], dict[str, float]]:
    """Fréchet Inception distances from the pictures in a folder: {label: pictures} -> {label: distance}.

    Of a few hundred pictures it is far too high, by an amount that depends on their number: compare equal numbers
    only. feature: the layer of torchmetrics' Inception-v3, or a torch module of (B, 3, H, W) uint8 -> (B, E).
    Raises JaxpaError, also for less than two pictures.
    """
    torch, package = _need("torch"), _need("torchmetrics.image.fid")
    folder = Path(real)
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in images.FORMATS)
    try:
        metric = package.FrechetInceptionDistance(feature, reset_real_features=False).to(_device(device))
    except ImportError as error:  # Inception itself comes with another package
        raise _missing("torchmetrics[image]", error) from error
    except OSError as error:
        raise JaxpaError(f"Inception's weights cannot be fetched ({_line(error)})") from error

    def see(label: str, pictures: Sequence[images.Picture], real: bool) -> None:
        if len(pictures) < 2:
            raise JaxpaError(f"{label} holds {len(pictures)} pictures: a Fréchet distance needs two")
        for picture in pictures:  # one at a time: their sizes differ, and the network scales
            x = torch.tensor(np.asarray(images.read_image(picture)))  # (H, W, 3)
            metric.update(x.movedim(-1, 0)[None].to(metric.device), real=real)

    def distances(made: Sets) -> dict[str, float]:
        found = {}
        for label, pictures in made.items():
            metric.reset()  # keeps the real ones
            see(label, pictures, False)
            found[label] = float(metric.compute())
        return found

    see(str(folder), files, True)
    return distances


# Networks ----------------------------------------------------------------------------------------------------


def _need(module: str) -> Any:
    """A package of the extra. Raises JaxpaError where it cannot be imported."""
    try:
        return import_module(module)
    except ImportError as error:
        raise _missing(module.split(".")[0], error) from error


def _missing(package: str, error: ImportError) -> JaxpaError:
    return JaxpaError(f"this metric needs {package} ({_line(error)}): pip install 'jaxpa[eval]'")


def _device(device: str | None) -> str:
    return device or ("cuda" if _need("torch").cuda.is_available() else "cpu")


def _load(source: str | Path, device: str | None) -> tuple[Any, Any]:
    """A network of transformers in float32, without gradients, and its image processor. Raises JaxpaError."""
    torch, transformers = _need("torch"), _need("transformers")
    with _quiet(transformers.utils.logging):
        network, found = _read(
            transformers.AutoModel, source, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    # What a checkpoint lacks, transformers makes at random: such a metric would mean nothing. Poolers are not used.
    missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise JaxpaError(f"{source} lacks {len(missing)} weights of a {type(network).__name__}, {missing[0]} for one")
    # Pillow's processor, with or without torchvision: the one that the models were made with, and the same numbers.
    process = _read(transformers.AutoImageProcessor, source, backend="pil")
    return network.eval().requires_grad_(False).to(_device(device)), process


def _read(kind: Any, source: str | Path, **options: Any) -> Any:
    try:
        return kind.from_pretrained(str(source), **options)
    except Exception as error:  # whatever its parts raise
        raise JaxpaError(
            f"{source} cannot be read as {kind.__name__}: give a hub id, or a folder as save_pretrained writes it, "
            f"in safetensors ({_line(error)})"
        ) from error


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Suppress transformers' report of what a checkpoint lacks; `_load` checks that itself."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _embed(look: Forward, process: Any, pictures: np.ndarray, device: Any, batch: int) -> np.ndarray:
    """Pictures (B, H, W, 3) -> embeddings of length 1, (B, E)."""
    rows = []
    with _need("torch").inference_mode():
        for some in _batches(pictures, batch):
            x = process(images=[images.to_image(each) for each in some], return_tensors="pt")["pixel_values"]
            rows.append(look(x.to(device)).cpu().numpy())
    return _unit(np.concatenate(rows))


def _batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _stacked(values: np.ndarray, dims: int) -> np.ndarray:
    """One subject's, or several subjects' -> several."""
    return values[None] if values.ndim == dims else values


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
