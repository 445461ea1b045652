"""Llama-2 13B.

  python launch/generate.py --config=configs/llama2_13b.py --prompt='...'

Expect plain decoding's text, drawn or not (in bfloat16 up to near ties). The model
has 40 layers: 34 of its 76 free sublayers are skipped when drafting.

The set that the official repository publishes for it starts without a search:

  --config.search.cache=published --config.search.cache_name=llama-2-13b/cnndm
"""

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.model = {'path': 'meta-llama/Llama-2-13b-hf', 'dtype': 'bfloat16'}
  config.search = {'skip_ratio': 0.45}
  return config
