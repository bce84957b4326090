"""Single files of eight bits and fewer as other programs write them, and the numbers that they mean, by torch."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpa.checkpoint.keys import component, leaves
from jaxpa.quantised import Quantised

FORMS = ("plain", "e5m2", "comfy-old", "comfy-new", "header", "rows", "rows-flat", "int8")
PACKED = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_NL", "IQ4_XS")
PREFIX = "model.diffusion_model."


class File(NamedTuple):
    """A file's tensors (torch), its metadata, and what they mean under the plain names (float32)."""

    tensors: dict[str, Any]
    metadata: dict[str, str]
    truth: dict[str, np.ndarray]


def release(name: str, config: Any, seed: int = 0, layout: str = "bfl") -> dict[str, np.ndarray]:
    """Random numbers under the names of single files; matrices of the size of a trained network's."""
    rng, out = np.random.default_rng(seed), {}
    for leaf in leaves(name, config, layout):  # type: ignore[arg-type]
        for key, shapes in leaf.expected().items():
            shape = shapes[0]
            out[key] = rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[-1]))
    return out


def of_network(network: Any, name: str, config: Any, layout: str = "bfl") -> dict[str, np.ndarray]:
    """A network's own numbers under the names of single files."""
    out: dict[str, np.ndarray] = {}
    for leaf, value in zip(leaves(name, config, layout), jax.tree.leaves(network), strict=True):  # type: ignore[arg-type]
        array = np.asarray(value, np.float32)
        for index, key in enumerate(leaf.sources):
            out.setdefault(key, np.zeros(leaf.stored_shape, np.float32))
            leaf.put(array[index] if leaf.stacked else array, out[key])
    return out


def is_matrix(key: str, array: np.ndarray) -> bool:
    return key.endswith(".weight") and array.ndim == 2


def eight_bits(torch: Any, numbers: dict[str, np.ndarray], form: str) -> File:
    """A file of eight bits: see `jaxpa.checkpoint.scales` for the names."""
    kind = {"e5m2": torch.float8_e5m2, "int8": torch.int8}.get(form, torch.float8_e4m3fn)
    tensors, truth, layers = {}, {}, {}
    front = PREFIX if form == "comfy-old" else ""
    for key, array in numbers.items():
        w, module = torch.from_numpy(array), key.removesuffix(".weight")
        if form in ("plain", "e5m2"):
            tensors[key] = w.to(kind)
            truth[key] = tensors[key].float().numpy()
        elif not is_matrix(key, array):
            tensors[front + key] = w.to(torch.bfloat16)
            truth[key] = tensors[front + key].float().numpy()
        else:
            rows = form in ("rows", "rows-flat", "int8")
            largest = w.abs().amax(1, keepdim=True) if rows else w.abs().amax()
            scale = largest / (127 if kind is torch.int8 else 448)
            stored = (w / scale).round().to(kind) if kind is torch.int8 else (w / scale).to(kind)
            truth[key] = (stored.float() * scale).numpy()
            tensors[front + key] = stored
            name = "scale_weight" if form == "comfy-old" else "weight_scale"
            tensors[f"{front}{module}.{name}"] = scale.reshape(-1) if form in ("rows-flat", "comfy-old") else scale
            layers[module] = {"format": {torch.int8: "int8_tensorwise"}.get(kind, "float8_e4m3fn")}
            if form in ("comfy-new", "int8"):
                text = json.dumps(layers[module]).encode()
                tensors[f"{module}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
            if form in ("comfy-old", "comfy-new"):
                name = "scale_input" if form == "comfy-old" else "input_scale"
                tensors[f"{front}{module}.{name}"] = torch.tensor(0.5)
    if form == "comfy-old":
        tensors[f"{front}scaled_fp8"] = torch.zeros(2).to(kind)
    metadata = {"_quantization_metadata": json.dumps({"layers": layers})} if form == "header" else {}
    return File(tensors, metadata, truth)


def save(torch: Any, file: File, path: Path) -> Path:
    from safetensors.torch import save_file

    save_file({key: tensor.contiguous().clone() for key, tensor in file.tensors.items()}, path, file.metadata)
    return path


# Where a block of a type has its scales of float16; the rest may be any bytes.
HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_XS": (0,),
          "IQ4_NL": (0,)}  # fmt: skip


def pack(array: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Rows of blocks: rounded by the package gguf where it can, else of random bytes and small scales."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    which = GGMLQuantizationType[kind]
    if kind not in HALVES:
        return quants.quantize(array, which)
    weights, size = GGML_QUANT_SIZES[which]
    blocks = rng.integers(0, 256, (*array.shape[:-1], array.shape[-1] // weights, size), dtype=np.uint8)
    for at in HALVES[kind]:
        halves = (rng.standard_normal(blocks.shape[:-1]) * 1e-3).astype(np.float16)
        blocks[..., at : at + 2] = halves[..., None].view(np.uint8)
    return blocks.reshape(*array.shape[:-1], -1)


def unpack(torch: Any, packed: np.ndarray, kind: str) -> np.ndarray:
    """What rows of blocks mean, by diffusers' functions of torch."""
    from diffusers.quantizers.gguf.utils import dequantize_functions
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    which = GGMLQuantizationType[kind]
    weights, size = GGML_QUANT_SIZES[which]
    blocks = torch.from_numpy(packed.reshape(-1, size).copy())
    numbers = dequantize_functions[which](blocks, weights, size, dtype=torch.float32)
    return numbers.reshape(*packed.shape[:-1], packed.shape[-1] // size * weights).numpy()


def write_gguf(
    path: Path, tensors: dict[str, tuple[np.ndarray, str]], architecture: str | None = "flux", **fields: Any
) -> Path:
    """A GGUF by the package's own writer, of (blocks or plain numbers, type); fields: integers of its header."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture or "flux")
    writer.add_quantization_version(2)
    writer.add_array("a.list", ["of", "words"])
    for key, value in fields.items():
        writer.add_uint32(key, value)
    for key, (array, kind) in tensors.items():
        writer.add_tensor(key, array, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def packed_file(torch: Any, numbers: dict[str, np.ndarray], kind: str, path: Path, seed: int = 0) -> File:
    """A GGUF as they are made of FLUX: matrices of the blocks of a kind, others in bfloat16, vectors in float32."""
    rng, tensors, truth = np.random.default_rng(seed), {}, {}
    for key, array in numbers.items():
        if is_matrix(key, array) and "blocks." in key:
            tensors[key] = pack(array, kind, rng), kind
            truth[key] = unpack(torch, tensors[key][0], kind)
        elif is_matrix(key, array):
            half = torch.from_numpy(array).to(torch.bfloat16)
            tensors[key] = half.view(torch.uint8).numpy(), "BF16"
            truth[key] = half.float().numpy()
        else:
            tensors[key], truth[key] = (array, "F32"), array
    write_gguf(path, tensors)
    return File(tensors, {}, truth)


def explicit(network: Any) -> Any:
    """A network with every kernel of eight bits multiplied out, as numpy would."""

    def multiply(x: Any) -> Any:
        if not isinstance(x, Quantised):
            return np.asarray(x)
        return np.asarray(x.values).astype(np.float32) * np.asarray(x.scale)[..., None, :]

    return jax.tree.map(multiply, network, is_leaf=lambda x: isinstance(x, Quantised))


def quantised(name: str, config: Any, network: Any) -> list[Quantised]:
    """The kernels of eight bits; all that may be are."""
    kernels = jax.tree.leaves(network, is_leaf=lambda x: isinstance(x, Quantised))
    found = [x for x in kernels if isinstance(x, Quantised)]
    rounds = component(name, config).rounds
    assert len(found) == sum(rounds(leaf.path) for leaf in leaves(name, config, "jaxpa"))
    return found
