"""Layers as a stack, as a TPU has them, against layers one by one, on this CPU."""

import dataclasses
import functools

from flax import nnx, traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from swift_jax.checkpoint import (
  export,
  fitting,
  forms,
  load,
  orbax_files,
  quantised,
)
from swift_jax.config.settings import DraftConfig, SearchConfig
from swift_jax.model import layers, llama, skip_mask
from swift_jax.model.skip_mask import KnownMask
from swift_jax.parallel import sharding
from swift_jax.runtime.engine import Engine
from swift_jax.search import matchness

CFG = dataclasses.replace(
  tiny_model.CFG, hidden_size=24, attention_bias=True, mlp_bias=True
)
LAYERS = CFG.num_hidden_layers
MASK = skip_mask.from_lists([1, 3], [2], LAYERS)
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3], [5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6]]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setattr(layers, '_BLOCK', 64)  # of a cache of 128 slots


@functools.cache
def one_by_one(cfg=CFG):
  """Biases that are not zero, too."""
  graphdef, params = tiny_model.weights(cfg)
  flat = traverse_util.flatten_dict(params)
  rng = np.random.default_rng(0)
  for path, leaf in flat.items():
    if path[-1] == 'bias':
      flat[path] = jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
  return graphdef, traverse_util.unflatten_dict(flat)


@functools.cache
def stacked(cfg=CFG):
  _, params = one_by_one(cfg)
  graphdef, _ = llama.abstract_model(cfg, 'tpu')
  return graphdef, forms.join(forms.split(params), cfg, 'tpu')


def engine(model, cfg=CFG):
  draft = DraftConfig(adaptive=False, max_draft_length=7, verify_widths=(8,))
  rest = SearchConfig(enabled=False)
  made = Engine(cfg, *model, draft=draft, search=rest)
  made.model.keeps_costs = False
  made.set_skip_mask(MASK)
  return made


def test_the_text_is_the_same():
  """Greedy and drawn, plain and SWIFT, with gates and without."""
  gated, full = engine(stacked()), engine(stacked())
  assert full.model.empty_cache(1, 128).is_stacked
  full.model.none_skipped = KnownMask.of(skip_mask.none_skipped(LAYERS))
  texts = []
  for made in (engine(one_by_one()), gated, full):
    for method in ('plain', 'swift'):
      for drawn in ({}, {'temperature': 0.7, 'seed': 3}):
        results = made.generate(PROMPTS, tiny_model.decode(method, **drawn))
        texts.append([result.tokens for result in results])
        if method == 'swift':
          assert sum(result.metrics.accepted for result in results)
  greedy, drawn = texts[0], texts[1]
  assert greedy != drawn
  assert texts == [greedy, drawn] * 6


def test_a_known_mask_skips_what_gates_skip():
  graphdef, params = stacked()
  tokens = jnp.asarray([[3, 1, 4, 1, 5]])
  found = []
  for model in (one_by_one(), stacked()):
    for mask in (MASK, KnownMask.of(MASK)):
      hidden, _ = nnx.merge(*model)(tokens, mask)
      found.append(np.asarray(hidden))
  for other in found[1:]:
    np.testing.assert_allclose(found[0], other, rtol=2e-5, atol=2e-5)


def test_scores_and_importances_are_the_same():
  rng = np.random.default_rng(1)
  tokens = rng.integers(0, CFG.vocab_size, (2, 128)).astype(np.int32)
  masks = skip_mask.from_bits(rng.random((3, 2 * (LAYERS - 2))) < 0.5)
  found = []
  for model in (one_by_one(), stacked()):
    target = engine(model).model
    cache = target.empty_cache(2, 128)
    _, updates = nnx.merge(*model)(
      jnp.asarray(tokens[:, :100]), skip_mask.none_skipped(LAYERS), cache=cache
    )
    cache = cache.write(updates).rollback(jnp.asarray([99, 70]))
    text = matchness.Text(
      cache, jnp.asarray(tokens), jnp.asarray(tokens), jnp.asarray([4, 9])
    )
    for is_vmapped in (True, False):
      scores = matchness.score(*model, text, masks, 11, is_vmapped)
      found.append(np.asarray(scores.log_probs))
    slopes = matchness.sensitivities(*model, text, jnp.float32(0.4), 11)
    found.append(np.asarray(slopes))
  assert np.abs(found[2]).min() > 1e-4
  for one, two in zip(found[:3], found[3:], strict=True):
    np.testing.assert_allclose(one, two, rtol=2e-4, atol=2e-4)


@pytest.fixture
def for_tpu(monkeypatch):
  monkeypatch.setattr(sharding, 'platform', lambda mesh: 'tpu')


@pytest.mark.parametrize('tied', [False, True])
def test_a_checkpoint_is_read_into_the_stack(tmp_path, monkeypatch, tied):
  cfg = dataclasses.replace(CFG, tie_word_embeddings=tied)
  graphdef, params = one_by_one(cfg)
  export.export_hf(tmp_path / 'hf', cfg, params, max_shard_bytes=9000)
  fingerprint = load.fingerprint(cfg, params)
  orbax_files.save_params(tmp_path / 'orbax', params)
  monkeypatch.setattr(sharding, 'platform', lambda mesh: 'tpu')
  wanted = stacked(cfg)
  for mesh in (None, sharding.make_mesh(1, 1)):
    found = load.load_params(tmp_path / 'hf', cfg, mesh)
    assert found[0] == wanted[0]
    same(found[1], wanted[1])
  same(orbax_files.restore_params(tmp_path / 'orbax', cfg)[1], wanted[1])
  assert load.fingerprint(cfg, found[1]) == fingerprint
  export.export_hf(tmp_path / 'again', cfg, found[1], max_shard_bytes=9000)
  for file in (tmp_path / 'hf').glob('model*'):
    again = tmp_path / 'again' / file.name
    assert again.read_bytes() == file.read_bytes()


def test_a_stack_that_was_saved_is_read_elsewhere(tmp_path):
  orbax_files.save_params(tmp_path / 'orbax', stacked()[1])
  same(orbax_files.restore_params(tmp_path / 'orbax', CFG)[1], one_by_one()[1])


def test_int8_is_the_same(for_tpu):
  copies = [
    jax.tree.map(lambda leaf: leaf, model()[1])
    for model in (one_by_one, stacked)
  ]
  fused = int8_one_by_one(copies[0])
  cfg, graphdef, stack = quantised.quantise(CFG, copies[1])
  same(stack, forms.join(forms.split(fused[1]), cfg, 'tpu'))
  found = []
  for model in ((graphdef, stack), fused):
    hidden, _ = nnx.merge(*model)(jnp.asarray([[1, 2, 3]]), MASK)
    found.append(np.asarray(hidden))
  np.testing.assert_allclose(*found, rtol=2e-5, atol=2e-5)


def int8_one_by_one(params):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, 'platform', lambda mesh: 'cpu')
    return quantised.quantise(CFG, params)[1:]


def same(one, two):
  one, two = (traverse_util.flatten_dict(tree) for tree in (one, two))
  assert one.keys() == two.keys()
  for path, leaf in one.items():
    np.testing.assert_array_equal(leaf, two[path], err_msg=str(path))


def test_random_weights_differ_by_layer():
  _, params = llama.init_model(CFG, 0, 'tpu')
  kernel = np.asarray(
    nnx.to_pure_dict(params)['layers']['mlp']['up_proj']['kernel']
  )
  assert kernel.shape == (LAYERS, CFG.intermediate_size, CFG.hidden_size)
  assert np.abs(kernel[0] - kernel[1]).max() > 0.01


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
def test_a_mesh_that_does_not_divide(tmp_path, monkeypatch, platform):
  """More devices than key/value heads, and a vocabulary that leaves a rest."""
  monkeypatch.setattr(sharding, 'platform', lambda mesh: platform)
  cfg = dataclasses.replace(
    CFG, vocab_size=61, num_key_value_heads=2, intermediate_size=36
  )
  whole = one_by_one(cfg) if platform == 'cpu' else stacked(cfg)
  export.export_hf(tmp_path / 'hf', cfg, whole[1])
  mesh = jax.sharding.AbstractMesh(
    (1, 6), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  held = fitting.fitted(cfg, mesh)
  assert (held.kv_heads, held.vocab_rows) == (6, 66)
  sharding.check_mesh(held, mesh)
  graphdef, params = load.load_params(tmp_path / 'hf', held)
  rows = params['embed_tokens']['embedding']
  assert rows.shape[0] == 66 and not rows[61:].any()
  assert load.fingerprint(held, params) == load.fingerprint(cfg, whole[1])
  export.export_hf(tmp_path / 'again', held, params)
  for file in (tmp_path / 'hf').glob('model*'):
    assert (tmp_path / 'again' / file.name).read_bytes() == file.read_bytes()
  found = []
  for model in (whole, (graphdef, params)):
    model = nnx.merge(*model)
    hidden, _ = model(jnp.asarray([[3, 1, 4]]), skip_mask.none_skipped(LAYERS))
    found.append(np.asarray(model.logits(hidden)))
  np.testing.assert_allclose(found[1][..., :61], found[0], rtol=1e-5, atol=1e-5)
  assert (found[1][..., 61:] == -np.inf).all()
  drawn = tiny_model.decode('swift', temperature=0.9, seed=2)
  texts = [
    engine(model, cfg).generate(PROMPTS, drawn)
    for model, cfg in ((whole, cfg), ((graphdef, params), held))
  ]
  one, two = ([result.tokens for result in text] for text in texts)
  assert one == two and max(map(max, one)) < 61
