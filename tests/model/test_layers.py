"""Attention against a loop over queries in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swift_jax.model import layers
from swift_jax.model.kv_cache import Past

B, T, K, G, H = 2, 3, 2, 3, 5
ATTEND = jax.jit(layers.attend, static_argnames='platform')


def reference(q, k, v, attn_mask, past):
  """Attention of each query alone, over the keys that it sees."""
  out = np.zeros(q.shape)
  past_k, past_v, length = past
  for b, t, n, g in np.ndindex(B, T, K, G):
    seen = attn_mask[b, t]
    slots = slice(int(length[b]))
    keys = np.concatenate([past_k[b, n, slots], k[b, n][seen]])
    values = np.concatenate([past_v[b, n, slots], v[b, n][seen]])
    scores = keys.astype(np.float64) @ q[b, t, n, g] / H**0.5
    weights = np.exp(scores - scores.max())
    out[b, t, n, g] = weights @ values / weights.sum()
  return out


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
@pytest.mark.parametrize('slots', [16, 384, 512, 768])
@pytest.mark.parametrize('fill', [0.0, 0.01, 0.25, 0.26, 0.5, 0.6, 1.0])
def test_what_is_filled_and_seen_is_weighed(slots, fill, platform, monkeypatch):
  """Rows of different length; dead slots hold NaN, as values large numbers."""
  monkeypatch.setattr(layers, '_BLOCK', 200)  # three or four blocks
  rng = np.random.default_rng(round(slots + 100 * fill))

  def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)

  q, k, v = normal(B, T, K, G, H), normal(B, K, T, H), normal(B, K, T, H)
  past_k, past_v = normal(B, K, slots, H), normal(B, K, slots, H)
  length = np.array([round(fill * slots), round(fill * slots) // 2], np.int32)
  for b in range(B):
    past_k[b, :, length[b] :], past_v[b, :, length[b] :] = np.nan, 1e30
  attn_mask = np.tril(np.ones((B, T, T), bool))
  attn_mask[1, 2, 0] = False  # a leaf's neighbour
  given = q, k, v, attn_mask, (past_k, past_v, length)
  *new, past = jax.tree.map(jnp.asarray, given)
  got = np.asarray(ATTEND(*new, Past(*past), platform=platform))
  np.testing.assert_allclose(got, reference(*given), rtol=2e-5, atol=2e-6)


def test_a_large_cache_is_read_in_part():
  assert layers._prefix_sizes(384, 'cpu') == [384]
  assert layers._prefix_sizes(512, 'cpu') == [128, 256, 512]
  assert layers._prefix_sizes(768, 'cpu') == [192, 384, 768]
  # A GPU asks the host at each branch.
  assert layers._prefix_sizes(768, 'gpu') == [768]
