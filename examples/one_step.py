"""A configuration for `gdssm train`: three layers that become one step of gradient descent, in about 15 seconds on one core.

gdssm train examples/one_step.py --out out/one-step

Writes metrics, checkpoints, the three models and a report to out/one-step. `--resume` goes on after an interruption.
"""

import gdssm

task = gdssm.LinearRegression(d_x=5, d_y=5, n_examples=20, input_range=12**0.5)  # inputs of variance 1
config = gdssm.TrainConfig(task=task, seeds=(0, 1, 2), steps=1500, batch=128, eval_points=10)
