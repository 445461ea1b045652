"""The demo model on the CPU, with settings that suit one.

  launch/demo.sh
  python launch/generate.py --config=configs/demo.py --prompt='def main():'

Expect plain decoding and SWIFT to write the same text, and `identical: yes`.
"""

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.model = {'path': 'demo', 'dtype': 'float32'}
  config.decode = {'max_new_tokens': 128, 'rounds_per_dispatch': 4}
  return config
