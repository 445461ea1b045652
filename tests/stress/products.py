"""What XLA makes of the products of a step: layouts, widths, cores, largest values.

  python tests/stress/products.py                # the demo model's sizes
  python tests/stress/products.py 1024,3072,4    # width, MLP, layers
  taskset -c 0 python tests/stress/products.py   # one core

A chain of a model's matrix products and what lies between them, behind gates as the
model has them, in one jitted loop: milliseconds and weights read a second for 1 to
32 tokens. Then the largest of some logits in several ways, inside a loop too.
"""

from collections.abc import Callable
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

TOKENS = (1, 2, 4, 8, 16, 32)
REPEATS, PASSES = 11, 10
FORMS: dict[str, tuple[Callable, Callable]] = {
  # How a weight [in, out] is kept, and a product with it.
  '[in, out]': (lambda w: w, lambda x, w: x @ w),
  '[out, in]': (lambda w: w.T, lambda x, w: jnp.einsum('ti,oi->to', x, w)),
  'two halves': (
    lambda w: tuple(np.split(w, 2, axis=1)),
    lambda x, w: jnp.concatenate([x @ w[0], x @ w[1]], axis=1),
  ),
  'row by row': (
    lambda w: w,
    lambda x, w: jnp.concatenate([row[None] @ w for row in x]),
  ),
  'bfloat16': (
    lambda w: w.astype(jnp.bfloat16),
    lambda x, w: jnp.matmul(
      x.astype(jnp.bfloat16), w, preferred_element_type=jnp.float32
    ),
  ),
  'int8': (
    lambda w: (np.rint(w / _scale(w)).astype(np.int8), _scale(w)),
    lambda x, w: (x @ w[0].astype(jnp.float32)) * w[1],
  ),
}


def _scale(w: np.ndarray) -> np.ndarray:
  """Of each output: its largest weight is 127."""
  return np.abs(w).max(0) / 127


def chain(width: int, inner: int, layers: int, form: str) -> tuple:
  """Weights of a form, and a jitted run of some passes over them."""
  keep, product = FORMS[form]
  rng = np.random.default_rng(0)

  def weight(n_in: int, n_out: int) -> object:
    w = rng.normal(size=(n_in, n_out)).astype(np.float32) * n_in**-0.5
    return jax.tree.map(
      lambda part: jnp.asarray(np.ascontiguousarray(part)), keep(w)
    )

  sizes = (
    (width, 2 * width),
    (width, width),
    (width, 2 * inner),
    (inner, width),
  )
  weights = [tuple(weight(*size) for size in sizes) for _ in range(layers)]

  def layer(x: jax.Array, weights: tuple, runs: jax.Array) -> jax.Array:
    qkv, out, gate_up, down = weights

    def attn() -> jax.Array:
      return product(jnp.tanh(product(x, qkv)[:, :width]), out)

    x = x + jax.lax.cond(runs, attn, lambda: jnp.zeros_like(x))

    def mlp() -> jax.Array:
      h = product(x, gate_up)
      return product(jax.nn.silu(h[:, :inner]) * h[:, inner:], down)

    return x + jax.lax.cond(runs, mlp, lambda: jnp.zeros_like(x))

  @jax.jit
  def run(weights: list, x: jax.Array, runs: jax.Array) -> jax.Array:
    def one(_: int, x: jax.Array) -> jax.Array:
      for one_layer in weights:
        x = layer(x, one_layer, runs)
      return x * 1e-3

    return jax.lax.fori_loop(0, PASSES, one, x)

  return weights, run


def first_largest(x: jax.Array) -> jax.Array:
  size = x.shape[-1]
  is_best = x == x.max(-1, keepdims=True)
  return jnp.where(is_best, jnp.arange(size), size).min(-1)


LARGEST: dict[str, Callable] = {
  'argmax': lambda x: jnp.argmax(x, axis=-1),
  'first equal to the max': first_largest,
  'top_k of 1': lambda x: jax.lax.top_k(x, 1)[1][:, 0],
}


def in_loop(largest: Callable) -> Callable:
  """Each step's logits depend on the step before."""

  @jax.jit
  def run(x: jax.Array) -> jax.Array:
    def one(_: int, x: jax.Array) -> jax.Array:
      x = jnp.roll(x, 1, axis=-1)
      return x.at[:, 0].add(largest(x) * 1e-9)

    return jax.lax.fori_loop(0, 100, one, x)

  return run


def medians(runs: dict) -> dict:
  """Seconds of each, in turns, after a first run that compiles."""
  for run in runs.values():
    jax.block_until_ready(run())
  taken = {name: [] for name in runs}
  for _ in range(REPEATS):
    for name, run in runs.items():
      started = time.perf_counter()
      jax.block_until_ready(run())
      taken[name].append(time.perf_counter() - started)
  return {name: float(np.median(seconds)) for name, seconds in taken.items()}


def main(width: int = 256, inner: int = 768, layers: int = 16) -> None:
  runs = {}
  for form in FORMS:
    weights, run = chain(width, inner, layers, form)
    for tokens in TOKENS:
      x = jnp.ones((tokens, width))
      runs[form, tokens] = lambda w=weights, r=run, x=x: r(w, x, True)
  size = 4 * layers * width * (3 * width + 3 * inner)
  found = medians(runs)
  print(f'{size / 1e6:.1f} MB of weights as float32; ms a pass (GB/s of these)')
  print(f'{"tokens":<12}' + ''.join(f'{n:>16}' for n in TOKENS))
  for form in FORMS:
    seconds = [found[form, tokens] / PASSES for tokens in TOKENS]
    cells = [f'{1e3 * s:.2f} ({size / s / 1e9:.1f})' for s in seconds]
    print(f'{form:<12}' + ''.join(f'{cell:>16}' for cell in cells))
  print('\nthe largest of V logits, microseconds')
  vocabularies = (2048, 32000, 128256)
  runs = {}
  for name, largest in LARGEST.items():
    run = in_loop(largest)
    for size in vocabularies:
      x = jax.random.normal(jax.random.key(0), (1, size))
      runs[name, size] = lambda r=run, x=x: r(x)
  found = medians(runs)
  print(f'{"V":<24}' + ''.join(f'{n:>10}' for n in vocabularies))
  for name in LARGEST:
    cells = [f'{found[name, size] * 1e4:.1f}' for size in vocabularies]
    print(f'{name:<24}' + ''.join(f'{cell:>10}' for cell in cells))


if __name__ == '__main__':
  main(*map(int, sys.argv[1].split(','))) if sys.argv[1:] else main()
