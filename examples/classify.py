"""Classify sequences read from both ends: the value of nested expressions such as [MAX 2 [MIN 5 3 ] ], trained for 100 steps.

    python examples/classify.py

Prints an expression with its value, the accuracy on expressions that were not trained on, that of always saying the most
frequent value, and the largest change of a score when an expression is padded, which is rounding.
"""

import torch

import gdssm
from gdssm.sequence_train import SequenceTraining, score
from gdssm.sequences import ListOps

torch.manual_seed(0)
task = ListOps(min_length=4, max_length=16, max_depth=2, max_args=3, held=300)
options = {"vocab_size": task.n_inputs, "n_outputs": task.n_outputs, "pooling": "mean", "bidirectional": True}
model = gdssm.GDSSMForSequenceModeling(d_model=32, n_layers=1, n_heads=4, **options)
training = SequenceTraining(model, task, gdssm.Recipe(steps=100, batch=32, lr=1e-2, warmup=10))
for _ in range(100):
    training.advance()

test = task.held_out("test")
values = torch.cat([batch.targets for batch in test])
example = task.expressions(1, seed=1)[0]
print(f"an expression: {example} = {example.value}")
print(f"accuracy: {score(model, test).accuracy:.3f}")
print(f"always the most frequent value: {values.bincount().max().item() / len(values):.3f}")
with torch.no_grad():
    batch = test[0]
    together = model(batch.tokens, lengths=batch.lengths)[0]
    alone = [model(row[:n][None])[0][0] for row, n in zip(batch.tokens, batch.lengths.tolist(), strict=True)]
print(f"padded, largest change: {float((together - torch.stack(alone)).abs().max() / together.abs().max()):.1e}")
