"""Chooses a round's source and draft length: expected tokens against costs.

Costs are in plain steps: plain decoding writes one token a row for a cost of 1.
A round that drafts n tokens by layers costs n * `draft` + `verify` of its
width; a round that copies from the text costs only `verify`. The tokens to
expect from each source are learnt from accepted tokens. This evidence fades, so
that a source that did not pay is tried again later. Nothing here changes the
text: it is the target's, whoever drafts.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from swift_jax.config.settings import MAX_NGRAM
from swift_jax.typing import Array, Bool, Float, Int

# A rate is tokens a row and plain step. A prior stands in for missing evidence.
PLAIN, LAYERS, COPY = range(3)  # of equal rates the first is chosen
SOURCES = 'plain', 'layers', 'copy'  # their names
STRETCH = 8  # plain steps of a round that drafts nothing
SHORT_STRETCH = 4  # the same, where something to copy may come any moment
# Rate from which a draft is chosen: not 1, since rate and cost are estimates.
MIN_RATE = 1.08
_WAITING_RATE = 1.3  # rate of a likely copy from which stretches are kept short
_LAG = 2.0  # a row that is so many tokens behind the others counts e times
_SAME_COST = 0.03  # costs that differ by a smaller share decide alike
_MEMORY = 128.0  # plain steps after which evidence counts 1/e
_BIN_BOUNDS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)  # of confidence
_BIN_MIDDLES = (0.2, 0.4, 0.6, 0.75, 0.85, 0.925, 0.965, 0.99)
_PRIOR_TRIALS = 4.0  # trials that a prior of layers' acceptance is worth
# Acceptance of a copy's first token and of later ones; trials of each prior.
_COPY_PRIOR, _MORE_PRIOR, _COPY_TRIALS = 0.5, 0.7, 2.0
_NEXT_PRIOR = 0.7  # acceptance of tokens drafted by layers
# Plain steps that the prior rate of drafting by layers is worth. Where layers
# do not pay, their trials cost at most _LAYERS_PRIOR_COST *
# (prior rate - MIN_RATE) / _MEMORY.
_LAYERS_PRIOR_COST = 8.0
_MIN_LAYERS_PRIOR = 1.12  # prior rate at least: text may become easy to draft


@flax.struct.dataclass
class Costs:
  """The costs of a batch's passes, in plain steps; traced.

  Attributes:
    draft: one token drafted by layers with the present skip mask, float32[].
    verify: verify and commit, for each width of `DraftShapes`, float32[W].
    min_rate: rate from which a draft is chosen, float32[].
  """

  draft: Float[Array, '']
  verify: Float[Array, ' w']
  min_rate: Float[Array, ''] = flax.struct.field(
    default_factory=lambda: np.asarray(MIN_RATE, np.float32)
  )

  def never(self) -> Costs:
    """The same costs, at which no draft is chosen; on the host."""
    return self.replace(min_rate=np.asarray(np.inf, np.float32))

  def is_near(self, other: Costs) -> bool:
    """Whether the difference is too small to change a choice; on the host."""
    pairs = zip(jax.tree.leaves(self), jax.tree.leaves(other), strict=True)
    return all(np.allclose(*pair, rtol=_SAME_COST) for pair in pairs)


@flax.struct.dataclass
class Evidence:
  """How much was accepted lately; all of it fades.

  Hits are drafted tokens that were accepted, trials those that verify reached.

  Attributes:
    sure_hits, sure_trials: tokens drafted by layers, by bin of confidence,
      float32[K].
    copy_hits, copy_trials: the first token of each copy, by the length of the
      match, float32[N + 1].
    more_hits, more_trials: the later tokens of each copy, in the same form.
      They are kept apart, since a match is most often right for long or not at
      all.
    tokens, cost: tokens and cost a row, of rounds that drafted by layers,
      float32[].
  """

  sure_hits: Float[Array, ' k']
  sure_trials: Float[Array, ' k']
  copy_hits: Float[Array, ' n1']
  copy_trials: Float[Array, ' n1']
  more_hits: Float[Array, ' n1']
  more_trials: Float[Array, ' n1']
  tokens: Float[Array, '']
  cost: Float[Array, '']

  def acceptance(self, confidence: Float[Array, '*n']) -> Float[Array, '*n']:
    """The expected acceptance of drafted tokens, by their confidence."""
    hits = self.sure_hits + _PRIOR_TRIALS * jnp.asarray(_BIN_MIDDLES)
    share = hits / (self.sure_trials + _PRIOR_TRIALS)
    return share[_bin(confidence)]

  @property
  def next_acceptance(self) -> Float[Array, '']:
    """The expected acceptance of a token that is not drafted yet."""
    hits = self.sure_hits.sum() + _PRIOR_TRIALS * _NEXT_PRIOR
    return hits / (self.sure_trials.sum() + _PRIOR_TRIALS)

  def layers_rate(
    self,
    costs: Costs,
    verify_widths: tuple[int, ...],
    weight: Float[Array, ' b'],
  ) -> Float[Array, '']:
    """The expected rate of drafting by layers, in tokens a row and plain step.

    It is the rate of the last rounds, mixed with a prior rate. The prior is the
    rate of drafts of the best length, if every token were accepted as often as
    `next_acceptance` says, in all rows that count.
    """
    drafted = jnp.arange(1, verify_widths[-1])
    rows = 1 / jnp.maximum((weight**2).sum(), 1e-30)
    tokens = jnp.cumsum(self.next_acceptance ** (rows * drafted)) + 1
    verify = verify_cost(costs, verify_widths, drafted + 1)
    prior = (tokens / (drafted * costs.draft + verify)).max()
    prior = jnp.maximum(prior, _MIN_LAYERS_PRIOR)
    tokens = self.tokens + _LAYERS_PRIOR_COST * prior
    return tokens / (self.cost + _LAYERS_PRIOR_COST)

  def price(
    self,
    costs: Costs,
    verify_widths: tuple[int, ...],
    weight: Float[Array, ' b'],
  ) -> Float[Array, '']:
    """Tokens that a plain step's time would bring otherwise, at least 1.

    Whatever takes as long (drafting, leaves, a wider verify) must earn as much.
    """
    return jnp.maximum(self.layers_rate(costs, verify_widths, weight), 1.0)

  def copies(
    self, matched: Int[Array, ' b'], longest: int
  ) -> Float[Array, 'b d']:
    """Expected accepted tokens of copies of 1, 2, ... `longest` tokens."""
    first = self.copy_hits + _COPY_TRIALS * _COPY_PRIOR
    first = (first / (self.copy_trials + _COPY_TRIALS))[matched]
    more = self.more_hits + _COPY_TRIALS * _MORE_PRIOR
    more = (more / (self.more_trials + _COPY_TRIALS))[matched]
    chances = first[:, None] * more[:, None] ** jnp.arange(longest)
    return jnp.cumsum(jnp.where(matched[:, None] > 0, chances, 0), axis=1)


def verify_cost(
  costs: Costs, verify_widths: tuple[int, ...], nodes: Int[Array, '*n']
) -> Float[Array, '*n']:
  """The cost of verifying so many nodes, with the width they need."""
  return costs.verify[width_index(verify_widths, nodes)]


def width_index(
  verify_widths: tuple[int, ...], nodes: Int[Array, '*n']
) -> Int[Array, '*n']:
  """The index of the first width with room for so many nodes, or the last."""
  found = jnp.searchsorted(jnp.asarray(verify_widths), nodes, side='left')
  return jnp.minimum(found, len(verify_widths) - 1)


def start() -> Evidence:
  """The evidence before the first round: none, as host arrays."""
  bins, lengths = len(_BIN_MIDDLES), MAX_NGRAM + 1
  sizes = 2 * [bins] + 4 * [lengths]
  zeros = [np.zeros(n, np.float32) for n in sizes]
  return Evidence(*zeros, np.zeros((), np.float32), np.zeros((), np.float32))


def _bin(confidence: Float[Array, '*n']) -> Int[Array, '*n']:
  """The index of each confidence's bin, 0..K - 1."""
  return jnp.searchsorted(jnp.asarray(_BIN_BOUNDS), confidence, side='right')


def weights(
  remaining: Int[Array, ' b'], live: Bool[Array, ' b']
) -> Float[Array, ' b']:
  """The weight of each row's tokens; the weights sum to 1.

  A batch is done when its last row is. So rows that have more left to write
  than others count more.
  """
  most = jnp.where(live, remaining, 0).max()
  weight = jnp.where(live, jnp.exp((remaining - most) / _LAG), 0)
  return weight / jnp.maximum(weight.sum(), 1e-30)


def progress(tokens: Array, weight: Float[Array, ' b']) -> Array:
  """How many tokens the batch comes nearer to its end if rows get `tokens`.

  This is the growth of a smooth minimum over the rows. Tokens of a row that is
  ahead of the others, or gets ahead by them, bring little. With one row every
  token counts 1.

  Args:
    tokens: [B, ...].
    weight: of the rows; see `weights`.
  """
  counts = (weight > 0).reshape(-1, *[1] * (tokens.ndim - 1))
  # Subtracting the least keeps the largest exponential at 1.
  least = jnp.where(counts, tokens, tokens.max(0)).min(0)
  left = jnp.tensordot(weight, jnp.exp((least - tokens) / _LAG), axes=1)
  return jnp.where(left > 0, least - _LAG * jnp.log(left), 0.0)


def _mean(values: Array, weight: Float[Array, ' b']) -> Array:
  """The weighted mean over the rows."""
  return jnp.tensordot(weight, values.astype(jnp.float32), axes=1)


def choose(
  evidence: Evidence,
  costs: Costs,
  verify_widths: tuple[int, ...],
  matched: Int[Array, ' b'],
  room: Int[Array, ' b'],
  weight: Float[Array, ' b'],
) -> tuple[Int[Array, ''], Int[Array, ''], Bool[Array, '']]:
  """Chooses the source with the highest expected rate.

  Args:
    matched: how many of the newest tokens stood in the text before.
    room: tokens that a row can still take beside the target's own.
    weight: of the rows; see `weights`.

  Returns:
    The source, PLAIN unless another one is clearly better; the tokens to copy
    at most; and whether to keep stretches of plain steps short, because a
    likely copy would pay so well that a long stretch should not miss it.
  """
  longest = verify_widths[-1] - 1
  expected = evidence.copies(matched, longest)  # [B, D]
  in_room = jnp.arange(longest) < room[:, None]
  gains = jnp.diff(expected, axis=1, prepend=0) * in_room
  total = jnp.pad(progress(jnp.cumsum(gains, axis=1), weight), (1, 0))
  lengths = jnp.asarray(verify_widths) - 1
  rates = (1 + total[lengths]) / costs.verify
  best = jnp.argmax(rates)
  can_copy = (_mean(matched, weight) > 0) & (lengths[best] > 0)
  copy_rate = jnp.where(can_copy, rates[best], 0)
  can_draft = _mean(room > 0, weight) > 0
  layers_rate = jnp.where(
    can_draft, evidence.layers_rate(costs, verify_widths, weight), 0
  )
  rates_by_source = jnp.stack([costs.min_rate, layers_rate, copy_rate])
  # If the row that counts most finds a match, by the length of the match.
  likely = evidence.copies(jnp.arange(MAX_NGRAM + 1), longest)
  likely = jnp.pad(weight.max() * likely, ((0, 0), (1, 0)))[:, lengths]
  waiting_rate = jnp.maximum(_WAITING_RATE, costs.min_rate)
  short_stretch = ((1 + likely) / costs.verify).max() > waiting_rate
  source = jnp.argmax(rates_by_source).astype(jnp.int32)
  return source, lengths[best], short_stretch


def goes_on(
  evidence: Evidence,
  costs: Costs,
  verify_widths: tuple[int, ...],
  survival: Float[Array, ' b'],
  drafted: Int[Array, ''],
  weight: Float[Array, ' b'],
) -> Bool[Array, '']:
  """Whether to draft on: one more token, or several more, are worth their cost.

  One token alone may not pay for a wider verify where several do.

  Args:
    survival: the chance that all tokens drafted so far in a row are accepted; 0
      where the row can take no more.
    drafted: tokens drafted so far.
  """
  more = jnp.arange(1, verify_widths[-1])
  nodes = drafted + 1  # with the root
  verify_now, verify_then = (
    verify_cost(costs, verify_widths, n) for n in (nodes, nodes + more)
  )
  chances = jnp.cumsum(evidence.next_acceptance**more)
  gain = _mean(survival, weight) * chances
  price = evidence.price(costs, verify_widths, weight)
  worth = gain - price * (more * costs.draft + verify_then - verify_now)
  return ((worth > 0) & (nodes + more <= verify_widths[-1])).any()


def width(
  evidence: Evidence,
  costs: Costs,
  verify_widths: tuple[int, ...],
  num_chain: Int[Array, ' b'],
  leaf_values: Float[Array, 'b m'],
  weight: Float[Array, ' b'],
) -> Int[Array, '']:
  """How many nodes to verify: the chain, and as many leaves as pay.

  Args:
    num_chain: the root and the chain's nodes.
    leaf_values: the chance that each leaf is right, in falling order.
    weight: of the rows; see `weights`.
  """
  widths = jnp.asarray(verify_widths)
  gains = jnp.pad(jnp.cumsum(leaf_values, axis=1), ((0, 0), (1, 0)))
  leaves = jnp.clip(widths - num_chain[:, None], 0, leaf_values.shape[1])
  gain = _mean(jnp.take_along_axis(gains, leaves, axis=1), weight)  # [W]
  worth = gain - evidence.price(costs, verify_widths, weight) * costs.verify
  return widths[
    jnp.argmax(jnp.where(widths >= num_chain.max(), worth, -jnp.inf))
  ]


def learn_confidence(
  evidence: Evidence,
  confidence: Float[Array, 'b d'],
  length: Int[Array, ' b'],
  num_accepted: Int[Array, ' b'],
) -> Evidence:
  """Learns from verified chains; `length` is 0 where none was drafted."""
  depth = jnp.arange(confidence.shape[1])
  reached = (depth < length[:, None]) & (depth <= num_accepted[:, None])
  hit = reached & (depth < num_accepted[:, None])
  bins = jax.nn.one_hot(_bin(confidence), len(_BIN_MIDDLES))  # [B, D, K]
  return evidence.replace(
    sure_hits=evidence.sure_hits + (bins * hit[..., None]).sum((0, 1)),
    sure_trials=evidence.sure_trials + (bins * reached[..., None]).sum((0, 1)),
  )


def learn_copies(
  evidence: Evidence,
  matched: Int[Array, ' b'],
  copied: Int[Array, 'b d'],
  written: Int[Array, 'b d'],
  count: Int[Array, ' b'],
) -> Evidence:
  """Learns from copies, whether they were drafted or not, which costs nothing.

  Args:
    matched: how many of the newest tokens stood in the text before.
    copied: the tokens that a copy drafts or would have drafted.
    written: the tokens that were written there; the first `count` are of this
      round.
    count: tokens written in this round.
  """
  same = (copied == written) & (jnp.arange(copied.shape[1]) < count[:, None])
  hits = jnp.cumprod(same, axis=1).sum(1)
  trials = hits + (hits < jnp.minimum(count, copied.shape[1]))
  lengths = jax.nn.one_hot(matched, MAX_NGRAM + 1)  # [B, N + 1]
  first_hits, first_trials = (jnp.minimum(n, 1) for n in (hits, trials))
  return evidence.replace(
    copy_hits=evidence.copy_hits + first_hits @ lengths,
    copy_trials=evidence.copy_trials + first_trials @ lengths,
    more_hits=evidence.more_hits + (hits - first_hits) @ lengths,
    more_trials=evidence.more_trials + (trials - first_trials) @ lengths,
  )


def learn_rate(
  evidence: Evidence,
  source: Int[Array, ''],
  tokens: Float[Array, ''],
  cost: Float[Array, ''],
) -> Evidence:
  """Adds a round's tokens a row and its cost, and lets all evidence fade."""
  by_layers = (source == LAYERS).astype(jnp.float32)
  evidence = evidence.replace(
    tokens=evidence.tokens + by_layers * tokens,
    cost=evidence.cost + by_layers * cost,
  )
  kept = jnp.exp(-cost / _MEMORY)
  return jax.tree.map(lambda value: value * kept, evidence)
