"""One device against meshes of eight; test_sharding runs it on its own.

python on_eight_devices.py FOLDER [all]     a checkpoint; prints JSON
"""

import collections
import dataclasses
import json
import pathlib
import re
import sys
import tempfile

from flax import traverse_util
import jax
from layout_70b import CFG as CFG_70B

from swift_jax import (
  DecodeConfig,
  DraftConfig,
  Engine,
  SamplingConfig,
  SearchConfig,
)
from swift_jax.checkpoint import export, load, weight_files
from swift_jax.config.settings import ModelConfig
from swift_jax.parallel import sharding

MESHES = ((2, 4), (1, 8))
# With those above, every data of 1, 2, 4 and every tensor of 1, 2, 4, 8.
MORE_MESHES = ((4, 1), (1, 2), (4, 2))
PROMPTS = [[7], [1, 2, 3, 4, 5, 6, 7, 8, 9], list(range(40, 60))]
DRAFT = DraftConfig(
  confidence_threshold=0.2,
  max_draft_length=6,
  verify_widths=(4, 16),
  adaptive=False,
)
SEARCH = SearchConfig(context_window=12, num_candidates=3, time_budget=1.0)
# With a search and log-probabilities, whose programs take long to compile.
SEARCHED = (2, 4)
PROGRAMS = ('prefill', 'plain_steps', 'speculative_rounds', 'force')

compiled = collections.Counter()


def note(event: str, seconds: float, **facts) -> None:
  """Counts what XLA compiles, by name."""
  del seconds
  if event == '/jax/core/compile/backend_compile_duration':
    compiled[facts['fun_name']] += 1


def report(
  folder: pathlib.Path,
  mesh: jax.sharding.Mesh | None,
  searches: bool,
  chooses: bool,
  search: SearchConfig,
  draft: DraftConfig,
) -> dict:
  """Texts on this mesh, and what lies on each device."""
  cfg = load.load_config(folder)
  graphdef, params = load.load_params(folder, cfg, mesh)
  search = dataclasses.replace(search, enabled=searches)
  engine = Engine(cfg, graphdef, params, draft=draft, search=search, mesh=mesh)
  greedy = SamplingConfig(max_new_tokens=30, logprobs=2 if searches else None)
  drawn = SamplingConfig(max_new_tokens=30, temperature=0.8, seed=4)
  texts, logs = {}, {}
  compiled.clear()
  for name, method, sampling in (
    ('plain', 'plain', greedy),
    ('swift', 'swift', greedy),
    ('drawn', 'plain', drawn),
  ):
    decode = DecodeConfig(
      method, batch_size=4, prefill_chunk=8, sampling=sampling
    )
    results = engine.generate(PROMPTS, decode)
    texts[name] = [r.tokens for r in results]
    logs[name] = [
      r.logprobs and dataclasses.asdict(r.logprobs) for r in results
    ]
  if chooses:  # the policy too takes long: its costs are measured
    texts['chosen'] = chosen(cfg, graphdef, params, mesh, draft, drawn)
  programs = {name: compiled[f'jit({name})'] for name in PROGRAMS}
  with tempfile.TemporaryDirectory() as name:
    export.export_hf(pathlib.Path(name), cfg, params)
    file = pathlib.Path(name, 'model.safetensors')
    same = file.read_bytes() == (folder / file.name).read_bytes()
  leaves = jax.tree.leaves(params)
  cache = engine.model.empty_cache(4, 128)
  return {
    **texts,
    'logs': logs,
    'exports_the_same': same,
    'programs': programs,
    'passes_scored': engine.searcher.iterations,
    'devices': len(leaves[0].sharding.device_set),
    'bytes': sum(p.nbytes for p in leaves),
    'bytes_on_one': sum(p.addressable_shards[0].data.nbytes for p in leaves),
    'cache_on_one': cache.k[0].addressable_shards[0].data.shape,
  }


def chosen(cfg, graphdef, params, mesh, draft, drawn) -> list[list[int]]:
  """Drawn texts where the policy chooses what drafts."""
  draft = dataclasses.replace(draft, adaptive=True)
  rest = dataclasses.replace(SEARCH, enabled=False)
  engine = Engine(cfg, graphdef, params, draft=draft, search=rest, mesh=mesh)
  decode = DecodeConfig(batch_size=4, prefill_chunk=8, sampling=drawn)
  return [r.tokens for r in engine.generate(PROMPTS, decode)]


def loading(cfg: ModelConfig, mesh: jax.sharding.Mesh) -> dict:
  """What the programs that put a layer's weights in place do, compiled for the
  devices: collectives, and bytes on each beyond what goes in and comes out."""
  weights = load.expected_weights(cfg, mesh)
  programs, layer = [], {}
  for weight in weights.values():
    if weight.path[:2] != ('layers', 0) and weight.path[0] == 'layers':
      continue  # all layers are alike
    shape, is_kernel = weight.shape, weight_files.is_transposed(weight.path)
    if is_kernel:
      tensor = jax.ShapeDtypeStruct(
        shape, cfg.jax_dtype, sharding=weight.in_file
      )
      programs.append(
        load._adapt(weight.target, True, weight.fit).lower(tensor)
      )
    layer[weight.path] = jax.ShapeDtypeStruct(
      shape[::-1] if is_kernel else shape, cfg.jax_dtype, sharding=weight.target
    )
  layer = traverse_util.unflatten_dict(layer)['layers'][0]
  _, flat = load.flat_abstract(cfg, 'cpu')
  fuse = load._fuse(cfg, traverse_util.unflatten_dict(flat), mesh)
  programs.append(fuse.lower(layer))
  ready = [program.compile() for program in programs]
  moves = '|'.join(('all-gather', 'all-to-all', 'all-reduce', 'collective-'))
  return {
    'programs': len(ready),
    'collectives': sum(
      len(re.findall(moves, program.as_text())) for program in ready
    ),
    'extra': max(p.memory_analysis().temp_size_in_bytes for p in ready),
    'most': max(p.memory_analysis().output_size_in_bytes for p in ready),
  }


def main(folder: pathlib.Path, which: str = '') -> None:
  jax.config.update('jax_num_cpu_devices', 8)
  jax.monitoring.register_event_duration_secs_listener(note)
  search, draft, every = SEARCH, DRAFT, which == 'all'
  if not every:  # a derivative, a process, a second width take long to compile
    search = dataclasses.replace(SEARCH, importance=False, bayes_interval=0)
    draft = dataclasses.replace(DRAFT, verify_widths=(8,))
  # What the policy chooses is the drawn text, so one device need not say it.
  reports = {'one': report(folder, None, True, every, search, draft)}
  for data, tensor in MESHES + MORE_MESHES * every:
    mesh = sharding.make_mesh(data, tensor)
    has_all = (data, tensor) == SEARCHED
    reports[f'{data}x{tensor}'] = report(
      folder, mesh, has_all, has_all, search, draft
    )
  mesh = sharding.make_mesh(1, 8)
  for name, cfg in (('tiny', load.load_config(folder)), ('70b', CFG_70B)):
    reports[f'loading {name}'] = loading(cfg, mesh)
  print(json.dumps(reports))


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]), *sys.argv[2:])
