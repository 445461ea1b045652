"""Drafting: the gated model writes a chain of tokens ahead of the target."""

from __future__ import annotations

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from swift_jax.config.settings import DraftConfig
from swift_jax.decoding import policy
from swift_jax.decoding import sampling as samplings
from swift_jax.decoding.policy import Costs
from swift_jax.decoding.sampling import Sampling
from swift_jax.decoding.state import DecodeState
from swift_jax.model.kv_cache import KVCache
from swift_jax.model.llama import Llama
from swift_jax.model.skip_mask import Mask
from swift_jax.typing import Array, Bool, Float, Int


class DraftShapes(NamedTuple):
  """What the compiled programs depend on; static.

  Attributes:
    verify_widths: token counts that verify is compiled for, increasing.
    num_leaves: alternatives kept at each depth; 0 for a chain without leaves.
    samples: tokens are drawn; else the most likely tokens are taken.
    lookup: the draft is copied from the text; see `lookup`.
    adaptive: each round chooses its source and its length; see `policy`.
  """

  verify_widths: tuple[int, ...]
  num_leaves: int
  samples: bool = False
  lookup: bool = False
  adaptive: bool = False

  @property
  def max_width(self) -> int:
    return self.verify_widths[-1]


@flax.struct.dataclass
class DraftSettings:
  """What may change without a new compilation; traced.

  Attributes:
    max_length: tokens drafted at most, int32[].
    threshold: drafting stops after a confidence below this, float32[].
    tree_widths: top-k at each depth by confidence, int32[n + 1].
    tree_bounds: confidences at which k changes, float32[n].
    lookup_length: tokens copied at most by prompt lookup, int32[].
    lookup_ngram: tokens that prompt lookup compares at most, int32[].
    copies: whether the policy may copy, bool[].
    forced: the source of every draft, by `policy`'s numbers, at its full
      length; -1: the policy chooses, int32[]. Used to measure costs.
    costs: the costs that the policy weighs.
  """

  max_length: Int[Array, '']
  threshold: Float[Array, '']
  tree_widths: Int[Array, ' n1']
  tree_bounds: Float[Array, ' n']
  lookup_length: Int[Array, '']
  lookup_ngram: Int[Array, '']
  copies: Bool[Array, '']
  forced: Int[Array, '']
  costs: Costs


@flax.struct.dataclass
class Draft:
  """A drafted chain and, at each depth, the runners-up to the chain's token.

  At each depth tokens are ordered by the draft's scores. A token's weight is
  its share in the softmax of the scores. In greedy decoding the weight is the
  draft's probability. In sampling the scores include the noise that also
  decides the target's token, so that a weight predicts better than a
  probability whether draft and target agree (`tests/stress/coupling.py`).

  Attributes:
    tokens: the chain, int32[B, D]; dead after `length`.
    confidence: weights of the chain's tokens, float32[B, D].
    leaf_tokens: the runners-up at each depth, best first, int32[B, D, A].
    leaf_weights: weights of the runners-up, float32[B, D, A]; 0 means no leaf.
    length: drafted tokens of each row, int32[B].
  """

  tokens: Int[Array, 'b d']
  confidence: Float[Array, 'b d']
  leaf_tokens: Int[Array, 'b d a']
  leaf_weights: Float[Array, 'b d a']
  length: Int[Array, ' b']


def split_config(
  cfg: DraftConfig, vocab_size: int
) -> tuple[DraftShapes, DraftSettings]:
  """The static and the traced part of a `DraftConfig`."""
  leaves = min(max(cfg.tree_widths), vocab_size) - 1 if cfg.tree else 0
  settings = DraftSettings(
    max_length=jnp.asarray(cfg.max_draft_length, jnp.int32),
    threshold=jnp.asarray(cfg.confidence_threshold, jnp.float32),
    tree_widths=jnp.asarray(cfg.tree_widths, jnp.int32),
    tree_bounds=jnp.asarray(cfg.tree_bounds, jnp.float32),
    lookup_length=jnp.asarray(cfg.lookup_length, jnp.int32),
    lookup_ngram=jnp.asarray(cfg.lookup_ngram, jnp.int32),
    copies=jnp.asarray(cfg.copy),
    forced=jnp.asarray(-1, jnp.int32),
    costs=Costs(jnp.ones(()), jnp.ones(len(cfg.verify_widths))),
  )
  shapes = DraftShapes(cfg.verify_widths, leaves, adaptive=cfg.adaptive)
  return shapes, settings


def for_lookup(shapes: DraftShapes) -> DraftShapes:
  """The shapes of prompt lookup.

  They have no leaves. Where the text has nothing to copy, verify runs over the
  last token alone; so a width of 1 is added.
  """
  widths = tuple(sorted({1, *shapes.verify_widths}))
  return shapes._replace(
    verify_widths=widths, num_leaves=0, lookup=True, adaptive=False
  )


@flax.struct.dataclass
class _Carry:
  """The draft loop's state: `active` rows draft on, at depth `step`.

  `survival` is the chance that all drafted tokens of a row are accepted; it is
  kept up only where the policy needs it.
  """

  step: Int[Array, '']
  token: Int[Array, ' b']
  cache: KVCache
  active: Array
  survival: Float[Array, ' b']
  draft: Draft


def draft(
  model: Llama,
  state: DecodeState,
  skip_mask: Mask,
  settings: DraftSettings,
  sampling: Sampling,
  shapes: DraftShapes,
  wanted: Bool[Array, ''] | bool = True,
) -> tuple[Draft, KVCache]:
  """Drafts until every row has stopped; drafts nothing if not `wanted`.

  A row stops after a token whose confidence is below the threshold (this token
  stays in the draft: the tree is widest at its runners-up), at `max_length`,
  and one token before the row's end, since verify adds a token of its own. Rows
  that are done draft nothing. With `shapes.adaptive` the policy decides instead
  of the threshold, for all rows together.

  Returns:
    The draft, and the cache. At slots >= `length` the cache holds the keys and
    values of the sublayers that were not skipped; verify overwrites them. The
    cache's `length` is the state's.
  """
  batch, depth = state.done.shape[0], shapes.max_width - 1
  cap = jnp.minimum(settings.max_length, state.end - state.length - 1)
  cap = jnp.where(state.done | ~jnp.asarray(wanted), 0, jnp.minimum(cap, depth))

  def body(carry: _Carry) -> _Carry:
    hidden, updates = model(carry.token[:, None], skip_mask, cache=carry.cache)
    i, d = carry.step, carry.draft
    logits = model.logits(hidden)  # [B, 1, V]
    choice = _choose(logits, state, d, i, sampling, shapes)
    active = carry.active
    d = d.replace(
      tokens=d.tokens.at[:, i].set(choice.tokens[:, 0]),
      confidence=d.confidence.at[:, i].set(choice.confidence),
      leaf_tokens=d.leaf_tokens.at[:, i].set(choice.tokens[:, 1:]),
      leaf_weights=d.leaf_weights.at[:, i].set(choice.leaf_weights),
      length=d.length + active,
    )
    cache = carry.cache.write(updates)
    survival = carry.survival
    if shapes.adaptive:
      survival *= state.evidence.acceptance(choice.confidence)
      in_reach = jnp.where(i + 1 < cap, survival, 0)
      more = _pays(state, settings, shapes, in_reach, i + 1)
    else:
      more = choice.confidence >= settings.threshold
    return _Carry(
      step=i + 1,
      token=choice.tokens[:, 0],
      cache=cache.rollback(cache.length + 1),
      active=active & more & (i + 1 < cap),
      survival=survival,
      draft=d,
    )

  empty = _empty(batch, depth, shapes.num_leaves)
  first = _Carry(
    step=jnp.int32(0),
    token=state.last_token,
    cache=state.cache,
    active=cap > 0,
    survival=jnp.ones(batch, jnp.float32),
    draft=empty,
  )
  last = jax.lax.while_loop(lambda carry: carry.active.any(), body, first)
  return last.draft, last.cache.rollback(state.cache.length)


def _pays(
  state: DecodeState,
  settings: DraftSettings,
  shapes: DraftShapes,
  survival: Float[Array, ' b'],
  drafted: Int[Array, ''],
) -> Bool[Array, '']:
  """Whether to draft one more token: the policy says so, or `forced` is set."""
  weight = policy.weights(state.end - state.length, ~state.done)
  pays = policy.goes_on(
    state.evidence,
    settings.costs,
    shapes.verify_widths,
    survival,
    drafted,
    weight,
  )
  return pays | (settings.forced >= 0)


def _empty(batch: int, depth: int, num_leaves: int) -> Draft:
  """A draft of no tokens."""
  leaves = (batch, depth, num_leaves)
  return Draft(
    tokens=jnp.zeros((batch, depth), jnp.int32),
    confidence=jnp.zeros((batch, depth), jnp.float32),
    leaf_tokens=jnp.zeros(leaves, jnp.int32),
    leaf_weights=jnp.zeros(leaves, jnp.float32),
    length=jnp.zeros(batch, jnp.int32),
  )


class _Choice(NamedTuple):
  """One depth of a `Draft`: the chain's token first, then its leaves."""

  tokens: Int[Array, 'b a1']
  confidence: Float[Array, ' b']
  leaf_weights: Float[Array, 'b a']


def _choose(
  logits: Float[Array, 'b 1 v'],
  state: DecodeState,
  draft: Draft,
  depth: Int[Array, ''],
  sampling: Sampling,
  shapes: DraftShapes,
) -> _Choice:
  """The best tokens at one depth, by the draft's scores."""
  before = jnp.arange(draft.tokens.shape[1]) < depth
  context = state.context(
    path=draft.tokens[:, None],
    in_path=jnp.broadcast_to(before, draft.tokens[:, None].shape),
    depth=jnp.broadcast_to(depth, (len(draft.tokens), 1)),
  )
  scores = samplings.scores(logits, context, sampling, shapes.samples)[:, 0]
  values, tokens = _top(scores, shapes.num_leaves + 1)
  total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
  weights = jnp.exp(values - total)
  return _Choice(tokens, weights[:, 0], weights[:, 1:])


def _top(
  values: Float[Array, 'b v'], k: int
) -> tuple[Float[Array, 'b k'], Int[Array, 'b k']]:
  """The k largest values, largest first, and their indices."""

  def one_by_one(values: Array) -> tuple[Array, Array]:
    found, where = [], []
    for _ in range(k):
      best = samplings.argmax(values)[:, None]
      found.append(values.max(-1, keepdims=True))
      where.append(best)
      is_best = jnp.arange(values.shape[-1]) == best
      values = jnp.where(is_best, -jnp.inf, values)
    return jnp.concatenate(found, axis=-1), jnp.concatenate(where, axis=-1)

  def top_k(values: Array) -> tuple[Array, Array]:
    return tuple(jax.lax.top_k(values, k))

  if k == 1:
    return one_by_one(values)
  # XLA on CPU sorts the whole vocabulary for a `top_k` inside a loop.
  return jax.lax.platform_dependent(values, cpu=one_by_one, default=top_k)
