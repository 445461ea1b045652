"""Weights as int8: the model of the rounded weights, and its text."""

import dataclasses

from flax import nnx, traverse_util
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from tiny_model import PROMPTS_OF_DIFFERENT_LENGTH as PROMPTS

from swift_jax.checkpoint import export, hub, quantised
from swift_jax.config.settings import DraftConfig
from swift_jax.errors import InputError
from swift_jax.model import llama, skip_mask
from swift_jax.runtime.engine import Engine

CFG = dataclasses.replace(tiny_model.CFG, attention_bias=True)
MASK = skip_mask.from_lists([1, 3], [2], CFG.num_hidden_layers)


def floats(cfg=CFG):
  graphdef, params = tiny_model.weights(cfg)
  # `quantise` replaces its argument's layers.
  return graphdef, {**params, 'layers': dict(params['layers'])}


def logits(graphdef, params, tokens):
  model = nnx.merge(graphdef, params)
  hidden, _ = model(jnp.asarray(tokens), skip_mask.none_skipped(5))
  return np.asarray(model.logits(hidden))


def test_it_is_the_model_of_the_rounded_weights():
  """The logits equal those of float weights, rounded by a loop over outputs."""
  graphdef, params = floats()
  flat = traverse_util.flatten_dict(params)
  for path, value in flat.items():
    if path[-1] == 'kernel' and path[0] == 'layers':
      kernel = np.array(value)
      columns = kernel.reshape(len(kernel), -1)  # a view
      for i in range(columns.shape[1]):
        scale = np.abs(columns[:, i]).max() / 127
        columns[:, i] = np.rint(columns[:, i] / scale) * scale
      flat[path] = kernel
  rounded = traverse_util.unflatten_dict(flat)
  cfg, graphdef_8, params_8 = quantised.quantise(CFG, floats()[1])
  assert cfg.weights == 'int8'
  tokens = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]]
  got = logits(graphdef_8, params_8, tokens)
  np.testing.assert_allclose(got, logits(graphdef, rounded, tokens), atol=2e-4)
  assert np.abs(got - logits(graphdef, params, tokens)).max() > 1e-3


def test_kernels_take_a_quarter():
  _, _, params = quantised.quantise(CFG, floats()[1])
  for path, leaf in traverse_util.flatten_dict(params['layers']).items():
    assert (leaf.dtype == jnp.int8) == (path[-1] == 'kernel')
    if path[-1] == 'kernel':
      assert np.abs(leaf).max() == 127
  abstract = llama.abstract_model(dataclasses.replace(CFG, weights='int8'))[1]
  wanted = traverse_util.flatten_dict(nnx.to_pure_dict(abstract))
  found = traverse_util.flatten_dict(params)
  assert {p: (x.shape, x.dtype) for p, x in found.items()} == {
    p: (x.shape, x.dtype) for p, x in wanted.items()
  }


def test_an_output_of_zeros_stays_zero():
  whole, scale = quantised.rounded(jnp.asarray([[0.0, 1.0], [0.0, -2.0]]))
  assert whole.tolist() == [[0, 64], [0, -127]]
  assert scale[0] == 1


def test_swift_writes_what_plain_decoding_writes():
  made = []
  draft = DraftConfig(adaptive=False, max_draft_length=7, verify_widths=(8,))
  for _ in range(2):
    graphdef, params = floats()
    cfg, graphdef, params = quantised.quantise(CFG, params)
    engine = Engine(cfg, graphdef, params, draft=draft)
    engine.set_skip_mask(MASK)
    made.append(engine)
  how = {'temperature': 0.8, 'seed': 1}
  plain = made[0].generate(PROMPTS, tiny_model.decode('plain', **how))
  swift = made[1].generate(PROMPTS, tiny_model.decode('swift', **how))
  assert [r.tokens for r in plain] == [r.tokens for r in swift]
  assert sum(r.metrics.accepted for r in swift)


def test_the_demo_as_int8(tmp_path):
  """It stays close: the same first tokens, but another fingerprint."""
  folder = str(hub.DEMO_MODEL)
  whole = Engine.from_pretrained(folder, 'float32')
  made = Engine.from_pretrained(folder, 'float32', weights='int8')
  assert made.cfg.weights == 'int8' and whole.cfg.weights == ''
  assert made.fingerprint != whole.fingerprint
  prompt = 'def read_lines(path):'
  how = tiny_model.decode('plain', batch_size=1, max_new_tokens=8)
  one, two = (e.generate(prompt, how)[0].text for e in (whole, made))
  assert one == two
  with pytest.raises(InputError, match="model.weights='int4': expected"):
    Engine.from_pretrained(folder, weights='int4')
  with pytest.raises(InputError, match="weights='int8' are not what"):
    export.export_hf(tmp_path / 'x', made.cfg, made.model.params)
  assert not (tmp_path / 'x').exists()
