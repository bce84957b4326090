"""Small sister models of FLUX.1 on disk, which diffusers' own pipelines load too: mini with a random transformer."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from jaxpa.checkpoint.load import find_mini

MINI = find_mini()
TOKEN, MASK = 32, 64  # channels of mini's tokens, and of a pixel mask over one
CHANNELS = {"text": TOKEN, "kontext": TOKEN, "control": 2 * TOKEN, "fill": 2 * TOKEN + MASK}
PIPELINES = {"text": "FluxPipeline", "kontext": "FluxKontextPipeline", "control": "FluxControlPipeline",
             "fill": "FluxFillPipeline"}  # fmt: skip
SIZES = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16,
         "joint_attention_dim": 96, "pooled_projection_dim": 96, "guidance_embeds": True,
         "axes_dims_rope": (4, 6, 6)}  # fmt: skip


def make_sister(folder: Path, reads: str) -> Path:
    """A pipeline's folder: mini's encoders and autoencoder, latents scaled as FLUX.1's, and random blocks."""
    import torch
    from diffusers import FluxTransformer2DModel

    folder.mkdir()
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"):
        (folder / name).symlink_to(MINI / name)
    shutil.copytree(MINI / "vae", folder / "vae")
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.36, "shift_factor": 0.12}))
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(in_channels=CHANNELS[reads], out_channels=TOKEN, **SIZES)
    with torch.no_grad():
        for value in transformer.parameters():
            value.copy_(0.15 * torch.randn_like(value) + (value.ndim == 1 and bool((value == 1).all())))
    transformer.save_pretrained(folder / "transformer")
    (folder / "jaxpa.json").write_text(json.dumps({"preset": "mini", "size": 96, "max_length": 32}))
    (folder / "model_index.json").write_text(
        json.dumps(
            {
                "_class_name": PIPELINES[reads],
                "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
                "text_encoder": ["transformers", "CLIPTextModel"],
                "text_encoder_2": ["transformers", "T5EncoderModel"],
                "tokenizer": ["transformers", "CLIPTokenizer"],
                "tokenizer_2": ["transformers", "T5TokenizerFast"],
                "transformer": ["diffusers", "FluxTransformer2DModel"],
                "vae": ["diffusers", "AutoencoderKL"],
            }
        )
    )
    return folder


def load_reference(folder: Path, reads: str) -> Any:
    """The pipeline of diffusers that the folder names."""
    import diffusers
    import torch

    kind = getattr(diffusers, PIPELINES[reads])
    pipe = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def error(got: Any, want: Any) -> float:
    """The largest difference, in units of the largest value."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / max(1.0, np.abs(want).max()))
