"""A run of a model so small that its programs compile in seconds."""

import dataclasses

from swift_jax.compilation import targets
from swift_jax.compilation.programs import Run
from swift_jax.config import sampling
from swift_jax.config.sampling import SamplingConfig
from swift_jax.config.settings import (
  DecodeConfig,
  DraftConfig,
  MeshConfig,
  ModelConfig,
  SearchConfig,
)

CFG = ModelConfig(
  vocab_size=523,
  hidden_size=64,
  intermediate_size=112,
  num_hidden_layers=5,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=16,
)
DRAFT = DraftConfig(max_draft_length=5, tree=False, verify_widths=(6,))
SEARCH = SearchConfig(context_window=8, num_candidates=3)


def small_run(
  batch=1, mesh=None, context=90, bandwidth=None, flops=None, memory=None, **cfg
):
  """For this machine, with another description where one is given."""
  machine = targets.find('cpu')
  machine = dataclasses.replace(
    machine,
    bandwidth=bandwidth,
    flops=flops,
    memory=memory or machine.memory,
  )
  resolved = sampling.resolve(SamplingConfig(), SamplingConfig()).config
  return Run(
    cfg=dataclasses.replace(CFG, **cfg),
    machine=machine,
    mesh=mesh or MeshConfig(),
    context=context,
    draft=DRAFT,
    search=SEARCH,
    decode=DecodeConfig(batch_size=batch, prefill_chunk=16, sampling=resolved),
  )
