"""Layers as a stack, on more devices than key/value heads, against one device."""

import json
import subprocess
import sys

from checkpoints import random_params
import jax
import pytest
import stack_on_devices

from swift_jax.checkpoint import export
from swift_jax.config.settings import ModelConfig

LAYERS, KV_HEADS, HEAD_DIM = 4, 2, 8
CFG = ModelConfig(
  vocab_size=101,  # of four parts one is shorter
  hidden_size=32,
  intermediate_size=40,
  num_hidden_layers=LAYERS,
  num_attention_heads=8,
  num_key_value_heads=KV_HEADS,
  head_dim=HEAD_DIM,
  max_position_embeddings=90,
  attention_bias=True,
  mlp_bias=True,
)


KINDS = pytest.mark.parametrize(
  'weights', ['', pytest.param('int8', marks=pytest.mark.nightly)]
)


@pytest.fixture(scope='module')
def reports(tmp_path_factory, nightly):
  folder = tmp_path_factory.mktemp('stack') / 'model'
  params = jax.tree.map(lambda p: p * 0.6, random_params(CFG))
  export.export_hf(folder, CFG, params)
  more = ['all'] if nightly else []
  done = subprocess.run(
    [sys.executable, stack_on_devices.__file__, str(folder), *more],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@KINDS
def test_the_text_is_that_of_one_device(reports, weights):
  one, mesh = reports[f'one {weights}'], reports[f'mesh {weights}']
  assert mesh['is_stacked'] and not one['is_stacked']
  assert one['plain'] == one['swift'] == mesh['plain'] == mesh['swift']
  assert one['drawn'] == mesh['drawn'] != one['plain']
  assert one['passes_scored'] and mesh['passes_scored']
  assert one['fingerprint'] == mesh['fingerprint']


@KINDS
def test_each_device_has_its_part(reports, weights):
  mesh = reports[f'mesh {weights}']
  heads = 1  # of two, each on two devices
  assert mesh['cache_on_one'] == [[LAYERS, 2, heads, 128, HEAD_DIM]]
  # Norms, and the biases of o and down, are whole on each device.
  assert mesh['bytes_on_one'] < 0.35 * mesh['bytes']
