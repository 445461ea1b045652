"""Scoring candidate masks on the text that the model has just written."""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from swift_jax.model.kv_cache import KVCache
from swift_jax.model.llama import GraphDef, Llama, Params
from swift_jax.model.skip_mask import SkipMask
from swift_jax.typing import Array, Bool, Float, Int

_FLOOR = -5.0  # nats: any smaller log-probability is as bad a miss
# Over all rows: of so many logits are held at once, and derivatives taken.
_POSITIONS = 256


class Text(NamedTuple):
  """The text of a batch, as scoring reads it.

  Attributes:
    cache: the target's keys and values of all committed tokens but the newest;
      it is only read.
    tokens: committed text, int32[B, S]; dead after the cache's length + 1.
    target: the target's argmax at the place of each token, int32[B, S]. Masks
      are scored on it: a sampled token is not what a draft has to predict.
    prompt_length: tokens of the prompt, which the target did not write,
      int32[B].
  """

  cache: KVCache
  tokens: Int[Array, 'b s']
  target: Int[Array, 'b s']
  prompt_length: Int[Array, ' b']


class Scores(NamedTuple):
  """The candidates' scores at each position.

  Attributes:
    hits: whether a candidate's argmax is the target's, bool[C, B, T].
    log_probs: a candidate's log-probability of the target's argmax, in nats,
      float32[C, B, T].
    confidence: probability of the candidate's own argmax, float32[C, B, T].
    compared: positions that count, bool[B, T]; all others lie in the prompt or
      past the text.
  """

  hits: Bool[Array, 'c b t']
  log_probs: Float[Array, 'c b t']
  confidence: Float[Array, 'c b t']
  compared: Bool[Array, 'b t']

  @property
  def positions(self) -> int:
    """How many positions count."""
    return int(self.compared.sum())

  def num_hits(self) -> Int[np.ndarray, ' c']:
    """The number of positions that each mask hit."""
    return np.where(self.compared, self.hits, False).sum((1, 2))

  def closeness(self) -> Float[np.ndarray, 'c p']:
    """Each mask's log-probabilities of the target's argmax that count.

    In nats, at least `_FLOOR`, also where a draft overflowed. It is finer than
    hits: a near miss counts more than a far miss, and a sure hit more than an
    unsure hit.
    """
    return np.fmax(self.log_probs[:, self.compared], np.float32(_FLOOR))

  def accepted_lengths(
    self, threshold: float, max_length: int
  ) -> Float[np.ndarray, ' c']:
    """Tokens a round that each mask would have brought on this text.

    It walks through the text in rounds, as decoding would: draft until the
    confidence is below `threshold` or `max_length` is reached, keep the tokens
    that hit, and add the target's own token. The text is the target's, so that
    after a hit the scored draft is what decoding would have drafted. Leaves are
    left out. The window cuts the last round short, so that the figure is a
    little low.
    """
    hits = self.hits & self.compared
    sure = self.confidence >= threshold
    count, _, length = hits.shape
    # From the last position back: the run of hits that begins at a position,
    # the tokens that a draft from it has, and the rounds from it to the end.
    run = np.zeros((*hits.shape[:2], length + 1), int)
    drafted, rounds = run.copy(), run.copy()
    rows = np.arange(count)[:, None], np.arange(hits.shape[1])
    for i in reversed(range(length)):
      run[..., i] = np.where(hits[..., i], 1 + run[..., i + 1], 0)
      longer = np.where(sure[..., i], 1 + drafted[..., i + 1], 1)
      drafted[..., i] = longer
      kept = np.minimum(run[..., i], np.minimum(longer, max_length))
      after = np.minimum(i + kept + 1, length)
      rounds[..., i] = self.compared[:, i] * (1 + rounds[(*rows, after)])
    # Positions that count are contiguous; a short text ends before the window.
    first = np.argmax(self.compared, axis=1)
    walked = rounds[(*rows, first)].sum(1)
    return self.positions / np.maximum(walked, 1)


@functools.partial(jax.jit, static_argnames='written')
def as_of(text: Text, written: int) -> Text:
  """The text cut after the first `written` generated tokens of each row."""
  length = jnp.minimum(text.cache.length, text.prompt_length + written - 1)
  return text._replace(cache=text.cache.rollback(length))


def _window(text: Text, window: int) -> tuple[Array, Array, Array, KVCache]:
  """The last `window` positions of each row.

  Returns:
    Inputs, targets and which positions count, [B, window] each; and the cache
    of the tokens before them.
  """
  first = jnp.maximum(text.cache.length - window, 0)  # [B], of first inputs
  offsets = first[:, None] + jnp.arange(window)  # [B, window]

  def read(row: Array, at: Array) -> Array:
    return jnp.take_along_axis(row, at, axis=1, mode='clip')

  target_at = offsets + 1
  compared = (target_at >= text.prompt_length[:, None]) & (
    target_at <= text.cache.length[:, None]
  )
  prefix = text.cache.rollback(first)
  inputs, targets = read(text.tokens, offsets), read(text.target, target_at)
  return inputs, targets, compared, prefix


def _target_log_probs(logits: Array, targets: Array) -> tuple[Array, Array]:
  """log p(target) and the log-normaliser, [B, T], of logits [B, T, V]."""
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  total = jax.nn.logsumexp(logits, axis=-1)
  return chosen - total, total


def positions_at_once(batch: int, window: int) -> int:
  """Positions of each row whose logits are held at once."""
  return min(window, max(1, _POSITIONS // batch))


def _in_pieces(
  judge: Callable[[Array, Array], Any], hidden: Array, targets: Array
) -> Any:
  """`judge` of hidden states [B, T, D] and targets [B, T], piece by piece.

  Logits of all positions at once would take much memory.

  Args:
    judge: gives arrays [B, t] for t positions a row.
  """
  batch, window = targets.shape
  size = positions_at_once(batch, window)
  count = -(-window // size)
  if count == 1:
    return judge(hidden, targets)

  def split(x: Array) -> Array:  # [B, T, ...] -> [count, B, size, ...]
    pad = [(0, 0), (0, count * size - window), *[(0, 0)] * (x.ndim - 2)]
    x = jnp.pad(x, pad).reshape(batch, count, size, *x.shape[2:])
    return x.swapaxes(0, 1)

  pieces = split(hidden), split(targets)
  # For derivatives: else the logits of all pieces would be kept.
  judged = jax.lax.map(jax.checkpoint(lambda piece: judge(*piece)), pieces)
  return jax.tree.map(
    lambda x: x.swapaxes(0, 1).reshape(batch, -1)[:, :window], judged
  )


@functools.partial(
  jax.jit, static_argnames=('graphdef', 'window', 'is_vmapped')
)
def score(
  graphdef: GraphDef,
  params: Params,
  text: Text,
  candidate_masks: SkipMask,
  window: int,
  is_vmapped: bool = True,
) -> Scores:
  """Scores C masks on the last `window` generated tokens of each row.

  The gated model makes a teacher-forced pass over the window, on top of the
  target's own keys and values of the tokens before it (SWIFT, section 4.1). The
  parameters and the cache are not batched over the candidates, and no candidate
  returns a cache.

  Args:
    candidate_masks: masks with a leading axis C.
    window: positions a row, T.
    is_vmapped: whether one pass scores all masks. Then every sublayer runs, and
      the output of a skipped sublayer is thrown away; the weights are read
      once. Else each mask has a pass of its own behind gates, which computes
      less.
  """
  model = nnx.merge(graphdef, params)
  inputs, targets, compared, prefix = _window(text, window)

  def run(skip_mask: SkipMask) -> Array:
    return model(inputs, skip_mask, cache=prefix)[0]

  def judge(hidden: Array, targets: Array) -> tuple[Array, Array, Array]:
    logits = model.logits(hidden)
    log_probs, total = _target_log_probs(logits, targets)
    confidence = jnp.exp(logits.max(-1) - total)
    return jnp.argmax(logits, axis=-1) == targets, log_probs, confidence

  with jax.named_scope('score'):
    if is_vmapped:
      # As float shares: a branch that depends on the candidate would copy its
      # operands, the weights, for each candidate.
      shares = jax.tree.map(lambda m: m.astype(jnp.float32), candidate_masks)
      hidden = jax.vmap(run)(shares)
      one = functools.partial(_in_pieces, judge, targets=targets)
      return Scores(*jax.lax.map(one, hidden), compared)

    def alone(mask: SkipMask) -> tuple[Array, Array, Array]:
      return _in_pieces(judge, run(mask), targets)

    return Scores(*jax.lax.map(alone, candidate_masks), compared)


@functools.partial(jax.jit, static_argnames=('graphdef', 'window'))
def sensitivities(
  graphdef: GraphDef,
  params: Params,
  text: Text,
  skip_ratio: Float[Array, ''],
  window: int,
) -> Float[Array, ' d']:
  """The importance of each free sublayer, from one forward and backward pass.

  It is the derivative of the mean log-probability of the target's argmax on the
  window with respect to the share of each sublayer that is kept. It is taken at
  a model in which every free sublayer is kept by 1 - skip_ratio. So it is
  leave-one-out to first order, around a model as incomplete as a draft and not
  around the full model. Of many rows the window is shortened.

  Returns:
    Nats a position, in the order of `SkipMask.bits`; a high value means: keep.
  """
  model: Llama = nnx.merge(graphdef, params)
  # Its memory grows with the positions, its use hardly.
  window = positions_at_once(len(text.tokens), window)
  inputs, targets, compared, prefix = _window(text, window)
  layers = model.cfg.num_hidden_layers
  free = jnp.zeros(layers).at[1:-1].set(1.0)

  def judge(hidden: Array, targets: Array) -> Array:
    return _target_log_probs(model.logits(hidden), targets)[0]

  def gain(kept: SkipMask) -> Array:
    skipped = jax.tree.map(lambda row: free * (1 - row), kept)
    hidden, _ = model(inputs, skipped, cache=prefix)
    log_probs = _in_pieces(judge, hidden, targets)
    count = jnp.maximum(compared.sum(), 1)
    return jnp.where(compared, log_probs, 0.0).sum() / count

  with jax.named_scope('sensitivities'):
    share = jnp.full(layers, 1 - skip_ratio)
    slopes = jax.grad(gain)(SkipMask(share, share))
    return jnp.concatenate([slopes.attn[1:-1], slopes.mlp[1:-1]])
