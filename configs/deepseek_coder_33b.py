"""DeepSeek-Coder 33B.

  python launch/generate.py --config=configs/deepseek_coder_33b.py --prompt='...'

Expect plain decoding's text, drawn or not (in bfloat16 up to near ties). The model
has 62 layers: 54 of its 120 free sublayers are skipped when drafting.
"""

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.model = {
    'path': 'deepseek-ai/deepseek-coder-33b-base',
    'dtype': 'bfloat16',
  }
  config.search = {'skip_ratio': 0.45}
  return config
