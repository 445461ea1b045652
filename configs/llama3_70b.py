"""Llama-3 70B.

  python launch/generate.py --config=configs/llama3_70b.py --prompt='...'

Expect plain decoding's text, drawn or not (in bfloat16 up to near ties). The model
has 80 layers: 70 of its 156 free sublayers are skipped when drafting.
"""

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.model = {'path': 'meta-llama/Meta-Llama-3-70B', 'dtype': 'bfloat16'}
  config.search = {'skip_ratio': 0.45}
  return config
