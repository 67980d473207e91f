"""Train a layer from random weights, compare it with gradient descent, and read its weights.

    python examples/train_and_look_inside.py

Prints the loss over that of one step of gradient descent at the best rate (1: as good); the cosine between the two answers
read as matrices (1: the same direction); the largest trained weight that the construction has at 0, over the largest of its
matrix; and the learning rate found in the weights, over the best one.
"""

from gdssm import LinearRegression, TrainConfig, analysis, as_predictor, learners, theory
from gdssm.train import Training

N, D = 20, 5
task = LinearRegression(d_x=D, d_y=D, n_examples=N, input_range=12**0.5)  # inputs of variance 1
training = Training(TrainConfig(task=task, steps=800, batch=128))
while training.step < training.config.steps:
    training.advance()
model = training.model(0)

rate, _ = theory.one_step_optimum(N, D, x_var=task.input_variance, x_fourth_moment=task.input_fourth_moment)
reference = learners.predictor(learners.gradient_descent, lr=rate)
found = analysis.alignment(as_predictor(model), reference, task.sample(2000, seed=10**6))  # tasks that were not trained on
match = analysis.parameter_match(model.layer)
print(f"loss ratio: {found.loss_ratio:.4f}")
print(f"cosine: {found.sensitivity_cosine:.5f}")
print(f"largest weight off the construction: {match.off_construction:.4f}")
print(f"learning rate over the best: {N * match.rate / rate:.3f}")
