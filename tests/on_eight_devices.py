"""One device against meshes of eight; test_sharding runs it on its own.

python on_eight_devices.py FOLDER     a checkpoint; prints JSON
"""

import json
import pathlib
import sys
import tempfile

import jax

from swift_jax import (
  DecodeConfig,
  DraftConfig,
  Engine,
  SamplingConfig,
  SearchConfig,
  checkpoint,
  sharding,
)

MESHES = ((2, 4), (1, 8), (4, 2))
PROMPTS = [[7], [1, 2, 3, 4, 5, 6, 7, 8, 9], list(range(40, 60))]
DRAFT = DraftConfig(
  confidence_threshold=0.2, max_draft_length=6, verify_widths=(4, 16)
)
SEARCH = SearchConfig(context_window=12, num_candidates=3, time_budget=1.0)


def report(folder: pathlib.Path, mesh: jax.sharding.Mesh | None) -> dict:
  """Texts on this mesh, and what lies on each device."""
  cfg = checkpoint.load_config(folder)
  graphdef, params = checkpoint.load_params(folder, cfg, mesh)
  engine = Engine(cfg, graphdef, params, draft=DRAFT, search=SEARCH, mesh=mesh)
  texts = {}
  for method in ('plain', 'swift'):
    decode = DecodeConfig(
      method,
      batch_size=4,
      prefill_chunk=8,
      sampling=SamplingConfig(max_new_tokens=30),
    )
    texts[method] = [r.tokens for r in engine.generate(PROMPTS, decode)]
  with tempfile.TemporaryDirectory() as name:
    checkpoint.export_hf(pathlib.Path(name), cfg, params)
    file = pathlib.Path(name, 'model.safetensors')
    same = file.read_bytes() == (folder / file.name).read_bytes()
  leaves = jax.tree.leaves(params)
  cache = engine.model.empty_cache(4, 128)
  return {
    **texts,
    'exports_the_same': same,
    'passes_scored': engine.searcher.iterations,
    'devices': len(leaves[0].sharding.device_set),
    'bytes': sum(p.nbytes for p in leaves),
    'bytes_on_one': sum(p.addressable_shards[0].data.nbytes for p in leaves),
    'cache_on_one': cache.k[0].addressable_shards[0].data.shape,
  }


def main(folder: pathlib.Path) -> None:
  jax.config.update('jax_num_cpu_devices', 8)
  reports = {'one': report(folder, None)}
  for data, tensor in MESHES:
    mesh = sharding.make_mesh(data, tensor)
    reports[f'{data}x{tensor}'] = report(folder, mesh)
  print(json.dumps(reports))


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
