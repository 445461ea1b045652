"""What a round drafts from and how far: expected tokens against measured costs.

Costs are in plain steps: plain decoding writes a token a row for a cost of 1. A
round that drafts n tokens by layers costs n * `draft` + `verify` of its width, one
that copies from the text only the latter. What is to be expected of either is
learnt from what was accepted, and fades, so that a source that did not pay is tried
again later. Nothing here changes the text: that is the target's, whoever drafts.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from swift_jax.config.settings import MAX_NGRAM
from swift_jax.typing import Array, Bool, Float, Int

PLAIN, LAYERS, COPY = range(3)  # in the order in which a tie is decided
STRETCH = 8  # plain steps of a round that drafts nothing
SHORT_STRETCH = 4  # where something to copy may come any moment
# Tokens a cost for which plain decoding is left: not 1, for both are estimates.
_CLEARLY = 1.08
_WORTH_WAITING = (
  1.3  # tokens a cost of a copy that stretches are kept short for
)
_LAG = 2.0  # tokens by which a row that is behind others counts e times
_SAME = 0.03  # costs that differ by less decide alike
_MEMORY = 128.0  # plain steps after which evidence counts 1/e
_BOUNDS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)  # of confidence
_MIDDLES = (0.2, 0.4, 0.6, 0.75, 0.85, 0.925, 0.965, 0.99)
_DOUBT = 4.0  # trials that "confidence is acceptance" is worth
_COPY_GUESS, _MORE_GUESS, _COPY_DOUBT = 0.5, 0.7, 2.0  # of copied tokens
_NEXT_GUESS = 0.7  # of tokens drafted by layers
# Plain steps that the expected rate of drafting by layers is worth. Where layers do
# not pay, trying them costs at most this times (expectation - _CLEARLY) / _MEMORY.
_LAYERS_DOUBT = 8.0
_LAYERS_HOPE = 1.12  # tokens a cost at least: text may become easy to draft


@flax.struct.dataclass
class Costs:
  """What a batch's passes cost, in plain steps; traced.

  Attributes:
    draft: one token drafted by layers with the skip mask at hand, float32[].
    verify: verify and commit, by the widths of `DraftShapes`, float32[W].
  """

  draft: Float[Array, '']
  verify: Float[Array, ' w']

  def is_near(self, other: Costs) -> bool:
    """On the host: what is between them makes no difference."""
    pairs = (self.draft, other.draft), (self.verify, other.verify)
    return all(np.allclose(*pair, rtol=_SAME) for pair in pairs)


@flax.struct.dataclass
class Evidence:
  """What was accepted lately; all of it fades.

  Attributes:
    sure_hits, sure_trials: drafted tokens by bin of confidence, float32[K]: those
      accepted, and those that verify reached.
    copy_hits, copy_trials: the first token of a copy by the length of the match, the
      same; float32[N + 1].
    more_hits, more_trials: the tokens behind it. Apart, since a match is most often
      right for long or not at all.
    tokens, cost: a row's, of the rounds that drafted by layers, float32[].
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
    """The share of drafted tokens of such a confidence that is accepted."""
    hits = self.sure_hits + _DOUBT * jnp.asarray(_MIDDLES)
    share = hits / (self.sure_trials + _DOUBT)
    return share[_bin(confidence)]

  @property
  def next_acceptance(self) -> Float[Array, '']:
    """That of a token that is not drafted yet."""
    hits = self.sure_hits.sum() + _DOUBT * _NEXT_GUESS
    return hits / (self.sure_trials.sum() + _DOUBT)

  def layers_rate(
    self,
    costs: Costs,
    verify_widths: tuple[int, ...],
    weight: Float[Array, ' b'],
  ) -> Float[Array, '']:
    """Tokens a row and plain step when drafting by layers.

    What they brought lately, and beside it what is hoped for: what drafts of the
    best length would bring if every token were accepted as often as the next one,
    in all rows that count.
    """
    drafted = jnp.arange(1, verify_widths[-1])
    rows = 1 / jnp.maximum((weight**2).sum(), 1e-30)
    tokens = jnp.cumsum(self.next_acceptance ** (rows * drafted)) + 1
    verify = verify_cost(costs, verify_widths, drafted + 1)
    hoped = (tokens / (drafted * costs.draft + verify)).max()
    hoped = jnp.maximum(hoped, _LAYERS_HOPE)
    tokens = self.tokens + _LAYERS_DOUBT * hoped
    return tokens / (self.cost + _LAYERS_DOUBT)

  def price(
    self,
    costs: Costs,
    verify_widths: tuple[int, ...],
    weight: Float[Array, ' b'],
  ) -> Float[Array, '']:
    """Tokens that a plain step's time brings otherwise: what drafting must earn."""
    return jnp.maximum(self.layers_rate(costs, verify_widths, weight), 1.0)

  def copies(
    self, matched: Int[Array, ' b'], longest: int
  ) -> Float[Array, 'b d']:
    """Expected accepted tokens of copies of 1, 2, ... `longest` tokens."""
    first = self.copy_hits + _COPY_DOUBT * _COPY_GUESS
    first = (first / (self.copy_trials + _COPY_DOUBT))[matched]
    more = self.more_hits + _COPY_DOUBT * _MORE_GUESS
    more = (more / (self.more_trials + _COPY_DOUBT))[matched]
    chances = first[:, None] * more[:, None] ** jnp.arange(longest)
    return jnp.cumsum(jnp.where(matched[:, None] > 0, chances, 0), axis=1)


def verify_cost(
  costs: Costs, verify_widths: tuple[int, ...], nodes: Int[Array, '*n']
) -> Float[Array, '*n']:
  """That of the width that so many nodes are verified with."""
  return costs.verify[width_index(verify_widths, nodes)]


def width_index(
  verify_widths: tuple[int, ...], nodes: Int[Array, '*n']
) -> Int[Array, '*n']:
  """Of the first width with room for so many nodes, else of the widest."""
  found = jnp.searchsorted(jnp.asarray(verify_widths), nodes, side='left')
  return jnp.minimum(found, len(verify_widths) - 1)


def start() -> Evidence:
  """Before the first round, as host arrays."""
  bins, lengths = len(_MIDDLES), MAX_NGRAM + 1
  sizes = 2 * [bins] + 4 * [lengths]
  zeros = [np.zeros(n, np.float32) for n in sizes]
  return Evidence(*zeros, np.zeros((), np.float32), np.zeros((), np.float32))


def _bin(confidence: Float[Array, '*n']) -> Int[Array, '*n']:
  return jnp.searchsorted(jnp.asarray(_BOUNDS), confidence, side='right')


def weights(
  remaining: Int[Array, ' b'], live: Bool[Array, ' b']
) -> Float[Array, ' b']:
  """What a row's tokens count, in all 1: a batch is done when its last row is.

  So rows that have more to write than others count more.
  """
  most = jnp.where(live, remaining, 0).max()
  weight = jnp.where(live, jnp.exp((remaining - most) / _LAG), 0)
  return weight / jnp.maximum(weight.sum(), 1e-30)


def progress(tokens: Array, weight: Float[Array, ' b']) -> Array:
  """By how much the end of the batch comes nearer if rows get so many tokens.

  The growth of a smooth minimum over rows: tokens of a row that is ahead already,
  and those that put a row ahead of the others, bring little. For one row they count
  as they are.
  """
  counts = (weight > 0).reshape(-1, *[1] * (tokens.ndim - 1))
  # So that the exponential of the row that counts most is 1, however long it is.
  least = jnp.where(counts, tokens, tokens.max(0)).min(0)
  left = jnp.tensordot(weight, jnp.exp((least - tokens) / _LAG), axes=1)
  return jnp.where(left > 0, least - _LAG * jnp.log(left), 0.0)


def _mean(values: Array, weight: Float[Array, ' b']) -> Array:
  """Over the rows."""
  return jnp.tensordot(weight, values.astype(jnp.float32), axes=1)


def choose(
  evidence: Evidence,
  costs: Costs,
  verify_widths: tuple[int, ...],
  matched: Int[Array, ' b'],
  room: Int[Array, ' b'],
  weight: Float[Array, ' b'],
) -> tuple[Int[Array, ''], Int[Array, ''], Bool[Array, '']]:
  """The source that clearly brings most a cost, and how far a copy goes at most.

  Also whether to look out for something to copy, which a long stretch would miss.

  Args:
    matched: how many of the newest tokens stood in the text before.
    room: tokens that a row can still take beside the target's own.
    weight: of the rows; see `weights`.
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
  every = jnp.stack([jnp.float32(_CLEARLY), layers_rate, copy_rate])
  # A row that found a match as long as any that has paid.
  likely = evidence.copies(jnp.arange(MAX_NGRAM + 1), longest)
  likely = jnp.pad(weight.max() * likely, ((0, 0), (1, 0)))[:, lengths]
  looks_out = ((1 + likely) / costs.verify).max() > _WORTH_WAITING
  return jnp.argmax(every).astype(jnp.int32), lengths[best], looks_out


def goes_on(
  evidence: Evidence,
  costs: Costs,
  verify_widths: tuple[int, ...],
  survival: Float[Array, ' b'],
  drafted: Int[Array, ''],
  weight: Float[Array, ' b'],
) -> Bool[Array, '']:
  """Whether more drafted tokens are worth their cost: one, or as many as pay best.

  A next token may not pay for a wider verify where several do.

  Args:
    survival: the chance that all tokens of a row so far are accepted; 0 where it
      can take no more.
    drafted: tokens so far.
  """
  more = jnp.arange(1, verify_widths[-1])
  nodes = drafted + 1  # with the root
  now, then = (
    verify_cost(costs, verify_widths, n) for n in (nodes, nodes + more)
  )
  chances = jnp.cumsum(evidence.next_acceptance**more)
  gain = _mean(survival, weight) * chances
  price = evidence.price(costs, verify_widths, weight)
  worth = gain - price * (more * costs.draft + then - now)
  return ((worth > 0) & (nodes + more <= verify_widths[-1])).any()


def width(
  evidence: Evidence,
  costs: Costs,
  verify_widths: tuple[int, ...],
  num_chain: Int[Array, ' b'],
  leaf_values: Float[Array, 'b m'],
  weight: Float[Array, ' b'],
) -> Int[Array, '']:
  """How many nodes to verify: the chain, and leaves as far as they pay.

  Args:
    leaf_values: the chance that each leaf is right, falling.
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
  """Takes the verdict on drafted chains; `length` is 0 where there was none."""
  depth = jnp.arange(confidence.shape[1])
  reached = (depth < length[:, None]) & (depth <= num_accepted[:, None])
  hit = reached & (depth < num_accepted[:, None])
  bins = jax.nn.one_hot(_bin(confidence), len(_MIDDLES))  # [B, D, K]
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
  """Compares what would have been copied with what was written: it costs nothing.

  Args:
    written: the tokens of which `count` were written in this round.
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
  """Counts a round's tokens a row against its cost, and lets all evidence fade."""
  by_layers = (source == LAYERS).astype(jnp.float32)
  evidence = evidence.replace(
    tokens=evidence.tokens + by_layers * tokens,
    cost=evidence.cost + by_layers * cost,
  )
  kept = jnp.exp(-cost / _MEMORY)
  return jax.tree.map(lambda value: value * kept, evidence)
