"""CodeLlama 34B.

  python launch/generate.py --config=configs/codellama_34b.py --prompt='...'

Expect plain decoding's text, drawn or not (in bfloat16 up to near ties). The model
has 48 layers: 41 of its 92 free sublayers are skipped when drafting.

The set that the official repository publishes for it starts without a search:

  --config.search.cache=published --config.search.cache_name=codellama-34b/humaneval
"""

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.model = {'path': 'codellama/CodeLlama-34b-hf', 'dtype': 'bfloat16'}
  config.search = {'skip_ratio': 0.45}
  return config
