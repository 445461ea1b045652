"""What the engine reports and refuses."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import pytest
import tiny_model
from tiny_model import CFG

from swift_jax import llama, sharding, skip_mask
from swift_jax.config import SearchConfig
from swift_jax.engine import Engine
from swift_jax.errors import InputError


def test_metrics_are_what_their_names_say():
  mask = skip_mask.uniform(CFG.num_hidden_layers, 0.5)
  engine = tiny_model.engine(mask, confidence_threshold=0.0, max_draft_length=4)
  (result,) = engine.generate([[5, 6]], tiny_model.decode(batch_size=1))
  m = result.metrics
  assert m.method == 'swift'
  assert m.new_tokens == len(result.tokens) == 40
  assert 0 < m.accepted < m.drafted
  # Every pass gives one token of the target, beside what was accepted.
  assert m.new_tokens == m.verify_passes + m.accepted + m.leaf_hits
  assert m.acceptance_rate == m.accepted / m.drafted
  assert m.mean_accepted_length == 40 / m.verify_passes
  assert m.skip_ratio == skip_mask.num_to_skip(CFG.num_hidden_layers, 0.5) / 6
  assert m.matchness is None  # a set that was given is not scored
  seconds = m.prefill_s + m.decode_s + m.search_s
  assert m.tokens_per_second == pytest.approx(40 / seconds)
  (result,) = engine.generate([[5, 6]], tiny_model.decode('plain'))
  m = result.metrics
  assert (m.verify_passes, m.mean_accepted_length) == (40, 1.0)
  assert (m.drafted, m.accepted, m.acceptance_rate) == (0, 0, None)
  assert (m.skip_ratio, m.search_s) == (None, 0.0)


def test_streamed_pieces_are_the_text():
  class Words:
    def decode(self, ids, **_):
      return ' '.join(f'w{i}' for i in ids)

  engine = tiny_model.engine(tokenizer=Words(), confidence_threshold=0.0)
  seen = {0: '', 1: ''}

  def on_text(row, piece):
    seen[row] += piece

  results = engine.generate([[5], [6, 7]], tiny_model.decode(), on_text)
  for row, result in enumerate(results):
    words = ''.join(f' w{token}' for token in result.tokens)
    assert seen[row] == result.text == words


def test_the_cache_grows_by_steps_and_never_shrinks():
  model, seen = tiny_model.engine()._model, []
  for slots in (1, 128, 129, 200, 100, 257, 385, 513, 2049):
    model.reserve(slots)
    assert model.capacity >= slots
    seen.append(model.capacity)
  assert seen == [128, 128, 192, 256, 256, 384, 512, 768, 3072]


def test_a_window_longer_than_the_context_is_named():
  search = SearchConfig(context_window=91)
  with pytest.raises(InputError, match='search.context_window=91: .*=90'):
    Engine(CFG, *tiny_model.weights(), search=search)


def test_a_batch_that_the_mesh_cannot_split_is_named():
  mesh = jax.sharding.AbstractMesh((2, 1), sharding.AXES)
  with pytest.raises(InputError, match='decode.batch_size=3: .* mesh.data=2'):
    sharding.check_batch(3, mesh)
  sharding.check_batch(4, mesh)
  engine = tiny_model.engine()
  engine._model.mesh = mesh
  with pytest.raises(InputError, match='decode.batch_size=3'):
    engine.generate([[1]], tiny_model.decode())


@pytest.mark.parametrize('dtype, wanted', [('float32', 1), ('bfloat16', 0)])
def test_float32_products_are_float32_on_every_backend(dtype, wanted):
  """GPUs and TPUs would round their factors to fewer bits by default."""
  cfg = dataclasses.replace(CFG, dtype=dtype)
  graphdef, params = llama.abstract_model(cfg)

  def logits(params, tokens, mask):
    model = nnx.merge(graphdef, params)
    return model.logits(model(tokens, mask)[0])

  tokens = jax.ShapeDtypeStruct((1, 3), jnp.int32)
  mask = skip_mask.none_skipped(CFG.num_hidden_layers)
  text = str(jax.make_jaxpr(logits)(params, tokens, mask))
  products = text.count('dot_general[')
  assert products == 6 * CFG.num_hidden_layers + 1
  assert text.count('Precision.HIGHEST, Precision.HIGHEST') == wanted * products
