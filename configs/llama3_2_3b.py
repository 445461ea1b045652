"""Llama-3.2 3B.

  python launch/generate.py --config=configs/llama3_2_3b.py --prompt='...'

Expect plain decoding's text, drawn or not (in bfloat16 up to near ties). The model
has 28 layers: 20 of its 52 free sublayers are skipped when drafting.
"""

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.model = {'path': 'meta-llama/Llama-3.2-3B', 'dtype': 'bfloat16'}
  config.search = {'skip_ratio': 0.4}
  return config
