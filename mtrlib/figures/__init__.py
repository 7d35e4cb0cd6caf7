"""The figures of the notebooks: axes carry units, text is readable at half size, a task looks the same everywhere.

Where a figure takes `tasks`, these are the definitions of the data set's tasks, for names and units; None for the
paper's."""

from mtrlib.figures.findings import findings
from mtrlib.figures.pictures import images, labels
from mtrlib.figures.style import COLOURS, MARKERS, colour, marker_of, write
from mtrlib.figures.theory import chains, curves, predicted
from mtrlib.figures.trade_offs import fronts, trade_off
from mtrlib.figures.vulnerabilities import bars, by_setting, errors, heat_maps, lines, proxies, ratios
