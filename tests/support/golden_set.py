"""The golden set of this repository: stored without what can be derived from the rest, made whole for every session.

Stored is what was measured. Left out is what is a function of it: the BFL single files (the same weights under other
names), the weights that are others rounded to bfloat16, packed latents, pictures beside their bytes, Euler steps
beside their velocities, and rows of one tensor that stand in another one, bit for bit. `derived.json` holds the sha256
of every such tensor as it was measured; a derivation that gives other bytes is an error, so the measurement stays the
truth. The safetensors files are deflated besides. Nothing here imports from `jaxpa`: these are the tests' own words on
names, layouts and formulas.

`golden_compact.py` makes the compact set from a full one.
"""

import base64
import hashlib
import json
import re
import shutil
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

Tensors = dict[str, np.ndarray]

BOOK, PACKED = "derived.json", ".z"
DEV, SCHNELL = "flux-dev-tiny", "flux-schnell-tiny"
FLUX, AE = "bfl/flux1-dev-tiny.safetensors", "bfl/ae-tiny.safetensors"
VAE, CLIP, T5 = "vae/diffusion_pytorch_model", "text_encoder/model", "text_encoder_2/model"
TOKENIZERS = ("tokenizer", "tokenizer_2")
TOKENIZER, PIECES = f"{DEV}/tokenizer_2/tokenizer.json", f"{DEV}/tokenizer_2/spiece.model"
WEIGHTS = (FLUX, AE, *(f"{SCHNELL}/{name}.safetensors" for name in (VAE, CLIP, T5)))
# A file may take rows from those before it.
GOLDENS = tuple(
    f"{name}.safetensors"
    for name in ("text", "vae", "transformer_dev", "transformer_schnell", "schedules", "t2i_dev", "t2i_schnell",
                 "pa_masks", "pa_inversion", "pa_inputs", "pa_multi", "pa_forward", "pa_single")
)  # fmt: skip


def materialise(compact: Path, into: Path) -> Path:
    """Writes the whole layout into the folder `into`; ValueError where derived bytes are not the measured ones."""
    book = json.loads((compact / BOOK).read_text())
    shutil.copytree(compact, into, ignore=shutil.ignore_patterns(BOOK, f"*{PACKED}"), dirs_exist_ok=True)
    for path in compact.rglob(f"*{PACKED}"):
        (into / path.relative_to(compact)).with_suffix("").write_bytes(unpack_file(path.read_bytes()))
    _derive_tokenizers(into, book)
    for name, tensors in _derive_weights(into).items():
        _check(name, tensors, book["sha256"][name], whole=True)
        write(tensors, into / name, {} if name in (FLUX, AE) else {"format": "pt"})
    done: dict[str, Tensors] = {}
    for name in GOLDENS:
        done[name] = load_file(into / name)
        _fill_rows(done, name, book["rows"].get(name, {}))
        done[name] |= formulas_of(name, done)
        if name in book["sha256"]:
            _check(name, done[name], book["sha256"][name])
            write(done[name], into / name, {})
    return into


def pack_file(raw: bytes) -> bytes:
    """A safetensors file, deflated, with the four bytes of its words in four planes: signs and exponents are alike."""
    start, stop = _words(raw)
    planes = np.frombuffer(raw[start:stop], np.uint8).reshape(-1, 4).T.tobytes()
    return zlib.compress(raw[:start] + planes + raw[stop:], 9)


def unpack_file(blob: bytes) -> bytes:
    raw = zlib.decompress(blob)
    start, stop = _words(raw)
    return raw[:start] + np.frombuffer(raw[start:stop], np.uint8).reshape(4, -1).T.tobytes() + raw[stop:]


def _words(raw: bytes) -> tuple[int, int]:
    start = 8 + int.from_bytes(raw[:8], "little")
    return start, start + (len(raw) - start) // 4 * 4


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _check(name: str, tensors: Tensors, digests: dict[str, str], whole: bool = False) -> None:
    if whole and set(tensors) != set(digests):
        raise ValueError(f"{name}: other names than measured: {sorted(set(tensors) ^ set(digests))}")
    wrong = [key for key, want in digests.items() if key not in tensors or digest(tensors[key]) != want]
    if wrong:
        raise ValueError(f"{name}: derived bytes are not the measured ones: {wrong}")


def write(tensors: Tensors, path: Path, metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The tensors may be views of the old file, which lives on until they are gone.
    path.unlink(missing_ok=True)
    # The writer reads the buffer as it lies: a transposed view would come out scrambled.
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path, metadata or None)


# Tokenizers and weights


def _derive_tokenizers(root: Path, book: dict) -> None:
    """tokenizer.json repeats the character map of spiece.model in base64; schnell's folders are dev's."""
    start, stop = book["charsmap"]
    charsmap = base64.b64encode((root / PIECES).read_bytes()[start:stop]).decode()
    text = (root / TOKENIZER).read_bytes().replace(charsmap_field(""), charsmap_field(charsmap))
    (root / TOKENIZER).write_bytes(text)
    for folder in TOKENIZERS:
        shutil.copytree(root / DEV / folder, root / SCHNELL / folder, dirs_exist_ok=True)
    for name, want in book["files"].items():
        if hashlib.sha256((root / name).read_bytes()).hexdigest() != want:
            raise ValueError(f"{name}: derived bytes are not the measured ones")


def charsmap_field(charsmap: str) -> bytes:
    return f'"precompiled_charsmap": "{charsmap}"'.encode()


def _derive_weights(root: Path) -> dict[str, Tensors]:
    parts = {part: _load_folder(root / DEV / part) for part in ("transformer", "vae", "text_encoder", "text_encoder_2")}
    files = {FLUX: flux_to_bfl(parts["transformer"]), AE: ae_to_bfl(parts["vae"])}
    for name in (VAE, CLIP, T5):
        rounded = {key: value.astype(ml_dtypes.bfloat16) for key, value in parts[name.split("/")[0]].items()}
        files[f"{SCHNELL}/{name}.safetensors"] = rounded
    return files


def _load_folder(folder: Path) -> Tensors:
    return {key: value for path in sorted(folder.glob("*.safetensors")) for key, value in load_file(path).items()}


# BFL name -> the diffusers names whose weights (and biases) it stacks.
FLUX_TOP = {
    "img_in": ["x_embedder"],
    "txt_in": ["context_embedder"],
    "time_in.in_layer": ["time_text_embed.timestep_embedder.linear_1"],
    "time_in.out_layer": ["time_text_embed.timestep_embedder.linear_2"],
    "vector_in.in_layer": ["time_text_embed.text_embedder.linear_1"],
    "vector_in.out_layer": ["time_text_embed.text_embedder.linear_2"],
    "guidance_in.in_layer": ["time_text_embed.guidance_embedder.linear_1"],
    "guidance_in.out_layer": ["time_text_embed.guidance_embedder.linear_2"],
    "final_layer.linear": ["proj_out"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
}
FLUX_DOUBLE = {
    "img_mod.lin": ["norm1.linear"],
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "img_attn.norm.query_norm": ["attn.norm_q"],
    "img_attn.norm.key_norm": ["attn.norm_k"],
    "img_attn.proj": ["attn.to_out.0"],
    "img_mlp.0": ["ff.net.0.proj"],
    "img_mlp.2": ["ff.net.2"],
    "txt_mod.lin": ["norm1_context.linear"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "txt_attn.norm.query_norm": ["attn.norm_added_q"],
    "txt_attn.norm.key_norm": ["attn.norm_added_k"],
    "txt_attn.proj": ["attn.to_add_out"],
    "txt_mlp.0": ["ff_context.net.0.proj"],
    "txt_mlp.2": ["ff_context.net.2"],
}
FLUX_SINGLE = {
    "modulation.lin": ["norm.linear"],
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "linear2": ["proj_out"],
    "norm.query_norm": ["attn.norm_q"],
    "norm.key_norm": ["attn.norm_k"],
}
AE_NAMES = (
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    # The decoder's blocks are counted from the highest resolution.
    (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}"),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample"),
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    (r"mid_block\.attentions\.0\.", r"mid.attn_1."),
    (r"attn_1\.group_norm", r"attn_1.norm"),
    (r"attn_1\.to_out\.0", r"attn_1.proj_out"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"conv_norm_out", r"norm_out"),
    (r"conv_shortcut", r"nin_shortcut"),
)


def flux_to_bfl(tensors: Tensors) -> Tensors:
    """A diffusers FLUX transformer under the names of BFL's single file."""
    out: Tensors = {}
    tables = [("", "", FLUX_TOP)]
    for theirs, ours, table in (("transformer_blocks", "double_blocks", FLUX_DOUBLE),
                                ("single_transformer_blocks", "single_blocks", FLUX_SINGLE)):  # fmt: skip
        count = len({key.split(".")[1] for key in tensors if key.startswith(theirs + ".")})
        tables += [(f"{theirs}.{i}.", f"{ours}.{i}.", table) for i in range(count)]
    for theirs, ours, table in tables:
        for new, old in table.items():
            for leaf in ("weight", "bias"):
                if f"{theirs}{old[0]}.{leaf}" in tensors:
                    last = "scale" if new.endswith("_norm") else leaf
                    stacked = np.concatenate([tensors[f"{theirs}{name}.{leaf}"] for name in old])
                    out[f"{ours}{new}.{last}"] = stacked
    for leaf in ("weight", "bias"):  # [scale; shift] -> [shift; scale]
        scale, shift = np.split(out[f"final_layer.adaLN_modulation.1.{leaf}"], 2)
        out[f"final_layer.adaLN_modulation.1.{leaf}"] = np.concatenate([shift, scale])
    return out


def ae_to_bfl(tensors: Tensors) -> Tensors:
    """A diffusers AutoencoderKL under the names of BFL's ae.safetensors, where the attention's maps are 1x1 convs."""
    out: Tensors = {}
    for key, value in tensors.items():
        for pattern, new in AE_NAMES:
            key = re.sub(pattern, new, key)
        out[key] = value[:, :, None, None] if "attn_1" in key and value.ndim == 2 else value
    return out


# Golden tensors


def pack(latents: np.ndarray) -> np.ndarray:
    """(B, C, 2h, 2w) -> (B, h w, 4 C), the channel slowest within a token."""
    b, c, h, w = latents.shape
    cells = latents.reshape(b, c, h // 2, 2, w // 2, 2).transpose(0, 2, 4, 1, 3, 5)
    return cells.reshape(b, h * w // 4, c * 4)


def _picture(u8: np.ndarray) -> np.ndarray:
    return (u8.astype(np.float32) / np.float32(127.5) - 1).transpose(2, 0, 1)[None]


def formulas_of(name: str, done: dict[str, Tensors]) -> Tensors:
    """The tensors of one file that are functions of its others, in the reference's order of float32 operations."""
    tensors = done[name]
    if name == "vae.safetensors":
        return _vae(tensors)
    if name == "pa_inversion.safetensors":
        return _inversion(tensors)
    if name.startswith("t2i_"):
        return _euler(tensors, name[4:-12], done["schedules.safetensors"])
    return {}


def _vae(stored: Tensors) -> Tensors:
    out: Tensors = {}
    for size in _prefixes(stored, "/image_u8"):
        out[f"{size}/image"] = _picture(stored[f"{size}/image_u8"])
        latents = (stored[f"{size}/posterior_mean"] - np.float32(0.1159)) * np.float32(0.3611)
        out |= {f"{size}/latents": latents, f"{size}/packed": pack(latents)}
        unit = np.clip(stored[f"{size}/decoded"][0] / 2 + np.float32(0.5), 0, 1)
        out[f"{size}/decoded_u8"] = np.round(unit * 255).astype(np.uint8).transpose(1, 2, 0)
    return out


def _euler(stored: Tensors, model: str, schedules: Tensors) -> Tensors:
    out: Tensors = {}
    for size in _prefixes(stored, "/noise_nchw"):
        velocity, x = stored[f"{size}/noise_pred"], pack(stored[f"{size}/noise_nchw"])
        sigmas = schedules[f"{model}/tokens{x.shape[1]}/steps{len(velocity)}/sigmas"]
        out[f"{size}/noise_packed"] = x
        steps = []
        for now, then, v in zip(sigmas, sigmas[1:], velocity, strict=False):
            x = x + (then - now) * v
            steps.append(x)
        out |= {f"{size}/step_latents": np.concatenate(steps), f"{size}/final_latents": x}
    return out


def _inversion(stored: Tensors) -> Tensors:
    out = {f"ref{n}/image": _picture(stored[f"image{n}_u8"]) for n in range(2)}
    for run in _prefixes(stored, "/u_steps"):
        ref, gamma = run.split("/gamma")
        y, noise = stored[f"{ref}/image_latents"], stored[f"{ref}/noise_y1"]
        widths = -np.diff(stored["sigmas"])
        steps = [y]
        for u, t, width in zip(stored[f"{run}/u_steps"], stored[f"{run}/timesteps_in"], widths, strict=True):
            y = y + (u + np.float32(gamma) * ((noise - y) / (1 - t) - u)) * width
            steps.append(y)
        out |= {f"{run}/Y_steps": np.concatenate(steps), f"{run}/inverted_latents": y}
    return out


def _prefixes(tensors: Tensors, suffix: str) -> list[str]:
    return [key.removesuffix(suffix) for key in tensors if key.endswith(suffix)]


def rows_of(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, *array.shape[-2:])


def _fill_rows(done: dict[str, Tensors], name: str, recipes: dict) -> None:
    """A recipe is a shape and runs of rows: [count] of those stored, or [file, key, start, count] of another tensor."""
    for key, (shape, runs) in recipes.items():
        stored, at, out = done[name].get(key), 0, []
        for run in runs:
            if len(run) == 1:
                assert stored is not None
                out.append(rows_of(stored)[at : at + run[0]])
                at += run[0]
            else:
                file, source, start, count = run
                out.append(rows_of(done[file][source])[start : start + count])
        done[name][key] = np.concatenate(out).reshape(shape)
