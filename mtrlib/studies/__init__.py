"""What each notebook needs: its parameters and cells, in the module of its name, and what it reads from their errors.
The notebook's first cell checks its parameters (`check`); `study` has what all notebooks do with cells."""

from mtrlib.studies.parameters import check
from mtrlib.studies.study import Cell, attack, evaluations, matched_l2_eps_255, models, plan, run, train, train_models
