"""Trains the demo model on the standard library's source.

  python launch/train_demo.py --config=configs/train_demo.py --workdir=DIR

Expect several hours on two CPU cores. Started again on the same DIR it goes on
where it stopped; --output=FOLDER exports the model when it is done.
"""

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.train = {'steps': 2000}
  return config
