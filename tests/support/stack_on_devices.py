"""Layers as a stack on a mesh that does not divide the model; run on its own.

python stack_on_devices.py FOLDER [all]     a checkpoint; prints JSON
"""

import json
import sys

import jax

from swift_jax import (
  DecodeConfig,
  DraftConfig,
  Engine,
  SamplingConfig,
  SearchConfig,
)
from swift_jax.parallel import sharding

PROMPTS = [[7], [1, 2, 3, 4, 5, 6, 7, 8, 9], list(range(40, 60))]
DRAFT = DraftConfig(
  confidence_threshold=0.2,
  max_draft_length=6,
  verify_widths=(8,),
  adaptive=False,
)
SEARCH = SearchConfig(
  context_window=12,
  num_candidates=3,
  time_budget=1.0,
  scoring='vmap',
  importance=False,
)
# A penalty, for which a TPU compares tokens where others scatter.
DRAWN = {'temperature': 0.8, 'seed': 4, 'repetition_penalty': 1.3}


def report(folder: str, weights: str, mesh: jax.sharding.Mesh | None) -> dict:
  """Texts of one engine."""
  engine = Engine.from_pretrained(
    folder, weights=weights, mesh=mesh, draft=DRAFT, search=SEARCH
  )
  found = {'fingerprint': engine.fingerprint}
  for name, method, drawn in (
    ('plain', 'plain', {}),
    ('swift', 'swift', {}),
    ('drawn', 'swift', DRAWN),
  ):
    sampling = SamplingConfig(max_new_tokens=24, eos_token_id=(), **drawn)
    decode = DecodeConfig(
      method, batch_size=4, prefill_chunk=8, sampling=sampling
    )
    results = engine.generate(PROMPTS, decode)
    found[name] = [result.tokens for result in results]
  cache = engine.model.empty_cache(4, 128)
  kernels = jax.tree.leaves(engine.model.params['layers'])
  return {
    **found,
    'passes_scored': engine.searcher.iterations,
    'is_stacked': cache.is_stacked,
    'cache_on_one': [
      leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves(cache.k)
    ][:1],
    'bytes': sum(leaf.nbytes for leaf in kernels),
    'bytes_on_one': sum(
      leaf.addressable_shards[0].data.nbytes for leaf in kernels
    ),
  }


def main() -> None:
  jax.config.update('jax_num_cpu_devices', 8)
  folder, *more = sys.argv[1:]
  mesh, reports = sharding.make_mesh(2, 4), {}
  kinds = ('', 'int8') if more else ('',)
  for weights in kinds:
    reports[f'one {weights}'] = report(folder, weights, None)
  sharding.platform = lambda mesh: 'tpu'  # from here on passes are a TPU's
  for weights in kinds:
    reports[f'mesh {weights}'] = report(folder, weights, mesh)
  print(json.dumps(reports))


if __name__ == '__main__':
  main()
