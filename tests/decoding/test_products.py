"""Products and what is fused with them, as XLA compiles them, against float64.

On a CPU jaxlib 0.10.2 hands products and sums to a library, YNNPACK, and some of
what it fuses with a product comes out wrong: https://github.com/jax-ml/jax/issues/39103
(39257 and 40412 are crashes, of arrays with seven axes; ours have five at most).
With a product along three numbers, what is reduced over it may be wrong from place
2**15 on; no product of ours is so short. So that this is known and not thought, the
project's own functions run here at vocabularies and widths of real models. The
derivative of attention has the one fusion of a product and a sum that we make.

A sum of n float32 products is off by some sqrt(n) roundings of the sum of their
sizes (Higham and Mary, 2019); a tile that is wrong is off by the sum itself.
"""

import functools

from flax import nnx, traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sampling import by_sorting, on_device

from swift_jax.checkpoint import quantised
from swift_jax.config.settings import ModelConfig
from swift_jax.decoding import sampling
from swift_jax.model import layers, llama
from swift_jax.model.kv_cache import Past
from swift_jax.search import matchness

# The demo, Llama 2, CodeLlama, SmolLM, Yi, DeepSeek, Llama 3; and 32771, an odd
# size above 2**15, where the library's errors begin.
VOCABULARIES = (2048, 32000, 32016, 32771, 49152, 64000, 102400, 128256)
TIED = (2048, 32771, 49152, 128256)
QUICK = 32771  # by default; the nightly run has all
VERIFIED, STEP, BATCH, BATCH_VERIFIED = (1, 4), (1, 1), (8, 1), (8, 4)
ROWS, WIDTH = 32, 64
HALF_ULP = {'float32': 2.0**-24, 'bfloat16': 2.0**-9}


def nightly(*values):
  return pytest.param(*values, marks=pytest.mark.nightly)


EACH_VOCABULARY = pytest.mark.parametrize(
  'size',
  [size if size == QUICK else nightly(size) for size in VOCABULARIES],
)


def rounding(n: int) -> float:
  """Error bound of a sum of n float32 terms, over the sum of their sizes."""
  return 4 * n**0.5 * HALF_ULP['float32']


def normal(rng, *shape, scale=1.0, dtype='float32'):
  values = rng.standard_normal(shape, np.float32) * np.float32(scale)
  return values.astype(jnp.dtype(dtype))


def exactly(*arrays):
  return [np.asarray(a).astype(np.float64) for a in arrays]


def assert_within(got, wanted, bound):
  got = np.asarray(got, np.float64).reshape(wanted.shape)
  error = np.nan_to_num(np.abs(got - wanted), nan=np.inf)
  worst = np.unravel_index(np.argmax(error - bound), error.shape)
  assert (error <= bound).all(), (
    f'{(error > bound).sum()} of {error.size} are off, most at {worst}:'
    f' {got[worst]} and not {wanted[worst]}'
  )


def config(width=WIDTH, inner=8, **changes):
  heads = {'num_attention_heads': 1, 'num_key_value_heads': 1, 'head_dim': 2}
  sizes = {'hidden_size': width, 'intermediate_size': inner}
  return ModelConfig(
    vocab_size=8, num_hidden_layers=1, **sizes, **heads, **changes
  )


@functools.cache
def abstract(cfg):
  graphdef, params = llama.abstract_model(cfg)
  return graphdef, nnx.to_pure_dict(params)


# ---- the vocabulary


def with_head(kernel, tied=False):
  """(graphdef, parameters) of a model whose head is [D, V]; norms are ones."""
  cfg = config(dtype=str(kernel.dtype), tie_word_embeddings=tied)
  graphdef, params = abstract(cfg)  # a graphdef knows no vocabulary
  params = jax.tree.map(lambda p: jnp.ones(p.shape, p.dtype), params)
  if tied:
    embedding = jnp.asarray(np.ascontiguousarray(kernel.T))
    return graphdef, {**params, 'embed_tokens': {'embedding': embedding}}
  return graphdef, {**params, 'lm_head': {'kernel': jnp.asarray(kernel)}}


def in_blocks(hidden, block):
  """Rows [R, D] as blocks [B, W, D], one after the other."""
  return jnp.asarray(hidden.reshape(-1, *block, hidden.shape[-1]))


@functools.partial(jax.jit, static_argnums=0)
def head(graphdef, params, hidden):
  return nnx.merge(graphdef, params).logits(hidden)


@pytest.mark.parametrize('dtype', HALF_ULP)
@EACH_VOCABULARY
def test_logits(size, dtype):
  rng = np.random.default_rng(size)
  kernel = normal(rng, WIDTH, size, dtype=dtype)
  hidden = normal(rng, ROWS, WIDTH, dtype=dtype)
  exact = exactly(hidden, kernel)
  wanted = exact[0] @ exact[1]
  bound = rounding(WIDTH) * (np.abs(exact[0]) @ np.abs(exact[1]))
  for tied in (False, True):
    given = with_head(kernel, tied)
    for block in (VERIFIED, BATCH_VERIFIED):
      got = [head(*given, x) for x in in_blocks(hidden, block)]
      assert got[0].dtype == jnp.float32
      assert_within(np.stack(got), wanted, bound)


class Vocabulary:
  """A head whose likeliest token is known: each row of `hidden` is the column of
  one of `places`, which lie where vectors and tiles begin and end."""

  def __init__(self, size, tied=False):
    rng = np.random.default_rng(size)
    at = [0, 1, 15, 16, 17, 31, 32, 2047, size // 2, 32767, 32768]
    at = [place for place in at if place < size]
    at += [size - n for n in (1, 2, 3, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65)]
    self.size = size
    self.places = np.resize(at, ROWS)
    # Logits have a deviation of 2, but for the row's own place: some 16.
    kernel = normal(rng, WIDTH, size, scale=2 * WIDTH**-0.5)
    self.hidden = np.ascontiguousarray(kernel.T[self.places])
    self.model = with_head(kernel, tied)
    exact, self.kernel = exactly(self.hidden, kernel)
    square = (exact**2).mean(1, keepdims=True)
    self.scale = (square + config().rms_norm_eps) ** -0.5
    self.normed = exact * self.scale
    self.logits = self.normed @ self.kernel
    self.bound = rounding(WIDTH) * (np.abs(self.normed) @ np.abs(self.kernel))
    assert (self.logits.argmax(1) == self.places).all()

  def blocks(self, block):
    return in_blocks(self.hidden, block)


def context(block):
  batch, width = block
  return sampling.Context(
    text=jnp.zeros((batch, 16), jnp.int32),
    length=jnp.full(batch, 5, jnp.int32),
    path=jnp.zeros((batch, width, width), jnp.int32),
    in_path=jnp.zeros((batch, width, width), bool),
    prompt_length=jnp.full(batch, 3, jnp.int32),
    keys=sampling.row_keys(jnp.uint32(0), jnp.arange(batch, dtype=jnp.uint32)),
    depth=jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), block),
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def after_head(what, graphdef, params, hidden, *settings):
  """The head and the work that follows it in a step, in one program."""
  model = nnx.merge(graphdef, params)
  return what(model.logits(model.norm(hidden)), *settings)


def greedy(logits, context, settings):
  return sampling.choose(logits, context, settings, samples=False)


def drawn(logits, context, settings):
  return sampling.choose(logits, context, settings, samples=True)


def scores(logits, context, settings):
  return sampling.scores(logits, context, settings, samples=True)


@EACH_VOCABULARY
def test_the_likeliest_token(size):
  given = Vocabulary(size, tied=size in TIED)
  how, found = (context(VERIFIED), on_device()), []
  for x in given.blocks(VERIFIED):
    found.append(after_head(greedy, *given.model, x, *how))
  for tokens in zip(*found, strict=True):
    assert np.concatenate(tokens).ravel().tolist() == given.places.tolist()


def exact_scores(given, settings, block):
  """Scores of the first block's tokens: log-probabilities in float64 plus noise
  from a program of its own; and the error that float32 may make."""
  rows = slice(block[0] * block[1])
  made = [by_sorting(row, settings) for row in given.logits[rows]]
  assert min(near for _, near in made) > 1e-5  # else rounding decides
  noise = sampling.gumbel(context(block), given.size)
  with np.errstate(divide='ignore'):
    exact = np.log([probs for probs, _ in made])
  exact += np.reshape(noise, exact.shape)
  bound = given.bound[rows].max(1, keepdims=True) / settings['temperature']
  kept = np.where(np.isfinite(exact), np.abs(exact), 0)
  return exact, 2 * bound + rounding(given.size) / 4 + 1e-6 * kept


@pytest.mark.parametrize(
  'size, block', [(QUICK, VERIFIED), nightly(128256, VERIFIED)]
)
def test_scores_that_draws_go_by(size, block):
  """Softmax, cut-offs and logarithms, at every token."""
  given = Vocabulary(size)
  cut = {'top_k': 50, 'top_p': 0.9, 'min_p': 1e-4}
  for settings in ({'temperature': 0.7}, {'temperature': 1.5, **cut}):
    exact, bound = exact_scores(given, settings, block)
    how = context(block), on_device(**settings)
    got = after_head(scores, *given.model, given.blocks(block)[0], *how)
    got, kept = np.reshape(got, exact.shape), np.isfinite(exact)
    assert (np.isfinite(got) == kept).all()
    got, exact = (np.where(kept, part, 0) for part in (got, exact))
    assert_within(got, exact, bound)


@pytest.mark.parametrize('size, block', [(32016, BATCH), nightly(102400, STEP)])
def test_draws(size, block):
  """No token has a higher score than the one that is drawn."""
  given, settings = Vocabulary(size), {'temperature': 2.0}
  exact, bound = exact_scores(given, settings, block)
  how = context(block), on_device(**settings)
  tokens = after_head(drawn, *given.model, given.blocks(block)[0], *how)
  likeliest, written = (np.reshape(part, (-1, 1)) for part in tokens)
  assert likeliest[:, 0].tolist() == given.places[: len(exact)].tolist()
  assert (written != likeliest).any()
  missed = exact.max(1, keepdims=True) - np.take_along_axis(exact, written, 1)
  assert (missed <= 2 * bound.max(1, keepdims=True)).all()


def likelihood(logits, targets):
  chosen, total = matchness._target_log_probs(logits, targets)
  return chosen, jnp.exp(logits.max(-1) - total)


@functools.partial(jax.jit, static_argnums=0)
def slopes(graphdef, params, hidden, targets):
  model = nnx.merge(graphdef, params)

  def gain(hidden):
    return likelihood(model.logits(hidden), targets)[0].sum()

  return jax.grad(gain)(hidden)


@pytest.mark.parametrize('size', [QUICK, nightly(128256)])
def test_likelihood_and_its_derivative(size):
  """Sums and maxima after the head, and a product along the vocabulary."""
  given = Vocabulary(size, tied=True)
  targets = np.roll(given.places, 1)
  total = np.log(np.exp(given.logits).sum(1, keepdims=True))
  exact = given.logits - total
  of_target = np.take_along_axis(exact, targets[:, None], axis=1)
  bound = 2 * given.bound.max(1, keepdims=True) + rounding(size) / 4
  (x,) = given.blocks((1, ROWS))
  got = after_head(likelihood, *given.model, x, jnp.asarray(targets)[None])
  assert_within(got[0], of_target, bound)
  confidence = np.exp(exact.max(1, keepdims=True))
  assert_within(got[1], confidence, confidence * bound)
  weights = -np.exp(exact)
  weights[np.arange(ROWS), targets] += 1
  normed = in_blocks(given.normed.astype(np.float32), (1, ROWS))
  got = slopes(*given.model, normed[0], jnp.asarray(targets)[None])
  size_of_terms = np.abs(weights) @ np.abs(given.kernel.T)
  bound = (bound + rounding(size)) * size_of_terms
  assert_within(got, weights @ given.kernel.T, bound)


# ---- a layer


@functools.partial(jax.jit, static_argnums=0)
def mlp(graphdef, params, x):
  layer = nnx.merge(graphdef, params).layers[0]
  return layer.mlp(layer.post_attention_layernorm(x))


def with_mlp(width, inner, kind):
  """(graphdef, parameters, the projections in float64 [D, 2, F] and [F, D])."""
  rng = np.random.default_rng(width)
  cfg = config(width, inner, dtype='float32' if kind == 'int8' else kind)
  graphdef, params = abstract(cfg)
  flat = traverse_util.flatten_dict(params)
  for path, p in flat.items():
    value = normal(rng, *p.shape, scale=p.shape[0] ** -0.5, dtype=p.dtype)
    flat[path] = jnp.asarray(value if path[-1] == 'kernel' else 1 + value)
  params = traverse_util.unflatten_dict(flat)
  if kind == 'int8':
    cfg, graphdef, params = quantised.quantise(cfg, params)
  given = params['layers'][0]['mlp']
  exact = []
  for name in ('gate_up_proj', 'down_proj'):
    kernel, scale = exactly(given[name]['kernel'], given[name].get('scale', 1))
    exact.append(kernel * scale)
  return graphdef, params, *exact


# Widths of SmolLM 135M, and one that leaves odd rests.
@pytest.mark.parametrize(
  'width, inner, kind',
  [
    (576, 1536, 'float32'),
    (576, 1536, 'bfloat16'),
    (576, 1536, 'int8'),
    (211, 787, 'float32'),
  ],
)
def test_norm_and_mlp(width, inner, kind):
  graphdef, params, gate_up, down = with_mlp(width, inner, kind)
  ulp = HALF_ULP.get(kind, HALF_ULP['float32'])
  x = normal(
    np.random.default_rng(0), ROWS, width, dtype=params['norm']['scale'].dtype
  )
  scale = params['layers'][0]['post_attention_layernorm']['scale']
  exact, scale = exactly(x, scale)
  square = (exact**2).mean(1, keepdims=True) + config().rms_norm_eps
  normed = scale * exact * square**-0.5

  def product(x, error, kernel):
    """The product, and its error bound if each x has an error up to `error`."""
    y, sizes = x @ kernel, np.abs(kernel)
    error = 6 * np.sqrt(error**2 @ sizes**2)
    error += rounding(len(kernel)) * (np.abs(x) @ sizes)
    return y, error + 2 * ulp * np.abs(y)

  gate, up = gate_up[:, 0], gate_up[:, 1]
  error = 4 * ulp * np.abs(normed)
  gate, off_gate = product(normed, error, gate)
  up, off_up = product(normed, error, up)
  silu = gate / (1 + np.exp(-gate))
  inside = silu * up
  error = 1.1 * off_gate * np.abs(up) + np.abs(silu) * off_up
  wanted, bound = product(inside, error + 4 * ulp * np.abs(inside), down)
  for block in (VERIFIED, BATCH_VERIFIED):
    got = [np.asarray(mlp(graphdef, params, y)) for y in in_blocks(x, block)]
    assert_within(got, wanted, bound)


@jax.jit
def attend(q, k, v, attn_mask, past):
  return layers.attend(q, k, v, attn_mask, past and Past(*past), 'cpu')


@jax.jit
def attention_slopes(q, k, v, attn_mask, past, weights):
  """As training and the search's derivative take them."""

  def gain(q, k, v):
    out = layers.attend(q, k, v, attn_mask, past and Past(*past), 'cpu')
    return (out * weights).sum()

  return jax.grad(gain, argnums=(0, 1, 2))(q, k, v)


def attention(tokens, heads, group, h, slots, filled):
  """Arguments of `layers.attend`; and the same in float64: queries
  [B, K, R, H], keys and values [B, K, S + T, H], their weights [B, K, R, S + T]."""
  rng = np.random.default_rng(slots + tokens)
  q = normal(rng, 2, tokens, heads, group, h)
  k, v = (normal(rng, 2, heads, tokens, h) for _ in 'kv')
  past = [normal(rng, 2, heads, slots, h) for _ in 'kv']
  length = np.array([filled, filled // 3], np.int32)
  mask = np.tril(np.ones((2, tokens, tokens), bool))
  rows, keys, values = exactly(
    q.swapaxes(1, 2).reshape(2, heads, -1, h),
    np.concatenate([past[0], k], axis=2),
    np.concatenate([past[1], v], axis=2),
  )
  seen = np.arange(slots) < length[:, None]
  seen = np.broadcast_to(seen[:, None], (2, tokens, slots))
  seen = np.repeat(np.concatenate([seen, mask], axis=2), group, axis=1)
  scores = rows @ keys.swapaxes(2, 3) * h**-0.5
  scores = np.where(seen[:, None], scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  given = q, k, v, mask, (*past, length) if slots else None
  return jax.tree.map(jnp.asarray, given), (rows, keys, values, weights)


def by_query(x, group):
  """[B, K, T G, H] as [B, T, K, G, H]."""
  batch, heads, rows, h = x.shape
  return x.reshape(batch, heads, rows // group, group, h).swapaxes(1, 2)


# The demo, SmolLM 135M and Llama 3.2 1B; of a cache of 512 and more a part is read.
SHAPES = [
  (8, 2, 2, 64, 384, 301),
  nightly(4, 3, 3, 64, 768, 500),
  nightly(32, 8, 4, 64, 512, 77),
]


@pytest.mark.parametrize('tokens, heads, group, h, slots, filled', SHAPES)
def test_attention(tokens, heads, group, h, slots, filled):
  given, exact = attention(tokens, heads, group, h, slots, filled)
  rows, keys, values, weights = exact
  off = rounding(h) * h**-0.5 * (np.abs(rows) @ np.abs(keys).swapaxes(2, 3))
  off = 2 * off.max(-1, keepdims=True) + 2 * rounding(slots + tokens)
  bound = off * (weights @ np.abs(values))
  wanted = by_query(weights @ values, group)
  assert_within(attend(*given), wanted, by_query(bound, group))


# A batch that is trained on, and the window of the search, on a cache.
@pytest.mark.parametrize(
  'tokens, heads, group, h, slots, filled',
  [nightly(256, 2, 2, 64, 0, 0), (50, 2, 2, 64, 384, 301)],
)
def test_derivative_of_attention(tokens, heads, group, h, slots, filled):
  given, exact = attention(tokens, heads, group, h, slots, filled)
  rows, keys, values, weights = exact
  rng = np.random.default_rng(0)
  outer = normal(rng, *given[0].shape)
  into = exactly(outer.swapaxes(1, 2).reshape(rows.shape))[0]
  into_weights = into @ values.swapaxes(2, 3)
  mean = (into_weights * weights).sum(-1, keepdims=True)
  into_scores = weights * (into_weights - mean) * h**-0.5
  wanted = (
    by_query(into_scores @ keys, group),
    (into_scores.swapaxes(2, 3) @ rows)[:, :, slots:],
    (weights.swapaxes(2, 3) @ into)[:, :, slots:],
  )
  got = attention_slopes(*given, jnp.asarray(outer))
  for one, two in zip(got, wanted, strict=True):
    # Some 1e-6 of the sizes; a tile that is wrong is off by a tenth and more.
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=2e-5)
