"""What a batch carries from round to round."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from swift_jax.decoding.policy import Evidence
from swift_jax.decoding.sampling import Context, row_keys
from swift_jax.model.kv_cache import KVCache
from swift_jax.parallel import sharding
from swift_jax.typing import Array, Bool, Int, UInt


@flax.struct.dataclass
class Counts:
  """What the rounds did, a row each; int32[B].

  Attributes:
    verify_passes: passes of the whole model.
    drafted: drafted chain tokens that were verified.
    accepted: those that were committed.
    copied: of `drafted`, those that were copied from the text.
    copies_accepted: of `accepted`, the same.
    leaf_hits: leaves that were committed.
    bonus_tokens: the target's own tokens that were committed after a path that it
      had accepted whole, leaf or chain.
    corrected_tokens: those that took the place of a refused one.
  """

  verify_passes: Int[Array, ' b']
  drafted: Int[Array, ' b']
  accepted: Int[Array, ' b']
  copied: Int[Array, ' b']
  copies_accepted: Int[Array, ' b']
  leaf_hits: Int[Array, ' b']
  bonus_tokens: Int[Array, ' b']
  corrected_tokens: Int[Array, ' b']


@flax.struct.dataclass
class DecodeState:
  """A batch in the middle of its text.

  The newest committed token is not yet in the cache: every pass starts with it.

  Attributes:
    cache: keys and values of all committed tokens but the newest.
    tokens: prompt and generated text, int32[B, S]; dead after `length`.
    target: the target's argmax where it wrote each generated token, int32[B, S];
      before any penalty: not the token where that was sampled, or a penalty or the
      minimum length had its say. What drafts are scored on.
    prompt_length: tokens of the prompt, int32[B].
    end: committed tokens at which a row is full, int32[B].
    done: rows that write no more, bool[B].
    finite: no NaN or infinite logit was seen, bool[].
    keys: what each row's draws derive from, uint32[B, 2].
    counts: what the rounds did.
    log: what each round drafted, accepted and returned, int32[B, S, 3]; the first
      `counts.verify_passes` lines of a row count.
    evidence: what drafting brought lately; see `policy`.
    work: what it took, where the policy decides: plain steps, tokens drafted by
      layers, and rounds that verified by the widths of `DraftShapes`, int32[2 + W].
    mesh: where it lives; None is the one default device.
  """

  cache: KVCache
  tokens: Int[Array, 'b s']
  target: Int[Array, 'b s']
  prompt_length: Int[Array, ' b']
  end: Int[Array, ' b']
  done: Bool[Array, ' b']
  finite: Bool[Array, '']
  keys: UInt[Array, 'b 2']
  counts: Counts
  log: Int[Array, 'b s 3']
  evidence: Evidence
  work: Int[Array, ' k']
  mesh: jax.sharding.Mesh | None = flax.struct.field(
    pytree_node=False, default=None
  )

  @property
  def length(self) -> Int[Array, ' b']:
    """Committed tokens of each row, the prompt's included."""
    return self.cache.length + 1

  @property
  def last_token(self) -> Int[Array, ' b']:
    """The newest committed token, which the next pass begins with."""
    index = self.cache.length[:, None]
    return jnp.take_along_axis(self.tokens, index, axis=1)[:, 0]

  def in_place(self) -> DecodeState:
    """The same, every array where each program finds it and leaves it.

    XLA would choose for each program by itself, and a program is compiled once for
    every choice that reaches it.
    """
    if self.mesh is None:
      return self
    rows = sharding.rows(self.mesh)
    whole = sharding.replicated(self.mesh)
    places = DecodeState(
      cache=sharding.cache_shardings(self.mesh),
      tokens=rows,
      target=rows,
      prompt_length=rows,
      end=rows,
      done=rows,
      finite=whole,
      keys=rows,
      counts=rows,
      log=rows,
      evidence=whole,
      work=whole,
      mesh=self.mesh,
    )
    return jax.lax.with_sharding_constraint(self, places)

  def context(
    self,
    path: Int[Array, 'b w p'],
    in_path: Bool[Array, 'b w p'],
    depth: Int[Array, 'b w'],
  ) -> Context:
    """What stands before W next tokens of each row; see `Context`."""
    return Context(
      text=self.tokens,
      length=self.length,
      prompt_length=self.prompt_length,
      keys=self.keys,
      path=path,
      in_path=in_path,
      depth=depth,
    )


def start(
  cache: KVCache,
  prompts: Int[Array, 'b s'],
  prompt_length: Int[Array, ' b'],
  max_new_tokens: Int[Array, ' b'],
  seed: UInt[Array, ''],
  index: UInt[Array, ' b'],
  evidence: Evidence,
  num_widths: int,
  mesh: jax.sharding.Mesh | None = None,
) -> DecodeState:
  """The state before prefill; a row with `max_new_tokens` 0 is done at once.

  `index` is that of each row's prompt in the run, on which its draws depend.
  """
  batch = prompts.shape[0]

  def zeros() -> Array:
    return jnp.zeros(batch, jnp.int32)

  return DecodeState(
    cache=cache,
    tokens=prompts,
    target=jnp.zeros_like(prompts),
    prompt_length=prompt_length,
    end=prompt_length + max_new_tokens,
    done=max_new_tokens <= 0,
    finite=jnp.asarray(True),
    keys=row_keys(seed, index),
    counts=Counts(*(zeros() for _ in dataclasses.fields(Counts))),
    log=jnp.zeros((*prompts.shape, 3), jnp.int32),
    evidence=evidence,
    work=jnp.zeros(2 + num_widths, jnp.int32),
    mesh=mesh,
  ).in_place()


def commit(
  state: DecodeState,
  block: Int[Array, 'b w'],
  target: Int[Array, 'b w'],
  block_length: Int[Array, ' b'],
  eos_token_ids: Int[Array, ' e'],
) -> tuple[DecodeState, Int[Array, ' b']]:
  """Appends `block[b, :block_length[b]]`, cut where plain decoding would end.

  A row is cut after its first end-of-text token and at `end`; a row that was
  done gets nothing. The block's keys and values must be in the cache already;
  `target` is the target's argmax at each of its tokens.

  Returns:
    The state with rolled cache, and the tokens that each row kept, int32[B].
  """
  index = jnp.arange(block.shape[1])[None]  # [1, W]
  kept = jnp.minimum(block_length, state.end - state.length)
  is_stop = (block[..., None] == eos_token_ids).any(-1) & (
    index < kept[:, None]
  )
  has_stop = is_stop.any(-1)
  kept = jnp.where(has_stop, jnp.argmax(is_stop, axis=-1) + 1, kept)
  kept = jnp.where(state.done, 0, kept)
  slots = state.length[:, None] + index  # [B, W]
  # Tokens past `kept` must not be written: a full row has no room for them.
  slots = jnp.where(index < kept[:, None], slots, state.tokens.shape[1])
  rows = jnp.arange(block.shape[0])[:, None]
  state = state.replace(
    tokens=state.tokens.at[rows, slots].set(block, mode='drop'),
    target=state.target.at[rows, slots].set(target, mode='drop'),
    cache=state.cache.rollback(state.cache.length + kept),
  )
  done = state.done | has_stop | (state.length >= state.end)
  return state.replace(done=done), kept
