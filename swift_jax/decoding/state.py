"""The state that a batch carries from round to round, and committing tokens."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from swift_jax.decoding.policy import Evidence
from swift_jax.decoding.sampling import Context, row_keys
from swift_jax.model.kv_cache import KVCache
from swift_jax.parallel import sharding
from swift_jax.typing import Array, Bool, Int, UInt

LOG_DTYPE = jnp.int16


@flax.struct.dataclass
class DecodeState:
  """A batch in the middle of its text.

  The newest committed token is not yet in the cache: every pass starts with it.

  Attributes:
    cache: keys and values of all committed tokens but the newest.
    tokens: prompt and generated text, int32[B, S]; dead after `length`.
    target: the target's argmax at the place of each generated token, before any
      penalty, int32[B, S]. It differs from the token where the token was
      sampled, or where a penalty or the minimum length changed the choice.
      Drafts are scored on it.
    prompt_length: tokens of the prompt, int32[B].
    end: committed tokens at which a row is full, int32[B].
    done: rows that write no more, bool[B].
    finite: whether all logits so far were finite, bool[].
    keys: the random keys of the rows' draws, uint32[B, 2].
    log: what each round did, int16[B, 5, S], at the place of the first token
      that it committed: tokens of the chain that were verified, those that were
      committed, all tokens committed, whether a leaf is among them, and who
      drafted, by `policy`'s numbers. Where a pass is due and the line is all
      zeros, it was a plain step.
    evidence: how much of the drafts was accepted lately; see `policy`.
    work: the passes so far, where the policy decides: plain steps, tokens
      drafted by layers, and rounds by width of verify in `DraftShapes`,
      int32[2 + W].
    mesh: the devices that hold the state; None means the one default device.
  """

  cache: KVCache
  tokens: Int[Array, 'b s']
  target: Int[Array, 'b s']
  prompt_length: Int[Array, ' b']
  end: Int[Array, ' b']
  done: Bool[Array, ' b']
  finite: Bool[Array, '']
  keys: UInt[Array, 'b 2']
  log: Int[Array, 'b 5 s']
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
    """The newest committed token, with which the next pass begins."""
    index = self.cache.length[:, None]
    return jnp.take_along_axis(self.tokens, index, axis=1)[:, 0]

  def in_place(self) -> DecodeState:
    """The same state, with every array in its fixed place on the mesh.

    Otherwise XLA would choose places for each program's results, and a program
    is compiled again for every choice that reaches it.
    """
    if self.mesh is None:
      return self
    rows = sharding.rows(self.mesh)
    whole = sharding.replicated(self.mesh)
    places = DecodeState(
      cache=sharding.cache_shardings(self.mesh, self.cache.is_stacked),
      tokens=rows,
      target=rows,
      prompt_length=rows,
      end=rows,
      done=rows,
      finite=whole,
      keys=rows,
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
    """The context of W next tokens of each row; see `Context`."""
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

  Args:
    index: the index of each row's prompt in the run; its draws depend on it.
    num_widths: widths of verify, W.
  """
  batch, slots = prompts.shape
  return DecodeState(
    cache=cache,
    tokens=prompts,
    target=jnp.zeros_like(prompts),
    prompt_length=prompt_length,
    end=prompt_length + max_new_tokens,
    done=max_new_tokens <= 0,
    finite=jnp.asarray(True),
    keys=row_keys(seed, index),
    log=jnp.zeros((batch, 5, slots), LOG_DTYPE),
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
  done gets nothing. The block's keys and values must be in the cache already.

  Args:
    target: the target's argmax at the place of each token of the block.

  Returns:
    The state, with the cache's length at its new value; and the number of
    tokens that each row kept, int32[B].
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
