"""Llama-3.1 8B.

  python launch/generate.py --config=configs/llama3_1_8b.py --prompt='...'

Expect plain decoding's text, drawn or not (in bfloat16 up to near ties). The model
has 32 layers: 24 of its 60 free sublayers are skipped when drafting.
"""

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.model = {'path': 'meta-llama/Llama-3.1-8B', 'dtype': 'bfloat16'}
  config.search = {'skip_ratio': 0.4}
  return config
