"""The training recipe on networks of a few thousand numbers: stages, their states, and what they export."""

import json
import os
import signal
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpa.checkpoint.keys import COMPONENTS
from jaxpa.checkpoint.load import load_component, load_parts
from jaxpa.config import AutoencoderConfig, CLIPConfig, FluxConfig, T5Config, TransformerConfig
from jaxpa.encoders.autoencoder import Autoencoder
from jaxpa.encoders.t5 import relative_buckets
from jaxpa.encoders.text import Tokenizers
from weights.recipe import compositions, distill, flow, latents, training
from weights.recipe.classifiers import identity_loss, label_loss
from weights.recipe.classifiers import train as train_judge
from weights.recipe.export import export
from weights.recipe.flow import TextToImage
from weights.recipe.judge import EMBEDDING, Classifier, halves, load, present, save
from weights.recipe.judge_data import HEADS, pairs, triplets, unit
from weights.recipe.judge_report import accuracy, wanted
from weights.recipe.latents import Batch, positions
from weights.recipe.latents import Tokenizers as RecipeTokenizers
from weights.recipe.tokenizers import make_tokenizers
from weights.recipe.world import PATTERNS, sample_scene

LENGTH = 8
CONFIG = FluxConfig(
    transformer=TransformerConfig(in_channels=16, num_layers=1, num_single_layers=1, num_attention_heads=2,
                                  attention_head_dim=8, joint_attention_dim=12, pooled_projection_dim=8,
                                  guidance_embeds=False, axes_dims_rope=(4, 2, 2)),
    vae=AutoencoderConfig(latent_channels=4, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2),
    text_encoder=CLIPConfig(vocab_size=30, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
                            num_attention_heads=2),
    text_encoder_2=T5Config(vocab_size=40, d_model=12, d_kv=4, d_ff=20, num_layers=1, num_heads=2),
)  # fmt: skip
SETTINGS = {
    "preset": "mini",
    "size": 16,
    "steps": 2,
    "guidance": 3.0,
    "guidance_with_references": 2.0,
    "max_length": LENGTH,
}


def random(model, seed: int = 0):
    """The same network with every number drawn anew, none of them zero."""
    leaves, tree = jax.tree.flatten(model)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [jnp.asarray(0.2 * rng.standard_normal(x.shape), jnp.float32) for x in leaves])


@pytest.fixture(scope="module")
def teacher() -> TextToImage:
    return random(jax.eval_shape(lambda: flow.initial(CONFIG, 0)))


@pytest.fixture(scope="module")
def weak() -> TextToImage:
    """Narrower than the teacher."""
    narrow = replace(CONFIG.transformer, num_attention_heads=1)
    return random(jax.eval_shape(lambda: flow.initial(replace(CONFIG, transformer=narrow), 0)))


@pytest.fixture(scope="module")
def data() -> Batch:
    rng = np.random.default_rng(1)
    tokens = rng.standard_normal((16, 4, 16)).astype(np.float16)
    t5, clip = (rng.integers(3, 30, (16, LENGTH), dtype=np.int32) for _ in range(2))
    clip[:, -1] = CONFIG.text_encoder.eos_token_id
    return Batch(tokens, t5, clip, rng.uniform(-1, 1, (16, 4, 4)).astype(np.float16), positions((16, 16)))


WORDS = (np.array([5, 6, 7], np.int32), np.array([5, 6, 7], np.int32))  # of patterns
EMPTY = (np.full(LENGTH, 1, np.int32), np.full(LENGTH, 2, np.int32))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    make_tokenizers(folder, LENGTH, captions=50)
    return folder


def equal(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# Export ------------------------------------------------------------------------------------------------------


# With a row for every word of the tokenizers, as loading demands.
WORDED = replace(
    CONFIG,
    text_encoder=replace(CONFIG.text_encoder, vocab_size=640),
    text_encoder_2=replace(CONFIG.text_encoder_2, vocab_size=160),
)


@pytest.mark.parametrize("guided", [False, True])
def test_export_and_load(tokenizers, tmp_path, guided):
    """Every number of random networks comes back, rounded to bfloat16, with the configuration and the settings."""
    teacher = random(jax.eval_shape(lambda: flow.initial(WORDED, 0)))
    config = distill.guided_config(WORDED) if guided else WORDED
    networks = {
        "transformer": random(distill.initial(teacher, 0).transformer) if guided else teacher.transformer,
        "vae": random(jax.eval_shape(lambda: Autoencoder(WORDED.vae, rngs=nnx.Rngs(0)))),
        "text_encoder": teacher.clip,
        "text_encoder_2": teacher.t5,
    }
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "old.txt").write_text("is replaced")
    export(folder, config, networks, tokenizers, SETTINGS)
    assert not (folder / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]  # nothing half-written
    parts = load_parts(folder, dtype=jnp.float32)
    assert parts.config == config
    assert parts.config.transformer.guidance_embeds is guided
    assert vars(parts.settings) == SETTINGS | {"words": {}, "variant": "text"}
    assert "FluxPipeline" in json.loads((folder / "model_index.json").read_text())["_class_name"]
    for name in COMPONENTS:
        rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), networks[name])
        assert equal(getattr(parts, name), rounded), name
        assert equal(load_component(folder / name, jnp.float32), rounded), name
    assert Tokenizers.load(folder).t5.model_max_length == LENGTH

    first, vae = flow.start_from(folder, WORDED)  # a run that goes on from it
    assert equal(vae, parts.vae)
    assert equal((first.t5, first.clip), (parts.text_encoder_2, parts.text_encoder))
    assert first.transformer.config == WORDED.transformer
    exported = TextToImage(parts.transformer, parts.text_encoder_2, parts.text_encoder)
    ids = jnp.full((3, LENGTH), 5), jnp.full((3, LENGTH), CONFIG.text_encoder.eos_token_id)
    tokens, times = random(jax.ShapeDtypeStruct((3, 4, 16), jnp.float32)), jnp.array([0.1, 0.5, 0.9])
    plain, student = (flow.bind(each, *ids, positions((16, 16)))(tokens, times) for each in (first, exported))
    np.testing.assert_allclose(plain, student, 0, 1e-5)  # which is asked at guidance 1
    with pytest.raises(ValueError, match="other sizes"):
        flow.start_from(folder, replace(WORDED, vae=replace(WORDED.vae, norm_num_groups=1)))


# Flow --------------------------------------------------------------------------------------------------------

TWO_BLOCKS = replace(CONFIG, text_encoder_2=replace(CONFIG.text_encoder_2, num_layers=2))
LAST = np.arange(2)[:, None, None] == 1  # of T5's two blocks


def test_words_look_at_the_words_around_them_from_the_start():
    """Key minus query where the bias of each head is largest."""
    bias = np.asarray(flow.reading_neighbours(jnp.zeros((32, 4))))[relative_buckets(12, 32, 128)]  # (M, M, H)
    row = bias[6]  # (M, H)
    assert [set(np.flatnonzero(row[:, h] == row[:, h].max()) - 6) for h in range(4)] == [{-1}, {-2}, {1}, {-3, -4}]
    started = flow.initial(TWO_BLOCKS, 0).t5
    assert np.asarray(started.attention_bias(LENGTH)[0, :, 5].argmax(-1)).tolist() == [4, 3]
    zero = np.asarray(started.blocks.attention.q.kernel[...]) == 0
    np.testing.assert_array_equal(zero, np.broadcast_to(LAST, zero.shape))
    assert np.asarray(started.blocks.attention.k.kernel[...]).all()


def test_training_moves_everything_but_t5s_last_queries(data, tmp_path):
    """And resumes where it stopped: at its end there is nothing left to do."""
    start = random(jax.eval_shape(lambda: flow.initial(TWO_BLOCKS, 0)))
    options = {"steps": 2, "batch": 16, "seed": 0, "ema": 0.0, "start": start}
    trained = flow.train(tmp_path, TWO_BLOCKS, [data], data, EMPTY, **options)
    pairs = zip(jax.tree_util.tree_leaves_with_path(trained), jax.tree.leaves(start), strict=True)
    still = {jax.tree_util.keystr(path) for (path, new), old in pairs if np.array_equal(new, old)}
    # The softmax does not see an offset of all keys, so its gradient is zero or rounding, as the processor has it.
    assert still <= {".clip.blocks.attention.k.bias.value"}
    new, old = (np.asarray(model.t5.blocks.attention.q.kernel[...]) for model in (trained, start))
    np.testing.assert_array_equal(new == old, np.broadcast_to(LAST, old.shape))
    assert equal(flow.train(tmp_path, TWO_BLOCKS, [data], data, EMPTY, **options), trained)
    assert equal(flow.average_of(tmp_path / "flow.state", TWO_BLOCKS), (trained, 2))


def test_a_run_that_is_stopped_ends_as_one_that_is_not(data, tmp_path, monkeypatch):
    """SIGTERM in the second of four updates, then the same command again: to the last bit."""
    options = {"steps": 4, "batch": 4, "seed": 0, "start": random(jax.eval_shape(lambda: flow.initial(CONFIG, 0)))}
    runs = [tmp_path / name for name in ("whole", "stopped")]
    for run in runs:
        run.mkdir()
    whole = flow.train(runs[0], CONFIG, [data], data, EMPTY, **options)
    handler, made = signal.getsignal(signal.SIGTERM), []
    original = training.Log.__call__

    def log(self, step, *rest):
        original(self, step, *rest)
        made.append(step)
        if made == [1, 2]:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training.Log, "__call__", log)
    training.stop_politely()
    try:
        with pytest.raises(SystemExit):
            flow.train(runs[1], CONFIG, [data], data, EMPTY, **options)
    finally:
        signal.signal(signal.SIGTERM, handler)
    resumed = flow.train(runs[1], CONFIG, [data], data, EMPTY, **options)
    assert equal(resumed, whole)
    assert made[-1] == 4
    assert len(made) < 6  # the second run did not begin anew
    assert not list(runs[1].glob("*.part"))


def test_batches_cost_the_same_and_show_every_picture(data):
    assert [flow.rows_of(n, 32, 64) for n in (64, 144, 400)] == [120, 64, 24]
    large = data._replace(tokens=np.repeat(data.tokens, 4, 1), positions=positions((32, 32)))
    few = data.rows(np.arange(8))
    stream = flow.batches([large, few], 2, 7, 0)
    made = [next(stream) for _ in range(300)]
    sizes = {len(each.tokens) for each in made}
    assert sizes == {flow.rows_of(16, LENGTH, 2), 8}  # no more rows than there are
    seen = sum(len(each.tokens) for each in made if each.tokens.shape[1] == 16) / 16
    assert seen == pytest.approx(sum(len(each.tokens) for each in made if each.tokens.shape[1] == 4) / 8, rel=0.3)
    later = flow.batches([large, few], 2, 7, 299)
    assert all(np.array_equal(a, b) for a, b in zip(next(later), made[-1], strict=True))


def test_a_run_settles_on_usual_pictures(data, monkeypatch):
    """From one batch on; those before it are what they were, and it is a function of the seed and its number, too."""
    monkeypatch.setattr(flow, "OWN_TOKENS", 4)
    large = data._replace(tokens=np.repeat(data.tokens, 4, 1), positions=positions((32, 32)))
    marked = data._replace(tokens=np.where(np.arange(16)[:, None, None] < 8, data.tokens * 0, data.tokens * 0 + 1))
    settling = flow.Settling(200, [np.ones(16, bool), np.arange(16) < 8])
    plain, settled = (flow.batches([large, marked], 2, 7, 0, each) for each in (None, settling))
    for _ in range(200):
        assert all(np.array_equal(a, b) for a, b in zip(next(plain), next(settled), strict=True))
    made = [next(settled) for _ in range(600)]
    own = [each.tokens for each in made if each.tokens.shape[1] == 4]
    assert len(own) / len(made) == pytest.approx(0.7, abs=0.05)
    assert np.concatenate(own).mean() == pytest.approx(1 / 3, abs=0.04)  # the share of unusual ones
    later = flow.batches([large, marked], 2, 7, 799, settling)
    assert all(np.array_equal(a, b) for a, b in zip(next(later), made[-1], strict=True))


def test_what_is_usual():
    """A drawing of the evaluations is, wherever its canvas ends; a small subject or a part of one is not."""
    scene = sample_scene(np.random.default_rng(3), 0.0)
    made = compositions.Composition(scene, (96, 96), "")
    assert compositions.usual(made)
    (subject,) = scene.subjects
    for change in ({"span": 0.4}, {"x": 0.1}, {"bottom": 1.2}, {"bottom": 0.3}):
        changed = replace(scene, subjects=(replace(subject, **change),))
        assert not compositions.usual(replace(made, scene=changed)), change
    assert compositions.usual(replace(made, scene=replace(scene, subjects=())))
    assert compositions.usual(replace(made, scene=replace(scene, subjects=scene.subjects * 2)))
    kinds = latents.which_are_usual(400, 1)
    assert [len(each) for each in kinds] == [max(2, round(400 * share)) for *_, share in compositions.CANVASES]
    assert 0.6 < np.concatenate(kinds).mean() < 0.8  # 0.37 of two and none, 0.63 x 0.54 of others


def test_larger_pictures_are_asked_at_noisier_times():
    small, own, large = (np.asarray(flow.flow_times(jax.random.key(0), 256, n)) for n in (64, 144, 400))
    assert ((small > 0) & (small < own) & (own < large) & (large < 1)).all()
    odds = np.median(large / (1 - large)) / np.median(own / (1 - own))
    assert odds == pytest.approx(20 / 12, rel=0.01)  # of the sides


def test_every_row_sees_every_time(data):
    """Rows come in the order of the pictures: times in that order would show each picture at one time alone."""
    times = jax.vmap(lambda key: flow.mix(data, EMPTY, key).t)(jax.random.split(jax.random.key(0), 200))  # (200, 16)
    middles = np.median(times, 0)
    assert np.ptp(middles) < 0.3 * np.ptp(np.median(np.sort(times, 1), 0))
    assert (np.std(times, 0) > 0.15).all()


# Distillation ------------------------------------------------------------------------------------------------


ASK = jax.jit(lambda velocity, x: velocity(x, jnp.full(len(x), 0.6)))


def asked(model: TextToImage, guidance, data: Batch):
    """The velocity at one place of the flow."""
    x = np.random.default_rng(2).standard_normal((16, 4, 16)).astype(np.float32)
    velocity = flow.bind(model, jnp.asarray(data.t5_ids), jnp.asarray(data.clip_ids), jnp.asarray(data.positions))
    if guidance is not None:
        velocity = replace(velocity.conditions, guidance=jnp.full(16, guidance)).bind(velocity.model)
    return np.asarray(ASK(velocity, x)), x


def test_the_student_starts_as_the_teacher(teacher, data):
    student = distill.initial(teacher, 3)
    want, _ = asked(teacher, None, data)
    for guidance in (1.0, 4.0):
        np.testing.assert_array_equal(asked(student, guidance, data)[0], want)
    assert equal((student.t5, student.clip), (teacher.t5, teacher.clip))
    embedding = student.transformer.guidance_in
    assert np.abs(embedding.in_layer.kernel[...]).max() > 0  # so that there is something to learn from


def test_what_the_student_learns(teacher, weak, data):
    """The guided teacher, each of its parts from a forward of its own; g = 1 is the caption alone."""
    teachers = distill.Teachers(teacher, weak)
    captions = jnp.asarray(data.t5_ids), jnp.asarray(data.clip_ids)
    nothing = jnp.tile(EMPTY[0], (16, 1)), jnp.tile(EMPTY[1], (16, 1))
    others = captions[0][::-1], captions[1][::-1]
    empty, other = (
        asked(teacher, None, data._replace(t5_ids=np.asarray(t5), clip_ids=np.asarray(clip)))[0]
        for t5, clip in (nothing, others)
    )
    caption, x = asked(teacher, None, data)
    poor, _ = asked(weak, None, data)
    guidance = jnp.linspace(1, 5, 16)
    velocity = distill.guided_velocity(teachers, captions, nothing, others, guidance, data.positions)
    got = np.asarray(jax.jit(velocity)(jnp.asarray(x), jnp.full(16, 0.6)))
    pull = caption - empty + distill.CONTRAST * (caption - other) + distill.WEAK * (caption - poor)
    # Three times the rows are summed in another order.
    np.testing.assert_allclose(got, caption + (guidance[:, None, None] - 1) * pull, atol=5e-5)
    np.testing.assert_allclose(got[0], caption[0], atol=2e-5)
    early = np.asarray(jax.jit(velocity)(jnp.asarray(x), jnp.full(16, 0.9)))  # before the onset
    empties = distill.guided_velocity(teachers, captions, captions, others, guidance, data.positions)
    np.testing.assert_allclose(early, np.asarray(jax.jit(empties)(jnp.asarray(x), jnp.full(16, 0.9))), atol=5e-5)
    drawn = np.asarray(distill.draw_guidance(jax.random.key(1), 2000))
    assert drawn.min() == 1.0
    assert 4.9 < drawn.max() < 5.0
    assert 0.15 < (drawn == 1).mean() < 0.25


def test_a_caption_with_another_pattern(tokenizers):
    """Words change, and dots stay dots; every shift gives another caption."""
    tokens = RecipeTokenizers(tokenizers)
    texts = ["a red striped cat", "a red plain cat", "a red dotted cat", "a red cat"]
    for column in (0, 1):
        ids, words = tokens(texts)[column], tokens.words(PATTERNS)[column]
        for shift, want in ((1, ["dotted", "striped"]), (2, ["plain", "dotted"])):
            got = distill.reworded(jnp.asarray(ids), words, jnp.full((4, 1), shift))
            changed = [f"a red {word} cat" for word in want] + texts[2:]
            np.testing.assert_array_equal(got, tokens(changed)[column])
    with pytest.raises(ValueError, match="not one token each: plain, unheard"):
        tokens.words(["plain", "unheard"])


def test_distillation_learns_and_resumes(teacher, weak, data, tmp_path):
    """Steps reduce the loss; a run that is taken up at its end has nothing left to do."""
    options = {"steps": 200, "batch": 16, "seed": 0, "muon_rate": 0.001, "adam_rate": 2e-3, "ema": 0.8}
    teachers = distill.Teachers(teacher, weak)
    trained = distill.train(tmp_path, teachers, [data], data, EMPTY, WORDS, **options)
    first, *_, last = (float(line.split(",")[1]) for line in (tmp_path / "distill.csv").read_text().splitlines())
    assert last < 0.9 * first  # means over fifty steps each
    assert equal((trained.t5, trained.clip), (teacher.t5, teacher.clip))
    assert not np.allclose(asked(trained, 1.0, data)[0], asked(trained, 4.0, data)[0], atol=1e-3)
    assert equal(distill.train(tmp_path, teachers, [data], data, EMPTY, WORDS, **options), trained)


def test_the_gradient_of_a_batch_in_pieces():
    """Twelve rows go through in four pieces; the mean's gradient is the same."""
    rng = np.random.default_rng(4)
    rows = tuple(jnp.asarray(rng.standard_normal((12, 5)), jnp.float32) for _ in range(2))

    def loss(w, rows):
        error = jnp.mean((rows[0] @ w - rows[1]) ** 2)
        return error + jnp.sum(w**2), error

    w = jnp.asarray(rng.standard_normal((5, 5)), jnp.float32)
    got, want = jax.jit(lambda w: training.gradient(loss, w, rows))(w), jax.grad(loss, has_aux=True)(w, rows)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)  # summed in another order
    assert "while" in jax.jit(lambda w: training.gradient(loss, w, rows)).lower(w).as_text()


def test_a_state_resumes_exactly(tmp_path):
    """Parameters, momenta and counters of Muon and Adam: three steps, or two, a file and one more."""
    rng = np.random.default_rng(3)
    start = ({"blocks.kernel": jnp.asarray(rng.standard_normal((2, 6, 4)), jnp.float32), "bias": jnp.ones(5)},)
    grads = [jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), start) for _ in range(3)]
    rate = training.trapezoid(0.1, 3, warmup=2)
    tx = training.optimiser(start, rate, rate, lambda path, leaf: "kernel" in path)

    def steps(state, some):
        for grad in some:
            changes, opt = tx.update(grad, state[1], state[0])
            state = (jax.tree.map(jnp.add, state[0], changes), opt)
        return state

    begin = (start, tx.init(start))
    straight, half = steps(begin, grads), steps(begin, grads[:2])
    file = tmp_path / "run.state"
    training.save_state(file, half)
    loaded = training.load_state(file, begin)
    assert equal(loaded, half)
    assert equal(steps(loaded, grads[2:]), straight)
    assert not equal(straight[0], start)
    with pytest.raises(ValueError, match="another model"):
        training.load_state(file, (start, start, tx.init(start)))


# The judge ---------------------------------------------------------------------------------------------------

TINY = (8, 8, 16, 16)


@pytest.fixture(scope="module")
def tiny() -> Classifier:
    return Classifier(TINY, rngs=nnx.Rngs(0))


def test_what_the_judge_says(tiny, tmp_path):
    save(tiny, tmp_path / "judge.safetensors")
    judge = load(tmp_path / "judge.safetensors", like=tiny)
    single, double = triplets(5, 3), pairs(5, 4)
    verdict = judge(unit(single.pictures))
    assert {head: len(each) for head, each in verdict.named.items()} == dict.fromkeys(HEADS, 9)
    assert all(set(verdict.named[head]) <= set(names) for head, names in HEADS.items())
    assert "count" not in verdict.names  # no word of a prompt
    assert verdict.embedding.shape == (9, EMBEDDING)
    np.testing.assert_allclose(np.linalg.norm(verdict.embedding, axis=1), 1, atol=1e-3)
    assert set(accuracy(judge, single)) == set(HEADS)
    larger = judge.see(np.repeat(np.repeat(unit(single.pictures), 2, 1), 2, 2))
    assert {head: x.shape for head, x in larger.logits.items()} == {h: (9, len(n)) for h, n in HEADS.items()}
    assert present(judge, unit(double.pictures), wanted(double)).shape == (4,)
    with pytest.raises(ValueError, match="not a judge"):
        load(tmp_path / "judge.safetensors")


def test_both_subjects_in_any_order():
    """From a judge that sees what it is told to."""
    found = {"family": np.array([[1, 1, 1, 1], [2, 2, 2, 2]]), "colour": np.array([[3, 3, 3, 3], [4, 4, 4, 4]])}

    class Told:
        def both(self, pictures):
            return np.array([True, True, True, False]), found

    want = {"family": np.array([[1, 2, 1, 1], [2, 1, 2, 2]]), "colour": np.array([[3, 4, 4, 3], [4, 3, 3, 4]])}
    got = present(Told(), np.zeros((4, 8, 8, 3)), want)  # type: ignore[arg-type]
    assert list(got) == [True, True, False, False]  # as it is, swapped, colours swapped, only one subject


def test_the_losses_of_the_judge():
    pictures = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    np.testing.assert_array_equal(halves(pictures), np.concatenate([pictures[:, :, :3], pictures[:, :, 3:]]))
    logits = {"colour": jnp.asarray(np.random.default_rng(0).standard_normal((4, 6)), jnp.float32)}
    labels = np.array([2, -1, 0, -1])
    p = np.asarray(jax.nn.log_softmax(logits["colour"]))
    seen = type("Seen", (), {"logits": logits})()
    assert float(label_loss(seen, {"colour": labels})) == pytest.approx(-(p[0, 2] + p[2, 0]) / 2, abs=1e-5)
    apart, same = jnp.eye(6), jnp.concatenate([jnp.eye(6)[:2], jnp.eye(6)[:2], jnp.eye(6)[4:]])
    assert float(identity_loss(apart)) == pytest.approx(np.log(4), abs=1e-5)  # nothing is near
    assert float(identity_loss(same)) == pytest.approx(np.log1p(3 * np.exp(-10)), abs=1e-5)


def test_triplets_are_what_they_say():
    """The same labels in all three but for the background; the first two share what no caption says."""
    one = triplets(7, 4)
    for head in ("family", "colour", "pattern", "count"):
        thirds = np.split(one.labels[head], 3)
        assert np.array_equal(thirds[0], thirds[1])
        assert np.array_equal(thirds[0], thirds[2])
    two = pairs(7, 2)
    assert (two.labels["count"] == 1).all()
    assert "family_2" in two.labels


def test_the_judge_trains_and_resumes(tiny, tmp_path):
    options = {"count": 2, "drawn": 2, "two": 2, "seed": 0, "model": tiny}
    first = train_judge(tmp_path, steps=3, **options)
    assert not equal(first, tiny)
    assert equal(train_judge(tmp_path, steps=3, **options), first)
