"""Llama-3 70B.

  python launch/generate.py --config=configs/llama3_70b.py --prompt='...'

Expect text with the distribution of plain decoding, and the very same text with
--config.sampling.temperature=0 (in bfloat16 up to near ties). The model
has 80 layers: 70 of its 156 free sublayers are skipped when drafting.
"""

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.model = {'path': 'meta-llama/Meta-Llama-3-70B', 'dtype': 'bfloat16'}
  config.search = {'skip_ratio': 0.45}
  return config
