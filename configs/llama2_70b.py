"""Llama-2 70B.

  python launch/generate.py --config=configs/llama2_70b.py --prompt='...'

Expect plain decoding's text, drawn or not (in bfloat16 up to near ties). The model
has 80 layers: 78 of its 156 free sublayers are skipped when drafting.

The set that the official repository publishes for it starts without a search:

  --config.search.cache=published --config.search.cache_name=llama-2-70b/cnndm
"""

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.model = {'path': 'meta-llama/Llama-2-70b-hf', 'dtype': 'bfloat16'}
  config.search = {'skip_ratio': 0.5}
  return config
