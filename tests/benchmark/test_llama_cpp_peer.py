"""llama.cpp beside us: the tensors it is given, and its text where it is there."""

import dataclasses
import importlib.util

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from swift_jax.benchmark import llama_cpp_peer
from swift_jax.checkpoint import export, load
from swift_jax.config.rope import RopeConfig
from swift_jax.model import llama, rope
from swift_jax.runtime.engine import Engine

# transformers wants a width that the heads divide.
CFG = dataclasses.replace(tiny_model.CFG, num_hidden_layers=3, hidden_size=30)
FULL = dataclasses.replace(CFG, attention_bias=True, mlp_bias=True)
LLAMA3 = RopeConfig(
  'llama3',
  rope_theta=500.0,
  factor=4.0,
  low_freq_factor=1.0,
  high_freq_factor=3.0,
  original_max_position_embeddings=16,
)
YARN = RopeConfig('yarn', factor=4.0, original_max_position_embeddings=16)
VARIANTS = {
  'default': CFG,
  'tied, linear': dataclasses.replace(
    CFG, tie_word_embeddings=True, rope=RopeConfig('linear', factor=3.0)
  ),
  'biases, llama3': dataclasses.replace(FULL, rope=LLAMA3),
  'yarn': dataclasses.replace(CFG, rope=YARN),
}


def params_of(cfg, seed=0):
  """Weights that matter, norms and biases too."""
  graphdef, params = llama.init_model(cfg, seed)
  leaves, tree = jax.tree.flatten(nnx.to_pure_dict(params))
  rng = np.random.default_rng(seed)
  leaves = [
    leaf * 25 if leaf.ndim > 1 else leaf + rng.uniform(0.1, 0.6, leaf.shape)
    for leaf in leaves
  ]
  leaves = [jnp.asarray(leaf, jnp.float32) for leaf in leaves]
  return graphdef, jax.tree.unflatten(tree, leaves)


def test_rows_go_where_llama_cpp_turns_them():
  rng = np.random.default_rng(1)
  width, heads, size = CFG.hidden_size, CFG.num_key_value_heads, CFG.head_dim
  kernel = rng.normal(size=(heads * size, width)).astype(np.float16)
  x = rng.normal(size=(width,)).astype(np.float32)
  cos, sin = rope.rope_tables(CFG, jnp.array([[17]]))
  ours = (kernel.astype(np.float32) @ x).reshape(1, 1, heads, size)
  ours = rope.apply_rope(jnp.asarray(ours), cos, sin)[0, 0]

  name = 'model.layers.1.self_attn.k_proj.weight'
  theirs = llama_cpp_peer.gguf_tensor(name, kernel, CFG)
  assert theirs.dtype == np.float32 and theirs.flags.c_contiguous
  pairs = (theirs @ x).reshape(heads, size // 2, 2)
  turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.array(cos + 1j * sin)[0, 0]
  found = np.concatenate([turned.real, turned.imag], axis=-1)
  np.testing.assert_allclose(found, ours, atol=1e-5)


def test_other_tensors_stay_as_they_are():
  tensor = np.arange(12.0).reshape(4, 3)
  for name in ('self_attn.v_proj.weight', 'mlp.up_proj.weight'):
    found = llama_cpp_peer.gguf_tensor(f'model.layers.0.{name}', tensor, CFG)
    np.testing.assert_array_equal(found, tensor)


def test_a_bias_goes_with_its_rows():
  kernel = np.random.default_rng(2).normal(size=(CFG.head_dim * 3, 1))
  name = 'model.layers.0.self_attn.q_proj.'
  rows = llama_cpp_peer.gguf_tensor(f'{name}weight', kernel, CFG)
  bias = llama_cpp_peer.gguf_tensor(f'{name}bias', kernel[:, 0], CFG)
  np.testing.assert_array_equal(rows[:, 0], bias)


@pytest.mark.parametrize('cfg', VARIANTS.values(), ids=VARIANTS)
def test_every_tensor_is_there(cfg, tmp_path):
  export.export_hf(tmp_path / 'model', cfg, params_of(cfg)[1])
  found = dict(llama_cpp_peer.tensors(tmp_path / 'model', cfg))
  size, width = cfg.head_dim, cfg.hidden_size
  shapes = {name: tensor.shape for name, tensor in found.items()}
  assert shapes['token_embd.weight'] == (cfg.vocab_size, width)
  assert shapes['blk.2.attn_q.weight'] == (6 * size, width)
  assert shapes['blk.1.ffn_down.weight'] == (width, cfg.intermediate_size)
  assert ('output.weight' in shapes) != cfg.tie_word_embeddings
  assert ('blk.0.attn_output.bias' in shapes) == cfg.attention_bias
  assert all(tensor.dtype == np.float32 for tensor in found.values())
  plain = cfg.rope.rope_theta ** -(np.arange(0, size, 2) / size)
  wanted, _ = rope.rope_frequencies(cfg.rope, size)
  divided = plain / found['rope_freqs.weight']
  np.testing.assert_allclose(divided, wanted, rtol=1e-6)


def test_names_are_those_of_gguf():
  gguf = pytest.importorskip('gguf')
  known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
  names = load.expected_weights(FULL, None)
  assert len(names) > 30
  for name in names:
    wanted = known.get_name(name, try_suffixes=('.weight', '.bias'))
    assert llama_cpp_peer.gguf_name(name) == wanted


def test_what_is_lacking_is_said(monkeypatch):
  relu = dataclasses.replace(CFG, hidden_act='relu')
  assert "hidden_act='relu'" in llama_cpp_peer.lacking(relu)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert llama_cpp_peer.lacking(CFG) == 'gguf is not there'


@pytest.mark.parametrize('cfg', VARIANTS.values(), ids=VARIANTS)
def test_it_writes_what_we_write(cfg, tmp_path):
  if lacking := llama_cpp_peer.lacking(cfg):
    pytest.skip(lacking)
  graphdef, params = params_of(cfg)
  export.export_hf(tmp_path / 'model', cfg, params)
  engine = Engine(cfg, graphdef, params, None)
  call = tiny_model.decode('plain', ignore_eos=True, max_new_tokens=40)
  prompts = [[5, 6, 7], [8, 90, 3, 4, 1, 77]]
  write = llama_cpp_peer.writer(tmp_path / 'model', cfg, 46, 40, 2)
  for result in engine.generate(prompts, call):
    assert len(set(result.tokens)) > 6
    assert write(result.prompt) == result.tokens
