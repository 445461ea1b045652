"""Yi 34B.

  python launch/generate.py --config=configs/yi_34b.py --prompt='...'

Expect plain decoding's text, drawn or not (in bfloat16 up to near ties). The model
has 60 layers: 52 of its 116 free sublayers are skipped when drafting.
"""

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.model = {'path': '01-ai/Yi-34B', 'dtype': 'bfloat16'}
  config.search = {'skip_ratio': 0.45}
  return config
