"""What passes move and may cost, and what SWIFT would gain by it: an estimate.

Bytes come from shapes: of every sublayer that runs, its weights once, and all slots
of the cache; the head; the logits, written and read once. Activations are left out.

Costs are `PassCosts`, as a run measures them, and come in two ways. By bandwidth:
each part of a pass takes as long as its bytes at the device's bandwidth, or as its
products at their peak rate, if that is longer. By the TPU's compiler: its own
estimate of passes without a loop (`cost_analysis()['optimal_seconds']`), of two
layers and of one attention or MLP more: what one adds, every further one adds. Both
leave out collectives, the start of programs, and what a round does beside its passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import math
from typing import Any, NamedTuple

from flax import nnx
import jax
import numpy as np

from swift_jax.compilation.programs import Shapes, bytes_on_one
from swift_jax.decoding import sampling
from swift_jax.model import llama
from swift_jax.model import skip_mask as skip_masks
from swift_jax.model.kv_cache import KVCache
from swift_jax.model.llama import GraphDef, Params
from swift_jax.model.skip_mask import KnownMask, SkipMask
from swift_jax.pacing.costs import PassCosts, rising
from swift_jax.parallel import sharding
from swift_jax.typing import Array, Int

RATIOS = (0.45, 0.55, 0.85)  # of the free sublayers, skipped
WIDTHS = (8, 32)  # tokens that verify takes
ACCEPTANCES = (0.7, 0.8, 0.9, 0.95)
_FEW = 2  # layers of the smallest pass that is compiled


class Parts(NamedTuple):
  """A figure of each part of a pass, on one device.

  Attributes:
    head: the final norm, the head and the logits.
    attn, mlp: one attention, one MLP.
  """

  head: float
  attn: float
  mlp: float

  def of(self, skip_mask: SkipMask) -> float:
    """The figure of a whole pass."""
    attn = int((~np.asarray(skip_mask.attn)).sum())
    mlp = int((~np.asarray(skip_mask.mlp)).sum())
    return self.head + attn * self.attn + mlp * self.mlp


def moved(shapes: Shapes, width: int) -> Parts:
  """Bytes that a pass over `width` tokens a row moves on a device."""
  cfg = shapes.run.cfg
  layers = cfg.num_hidden_layers
  weights = _weights(shapes)
  slots = bytes_on_one((shapes.cache.k, shapes.cache.v)) / layers
  return Parts(
    head=weights['head'] + 2 * shapes.logits(width),
    attn=weights['attn'] / layers + slots,
    mlp=weights['mlp'] / layers,
  )


def _weights(shapes: Shapes) -> dict[str, int]:
  """Bytes on a device of all attentions, of all MLPs, and of the head."""
  found = {'attn': 0, 'mlp': 0, 'head': 0}
  tied = shapes.run.cfg.tie_word_embeddings
  for path, leaf in _leaves(shapes.params):
    if 'layers' in path:
      is_mlp = 'mlp' in path or 'post_attention_layernorm' in path
      kind = 'mlp' if is_mlp else 'attn'
    elif 'embed_tokens' in path and not tied:
      continue  # a pass reads a row of it for each token
    else:
      kind = 'head'
    found[kind] += bytes_on_one(leaf)
  return found


def _leaves(params: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    yield tuple(str(getattr(key, 'key', key)) for key in path), leaf


def products(shapes: Shapes, width: int) -> Parts:
  """Floating-point operations of a pass over `width` tokens a row on a device."""
  cfg = shapes.run.cfg
  mesh = shapes.mesh.shape if shapes.mesh else {'data': 1, 'tensor': 1}
  tokens = width * shapes.run.decode.batch_size / mesh['data']
  each = 2 * tokens / mesh['tensor']
  d, h = cfg.hidden_size, cfg.head_dim
  heads, kv_heads = cfg.num_attention_heads, cfg.kv_heads
  qkvo = d * h * (2 * heads + 2 * kv_heads)
  scores = 2 * heads * h * shapes.target.capacity
  return Parts(
    head=each * d * cfg.vocab_rows,
    attn=each * (qkvo + scores),
    mlp=each * 3 * d * cfg.intermediate_size,
  )


def costs(shapes: Shapes) -> dict[str, PassCosts]:
  """What passes may cost, by the way of the estimate; none without a known speed."""
  machine, found = shapes.run.machine, {}
  if machine.platform == 'tpu':
    found['compiler'] = _by_compiler(shapes)
  if machine.bandwidth is not None:
    found['bandwidth'] = _by_bandwidth(shapes, machine.bandwidth, machine.flops)
  return found


def _by_bandwidth(
  shapes: Shapes, bandwidth: float, flops: float | None
) -> PassCosts:
  """Each part takes as long as its bytes or as its products, if that is longer."""

  def seconds(width: int) -> Parts:
    pairs = zip(moved(shapes, width), products(shapes, width), strict=True)
    return Parts(
      *(max(b / bandwidth, n / flops if flops else 0) for b, n in pairs)
    )

  return _relative(shapes, seconds(1), [seconds(w) for w in WIDTHS])


def _relative(shapes: Shapes, one: Parts, wide: Sequence[Parts]) -> PassCosts:
  """Seconds of parts as costs in plain steps."""
  none_skipped = skip_masks.none_skipped(shapes.run.cfg.num_hidden_layers)
  step = one.of(none_skipped)
  return PassCosts(
    step_s=step,
    head=one.head / step,
    attn=one.attn / step,
    mlp=one.mlp / step,
    verify=rising([parts.of(none_skipped) / step for parts in wide]),
  )


def _by_compiler(shapes: Shapes) -> PassCosts:
  """From the estimates of a few small passes."""
  last, none = np.arange(_FEW + 1) == _FEW, np.zeros(_FEW + 1, bool)

  def more(width: int, base: float, mask: SkipMask) -> float:
    return max(seconds(shapes, width, mask) - base, 0.0)

  base = seconds(shapes, 1, skip_masks.none_skipped(_FEW))
  attn = more(1, base, SkipMask(none, last))
  mlp = more(1, base, SkipMask(last, none))
  one = Parts(max(base - _FEW * (attn + mlp), 0.0), attn, mlp)
  wide = []
  for width in WIDTHS:
    base = seconds(shapes, width, skip_masks.none_skipped(_FEW))
    layer = more(width, base, SkipMask(none, none))
    wide.append(Parts(max(base - _FEW * layer, 0.0), layer, 0.0))
  return _relative(shapes, one, wide)


def seconds(shapes: Shapes, width: int, mask: SkipMask) -> float:
  """The compiler's estimate of one pass of a model with the mask's layers."""
  run, layers = shapes.run, mask.num_layers
  cfg = dataclasses.replace(run.cfg, num_hidden_layers=layers)
  # As for a GPU, whose passes do not choose how much of the cache they read: the
  # choice has a loop, of which the compiler's estimate knows nothing.
  graphdef, params = llama.abstract_model(cfg, 'gpu')
  params = nnx.to_pure_dict(params)
  places = sharding.param_shardings(params, shapes.mesh)
  params = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    params,
    places,
  )
  tokens = shapes.rows(run.decode.batch_size, width)
  cache, known = shapes.cache_of(layers), KnownMask.of(mask)
  compiled = _pass.lower(graphdef, params, cache, tokens, known).compile()
  found: float = compiled.cost_analysis()['optimal_seconds']
  # Each operation of whose time it knows nothing, a collective say, counts -1.
  return found % 1.0


@functools.partial(jax.jit, static_argnames='graphdef', donate_argnames='cache')
def _pass(
  graphdef: GraphDef,
  params: Params,
  cache: KVCache,
  tokens: Int[Array, 'b t'],
  mask: KnownMask,
) -> tuple[Int[Array, 'b t'], KVCache]:
  """A pass without a loop: its tokens, and the cache with what it adds."""
  model = nnx.merge(graphdef, params)
  hidden, updates = model(tokens, mask, cache=cache)
  return sampling.argmax(model.logits(hidden)), cache.write(updates)


class Gain(NamedTuple):
  """What SWIFT makes of a chance.

  Attributes:
    speedup: over plain decoding, at least 1: what does not pay is not drafted.
    draft_length: tokens drafted a round; 0: none.
  """

  speedup: float
  draft_length: int


def gain(
  draft: float,
  verify: Sequence[float],
  widths: Sequence[int],
  longest: int,
  acceptance: float,
) -> Gain:
  """The speedup of the best draft length, if each token is right by itself.

  A round drafts n tokens, n * `draft`, and verifies them with the last one: of 1 +
  acceptance + ... + acceptance^n tokens. A row of a batch fares as one alone.

  Args:
    draft: cost of a drafted token, in plain steps.
    verify: cost of verifying and committing, by width.
    widths: tokens that verify is compiled for.
    longest: tokens drafted at most.
    acceptance: the chance that a drafted token is accepted.
  """
  best = Gain(1.0, 0)
  for n in range(1, min(longest + 1, widths[-1])):
    width = next(i for i, w in enumerate(widths) if w > n)
    tokens = math.fsum(acceptance**i for i in range(n + 1))
    best = max(best, Gain(tokens / (n * draft + verify[width]), n))
  return best
