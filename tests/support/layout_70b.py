"""What each device holds of Llama-2 70B, by shapes alone: nothing is allocated.

python tests/support/layout_70b.py     prints the table of BUILD.md
"""

import math
from typing import NamedTuple

from flax import nnx
import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from swift_jax.config.settings import ModelConfig
from swift_jax.model import kv_cache, llama
from swift_jax.parallel import sharding

CFG = ModelConfig(
  vocab_size=32000,
  hidden_size=8192,
  intermediate_size=28672,
  num_hidden_layers=80,
  num_attention_heads=64,
  num_key_value_heads=8,
  head_dim=128,
  max_position_embeddings=4096,
  dtype='bfloat16',
)
MESHES = ((1, 8), (4, 8))
BATCH = 8
GIB = 2**30


class Layout(NamedTuple):
  """Bytes: of everything, and what lies on one device."""

  weights: int
  weights_on_one: int
  cache: int
  cache_on_one: int


def layout(cfg, data, tensor, batch=BATCH):
  """Weights and a full cache on a mesh that need not exist."""
  kinds = (AxisType.Auto, AxisType.Auto)
  mesh = AbstractMesh((data, tensor), sharding.AXES, axis_types=kinds)
  sharding.check_mesh(cfg, mesh)
  sharding.check_batch(batch, mesh)
  _, params = llama.abstract_model(cfg)
  params = nnx.to_pure_dict(params)
  cache = jax.eval_shape(
    lambda: kv_cache.empty(
      cfg.num_hidden_layers,
      batch,
      cfg.num_key_value_heads,
      cfg.max_position_embeddings,
      cfg.head_dim,
      cfg.jax_dtype,
    )
  )
  places = sharding.cache_shardings(mesh, stacked=False)
  slots = [(leaf, places.k) for leaf in jax.tree.leaves((cache.k, cache.v))]
  weights = list(
    zip(
      jax.tree.leaves(params),
      jax.tree.leaves(sharding.param_shardings(params, mesh)),
      strict=True,
    )
  )
  return Layout(*_bytes(weights), *_bytes(slots))


def _bytes(placed: list[tuple[jax.ShapeDtypeStruct, NamedSharding]]):
  """Of all arrays, and of their parts on one device."""
  whole = sum(leaf.size * leaf.dtype.itemsize for leaf, _ in placed)
  part = sum(
    math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf, place in placed
  )
  return whole, part


def main():
  cells = (
    ('mesh (data, tensor)', 'weights', 'a device', 'cache', 'a device', 'both'),
    *(
      (
        str(mesh),
        *(f'{size / GIB:.2f} GiB' for size in found),
        f'{(found.weights_on_one + found.cache_on_one) / GIB:.2f} GiB',
      )
      for mesh, found in ((mesh, layout(CFG, *mesh)) for mesh in MESHES)
    ),
  )
  for row in (cells[0], ['---', *['---:'] * 5], *cells[1:]):
    print('| ' + ' | '.join(row) + ' |')


if __name__ == '__main__':
  main()
