"""Measures a trained model on given text, and finds a skip set for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from swift_jax import progress
from swift_jax.model import llama, skip_mask
from swift_jax.model.skip_mask import SkipMask
from swift_jax.typing import Array, Int


def spread_rows(
  tokens: np.ndarray, seq_len: int, most: int
) -> Int[np.ndarray, 'r t+1']:
  """Up to `most` windows of seq_len + 1 tokens, spread evenly over a text."""
  windows = (len(tokens) - 1) // seq_len
  picked = np.linspace(0, windows - 1, min(most, windows)).astype(int)
  rows = [tokens[i * seq_len :][: seq_len + 1] for i in picked]
  return np.stack(rows).astype(np.int32)


def evaluate(
  loss: Callable[..., Array], params: Any, held_out: np.ndarray, mask: SkipMask
) -> float:
  """Mean loss over held-out rows int[R, T+1], eight at a time."""
  losses = [
    loss(params, held_out[i : i + 8], mask) for i in range(0, len(held_out), 8)
  ]
  return float(np.mean(jax.device_get(losses)))


def make_matchness(graphdef: llama.GraphDef) -> Callable[..., Array]:
  """A function for the matchness of a mask on rows int[B, T].

  It is the share of positions at which skipping changes no argmax.
  """

  def argmax(params: Any, rows: Array, mask: SkipMask) -> Array:
    model = nnx.merge(graphdef, params)
    return jnp.argmax(model.logits(model(rows, mask)[0]), axis=-1)

  @jax.jit
  def matchness(
    params: Any, rows: Array, mask: SkipMask, none_skipped: SkipMask
  ) -> Array:
    return (
      argmax(params, rows, mask) == argmax(params, rows, none_skipped)
    ).mean()

  return matchness


def find_skip_set(
  graphdef: llama.GraphDef,
  params: Any,
  rows: Int[np.ndarray, 'b t'],
  num_layers: int,
  skip_ratio: float,
  evaluations: int,
  seed: int = 0,
) -> SkipMask:
  """The best of `evaluations` masks on given text, by swaps uphill from the uniform.

  This search is offline, for the model card; `swift_jax.search` searches while text
  is generated.
  """
  rng = np.random.default_rng(seed)
  matchness = make_matchness(graphdef)
  none_skipped = skip_mask.none_skipped(num_layers)

  def score(bits: skip_mask.Bits) -> float:
    return float(
      matchness(params, rows, skip_mask.from_bits(bits), none_skipped)
    )

  best = skip_mask.uniform(num_layers, skip_ratio).bits()
  best_score = score(best)
  for _ in progress.bar(range(evaluations), unit='mask'):
    bits = skip_mask.neighbour(rng, best)
    new_score = score(bits)
    if new_score > best_score:
      best, best_score = bits, new_score
  return skip_mask.from_bits(best)
