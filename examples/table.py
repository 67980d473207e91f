"""Learn a table in context: patients' rows go through a layer as a stream, other patients are predicted from its state.

    python examples/table.py          needs scikit-learn, which brings the table: pip install 'gdssm[tables]'

Prints R^2 (1: perfect, 0: as good as the mean) on every third patient, learned from the others: of 100 steps of gradient descent
in the layer's readout and of conjugate gradient, which ends at ridge regression; and the largest difference between
the latter and scikit-learn's ridge regression, in standard deviations of the target.
"""

import csv
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gdssm.predict import Learner, predict

data = load_diabetes()
table = np.column_stack([data.data, data.target])
new = np.arange(len(table)) % 3 == 0
target = table[new, -1]
ridge = make_pipeline(StandardScaler(), Ridge(alpha=1.0)).fit(data.data[~new], data.target[~new]).predict(data.data[new])

with tempfile.TemporaryDirectory() as folder:
    known_file, new_file = Path(folder, "known.csv"), Path(folder, "new.csv")
    for path, rows in ((known_file, table[~new]), (new_file, table[new])):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([[*data.feature_names, "progression"], *rows.tolist()])
    for name, learner in (("gradient descent", Learner("gd", steps=100)), ("conjugate gradient", Learner("cg", alpha=1.0))):
        values = np.array([value for value, _ in predict(known_file, "progression", new_file, learner).values])
        print(f"{name}: R^2 {r2_score(target, values):.4f}")
print(f"difference from ridge: {np.abs(values - ridge).max() / target.std():.1e}")
