"""Llama-2 7B.

  python launch/generate.py --config=configs/llama2_7b.py --prompt='...'

Expect text with the distribution of plain decoding, and the very same text with
--config.sampling.temperature=0 (in bfloat16 up to near ties). The model
has 32 layers: 24 of its 60 free sublayers are skipped when drafting.
"""

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.model = {'path': 'meta-llama/Llama-2-7b-hf', 'dtype': 'bfloat16'}
  config.search = {'skip_ratio': 0.4}
  return config
