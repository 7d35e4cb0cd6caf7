"""The figures of the notebooks: axes carry units, text is readable at half size, a task looks the same everywhere.

Where a figure takes `tasks`, these are the definitions of the data set's tasks, for names and units; None for the
paper's."""

from mtrlib.figures.findings import findings
from mtrlib.figures.fronts import fronts
from mtrlib.figures.pictures import images, labels
from mtrlib.figures.robustness import trade_off
from mtrlib.figures.sharing import by_setting
from mtrlib.figures.style import COLOURS, MARKERS, colour, marker_of, write
from mtrlib.figures.theory import chains, curves, predicted
from mtrlib.figures.vulnerabilities import bars, errors, heat_maps, lines, proxies, ratios
