"""A second backbone is its own file and one entry: a toy is registered, loaded, planned, spread and run."""

import itertools
import json
import re
import shutil
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file
from small_checkpoint import CONFIG, make, same

from jaxpa.backbones.backbone import Backbone
from jaxpa.backbones.registry import BACKBONES, backbone_of
from jaxpa.backbones.shapes import axes, count_blocks
from jaxpa.backbones.tables import Layer, Row, Stored, Work, row
from jaxpa.checkpoint.convert import convert
from jaxpa.checkpoint.keys import abstract, leaves
from jaxpa.checkpoint.load import load_component, load_parts
from jaxpa.checkpoint.report import info
from jaxpa.checkpoint.residence import arrange
from jaxpa.checkpoint.source import resolve
from jaxpa.config import FromJson, Rounding, T5Config
from jaxpa.devices import cost
from jaxpa.devices.bench import Workload, bench, format_bench, random_model
from jaxpa.devices.plan import plan
from jaxpa.devices.programs import Job, Text, program
from jaxpa.devices.sharding import make_mesh, rules
from jaxpa.encoders.text import TextEmbedding
from jaxpa.errors import CheckpointError
from jaxpa.layers import Linear, Numbered, stack
from jaxpa.model import Model
from jaxpa.quantised import Quantised
from jaxpa.request.request import Request

# A second network, as its own file would have it ----------------------------------------------------------------


@dataclass(frozen=True)
class ToyConfig(FromJson):
    in_channels: int = 16
    num_layers: int = 3
    width: int = 8
    joint_attention_dim: int = 12
    pooled_projection_dim: int = 8
    guidance_embeds: bool = False
    out_channels: int | None = None
    num_attention_heads: int = 1

    @property
    def velocity_channels(self) -> int:
        return self.in_channels

    @property
    def attention_head_dim(self) -> int:
        return self.width

    @property
    def blocks(self) -> int:
        return self.num_layers


class ToyBlock(nnx.Module):
    def __init__(self, d: int, **keywords: Any):
        self.gate, self.up = (Linear(d, 2 * d, **keywords) for _ in range(2))
        self.down = Linear(2 * d, d, **keywords)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(self.gate(x))[:, None] * self.up.to_heads(x, 1)  # (B, 1, S, 2 D)
        return x + self.down.from_heads(hidden)


class Toy(nnx.Module):
    def __init__(self, config: ToyConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        d, keywords = config.width, {"dtype": dtype}
        self.config = config
        self.enter = Linear(config.in_channels, d, rngs=rngs, **keywords)
        self.read = Linear(config.joint_attention_dim, d, rngs=rngs, **keywords)
        self.layers = stack(config.num_layers, lambda r: ToyBlock(d, rngs=r, **keywords), rngs)
        self.leave = Linear(d, config.in_channels, rngs=rngs, **keywords)

    @property
    def dtype(self) -> Any:
        return self.enter.bias[...].dtype

    def __call__(self, x: jax.Array, txt: jax.Array, t: jax.Array) -> jax.Array:
        x = self.enter(x) + self.read(txt).mean(1, keepdims=True) + t[:, None, None]
        if isinstance(self.layers, Numbered):
            for block in self.layers:
                x = block(x)
        else:
            x, _ = jax.lax.scan(lambda x, block: (block(x), None), x, self.layers)
        return self.leave(x)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ToyVelocity:
    model: Toy
    txt: jax.Array

    def __call__(self, x: jax.Array, t: jax.Array, routing: Any = None) -> jax.Array:
        return self.model(x, self.txt, t)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ToyConditions:
    txt: jax.Array

    def bind(self, model: Toy) -> ToyVelocity:
        return ToyVelocity(model, self.txt)


def fused(part: str, i: int) -> Row:
    """Two layers that the original file has side by side."""
    return Row(Stored(f"layers.{{i}}.{part}_proj"), Stored("mixers.{i}.fused", i, i + 1, 2))


def infer(shapes: dict[str, tuple[int, ...]], hint: dict[str, Any] | None) -> ToyConfig:
    width, channels = axes(shapes, "patch.weight", 2)
    layers, text = count_blocks(shapes, r"mixers\.(\d+)\."), axes(shapes, "caption.weight", 2)[1]
    return ToyConfig.from_json(
        {"in_channels": channels, "num_layers": layers, "width": width, "joint_attention_dim": text}
    )


def work(c: ToyConfig, n: int, m: int, k: int) -> Work:
    d = c.width
    ends = [Layer(c.in_channels, d, n), Layer(c.joint_attention_dim, d, m), Layer(d, c.in_channels, n)]
    rounded = [Layer(d, 2 * d, n, c.blocks, rounds=True), Layer(2 * d, d, n, c.blocks, rounds=True)]
    return Work([*ends, Layer(d, 2 * d, n, c.blocks), *rounded])


TOY = Backbone(
    name="TOY",
    pipelines="Toy",
    class_names=("ToyTransformer",),
    config=ToyConfig,
    network=Toy,
    rows={
        "enter": row("to_width", "patch"),
        "read": row("text_proj", "caption"),
        "layers.gate": fused("gate", 0),
        "layers.up": fused("up", 1),
        "layers.down": row("layers.{i}.down_proj", "mixers.{i}.out"),
        "leave": row("to_channels", "unpatch"),
    },
    signature=re.compile(r"^(.*?)mixers\.\d+\."),
    infer=infer,
    work=work,
    rules=(
        (r"layers\.(gate|up)\.kernel", (None, "model")),
        (r"layers\.(gate|up)\.bias", ("model",)),
        (r"layers\.down\.kernel", ("model", None)),
    ),
    stacks=("layers",),
    rounded=re.compile(r"layers\.(up|down)\.kernel"),
    to_heads=re.compile(r"layers\.up\.kernel"),
    from_heads=re.compile(r"layers\.down\.kernel"),
    misfits=lambda config, others: (
        [f"its captions have {config.joint_attention_dim} channels"]
        if others["text_encoder_2"].d_model != config.joint_attention_dim
        else []
    ),
    conditions=lambda text, guidance, positions: ToyConditions(text.txt),
)
SMALL = ToyConfig(num_layers=2)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", TOY)


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy(SMALL, rngs=nnx.Rngs(3))


# On disk --------------------------------------------------------------------------------------------------------


def diffusers(toy: Toy) -> dict[str, np.ndarray]:
    """The toy's numbers under diffusers' names, written out by hand: (Out, In), one tensor a block."""
    own = {"to_width": toy.enter, "text_proj": toy.read, "to_channels": toy.leave}
    out = {f"{name}.weight": np.array(x.kernel[...]).T.copy() for name, x in own.items()}
    out |= {f"{name}.bias": np.array(x.bias[...]) for name, x in own.items()}
    for i, part in itertools.product(range(SMALL.num_layers), ("gate", "up", "down")):
        layer = getattr(toy.layers, part)
        out[f"layers.{i}.{part}_proj.weight"] = np.array(layer.kernel[i]).T.copy()
        out[f"layers.{i}.{part}_proj.bias"] = np.array(layer.bias[i])
    return out


def original(toy: Toy, prefix: str) -> dict[str, np.ndarray]:
    """The same under the original file's names."""
    theirs = diffusers(toy)
    names = {"to_width": "patch", "text_proj": "caption", "to_channels": "unpatch"}
    out = {f"{new}.{kind}": theirs[f"{old}.{kind}"] for old, new in names.items() for kind in ("weight", "bias")}
    for i, kind in itertools.product(range(SMALL.num_layers), ("weight", "bias")):
        gate, up, down = (theirs[f"layers.{i}.{part}_proj.{kind}"] for part in ("gate", "up", "down"))
        out |= {f"mixers.{i}.fused.{kind}": np.concatenate([gate, up]), f"mixers.{i}.out.{kind}": down}
    return {prefix + key: value for key, value in out.items()}


@pytest.fixture
def folder(tmp_path, toy):
    """A pipeline of the toy, with the small encoders and autoencoder of the other tests."""
    root = make(tmp_path / "pipeline")
    shutil.rmtree(root / "transformer")
    (root / "transformer").mkdir()
    save_file(diffusers(toy), root / "transformer" / "diffusion_pytorch_model.safetensors")
    config = {"_class_name": "ToyTransformer", **asdict(SMALL)}
    (root / "transformer" / "config.json").write_text(json.dumps(config))
    (root / "model_index.json").write_text(json.dumps({"_class_name": "ToyPipeline"}))
    return root


def test_loads_from_a_folder(folder, toy):
    assert backbone_of(SMALL) is TOY
    parts = load_parts(folder, dtype=np.float32)
    assert parts.config.transformer == SMALL
    assert same(parts.transformer, arrange(toy))


def test_loads_in_eight_bits(folder):
    parts = load_parts(folder, dtype=np.float32, weights="int8")
    layers = parts.transformer.layers
    first = layers[0] if isinstance(layers, Numbered) else layers
    kinds = [isinstance(getattr(first, part).kernel.get_value(), Quantised) for part in ("gate", "up", "down")]
    assert kinds == [False, True, True]
    held = sum(x.nbytes for x in jax.tree.leaves(parts.transformer))
    assert cost.weight_bytes(parts.config, 4, Rounding("int8"))["transformer"] == held


def test_converts(folder, tmp_path, toy):
    out = convert(folder, tmp_path / "converted")
    assert info(out)["layout"] == "jaxpa"
    assert same(load_parts(out, dtype=np.float32).transformer, arrange(toy))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_is_inferred_from_a_single_file(tmp_path, toy, prefix):
    file = tmp_path / "toy.safetensors"
    save_file(original(toy, prefix), file)
    (part,) = resolve(file).parts.values()
    assert (part.name, part.layout, part.config, part.faults) == ("transformer", "bfl", SMALL, [])
    assert same(load_component(file, np.float32), arrange(toy))


def test_faults_are_named(folder, tmp_path, toy):
    tensors = diffusers(toy)
    del tensors["layers.1.up_proj.weight"]
    save_file(tensors, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=r"'layers\.1\.up_proj\.weight' \[16, 8\] is missing"):
        load_parts(folder)
    headless = original(toy, "")
    del headless["patch.weight"]
    save_file(headless, tmp_path / "headless.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor 'patch\.weight' is missing, so the configuration is not known"):
        load_component(tmp_path / "headless.safetensors")


def test_without_its_entry_it_is_unknown(folder, tmp_path, toy, monkeypatch):
    monkeypatch.delitem(BACKBONES, "toy")
    with pytest.raises(CheckpointError, match="FluxTransformer2DModel") as caught:
        load_parts(folder)
    assert 'allowed: a pipeline of FLUX, such as "FluxPipeline"' in str(caught.value)
    save_file(original(toy, ""), tmp_path / "toy.safetensors")
    with pytest.raises(CheckpointError, match="the names of a FLUX transformer, an autoencoder"):
        resolve(tmp_path / "toy.safetensors")
    with pytest.raises(TypeError, match="ToyConfig"):
        backbone_of(SMALL)


def test_parts_must_fit(folder):
    t5 = T5Config(vocab_size=40, d_model=20, d_kv=4, d_ff=20, num_layers=2, num_heads=2)
    (folder / "text_encoder_2" / "config.json").write_text(
        json.dumps({"architectures": ["T5EncoderModel"], "feed_forward_proj": "gated-gelu", **asdict(t5)})
    )
    assert "its captions have 12 channels" in resolve(folder).misfits()


# On machines ----------------------------------------------------------------------------------------------------


def test_is_planned(folder):
    content = plan(resolve(folder), Request.of("a car", height=16, width=16, steps=3), np.float32)
    n, m, d = content["image_tokens"], content["text_tokens"], SMALL.width
    assert n == 16
    assert content["tflop_per_forward"] == 2e-12 * (2 * 16 * d * n + 12 * d * m + 2 * n * (2 * d * 2 * d + 2 * d * d))
    weights = sum(x.size for x in jax.tree.leaves(abstract("transformer", SMALL, np.float32)))
    assert content["weight_bytes"]["transformer"] == 4 * weights


def test_is_timed():
    result = bench(random_model(SMALL), Workload(16, 16, text_tokens=5, steps=2, repeats=1), vae_downscale=2)
    assert result["blocks"] == {"layers": 2}
    assert result["tflop_per_step"] == cost.transformer_flops(SMALL, 16, 5) / 1e12
    assert "2 layers" in format_bench(result)


@pytest.mark.parametrize("guided", [False, True])
def test_is_compiled_as_a_program(toy, guided):
    """The same function that `plan --device` compiles, run: the toy's own Euler steps."""
    job = Job(SMALL, (4, 4), text_tokens=5, images=2, steps=2, guided=guided, dtype=np.float32)
    function, _ = program(job, make_mesh(), "cpu")
    vec, times = np.zeros((2, 8), np.float32), np.float32([1, 0.4, 0])
    got = jax.jit(function)(arrange(toy), Text(TXT, vec, None, (-TXT, vec) if guided else None), X, times)
    want = X
    for t, step in zip(times, np.diff(times), strict=False):
        plain, pushed = (toy(want, txt, np.full(2, t)) for txt in (TXT, -TXT))
        want = want + step * (pushed + 4 * (plain - pushed) if guided else plain)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_is_spread(folder):
    mesh = AbstractMesh((1, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = {
        leaf.path: rules(mesh)("transformer", leaf.path, leaf.shape).spec
        for leaf in leaves("transformer", SMALL, "jaxpa")
    }
    split = {path: spec for path, spec in specs.items() if any(spec)}
    columns, rows = P(None, None, "model"), P(None, "model", None)
    assert split == {
        "layers.gate.kernel": columns, "layers.up.kernel": columns, "layers.down.kernel": rows,
        "layers.gate.bias": P(None, "model"), "layers.up.bias": P(None, "model"),
    }  # fmt: skip
    loaded = load_component(folder / "transformer", np.float32, rules(make_mesh()))
    (first, *_) = loaded.layers if isinstance(loaded.layers, Numbered) else [loaded.layers]
    assert first.up.kernel[...].sharding.spec[-1] == "model"


def test_no_rule_meets_another_networks_module():
    """Rules of all backbones are tried in turn."""
    configs = {"flux": CONFIG.transformer, "toy": SMALL}
    for one, other in itertools.permutations(BACKBONES, 2):
        paths = [leaf.path for leaf in leaves("transformer", configs[other], "jaxpa")]
        assert not [(p, path) for p, _ in BACKBONES[one].rules for path in paths if re.fullmatch(p, path)]


X, T = np.float32(np.random.default_rng(0).normal(size=(2, 16, 16))), np.float32([0.3, 0.8])
TXT = np.float32(np.random.default_rng(1).normal(size=(2, 5, 12)))


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_lies_as_a_platform_wants_it(toy, platform):
    there = arrange(toy, platform)
    assert isinstance(there.layers, Numbered) == (platform == "gpu")
    if platform == "tpu":
        up, down, gate = (getattr(there.layers, name).kernel[...] for name in ("up", "down", "gate"))
        assert (up.shape, down.shape, gate.shape) == ((2, 8, 1, 16), (2, 1, 16, 8), (2, 8, 16))
        assert up.format.layout.major_to_minor == (0, 2, 3, 1)
        assert down.format.layout.major_to_minor == (0, 1, 2, 3)
    np.testing.assert_allclose(there(X, TXT, T), toy(X, TXT, T), atol=1e-6)


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_conditions_are_bound(folder, toy, guidance):
    """The model's velocity is the toy's own, classifier-free guidance included."""
    text, negative = TextEmbedding(TXT, np.zeros((2, 8), np.float32)), TextEmbedding(-TXT, np.ones((2, 8), np.float32))
    model = Model(load_parts(folder, dtype=np.float32), None)  # type: ignore[arg-type]  # nothing is tokenised
    velocity = model.velocity(text, height=16, width=16, guidance=guidance, negative=negative if guidance else None)
    plain, pushed = toy(X, TXT, T), toy(X, -TXT, T)
    want = pushed + guidance * (plain - pushed) if guidance else plain
    np.testing.assert_allclose(velocity(X, T), want, atol=1e-5)
