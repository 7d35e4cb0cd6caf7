"""The figures of the notebooks: axes carry units, text is readable at half size, a task looks the same everywhere."""

from mtrlib.figures.findings import findings
from mtrlib.figures.pictures import images, labels
from mtrlib.figures.style import COLOURS, MARKERS, colour, marker_of, write
from mtrlib.figures.theory import chains, climb, predicted
from mtrlib.figures.vulnerabilities import bars, errors, heat_maps, lines, proxies, ratios

__all__ = ["COLOURS", "MARKERS", "bars", "chains", "climb", "colour", "errors", "findings", "heat_maps", "images"]
__all__ += ["labels", "lines", "marker_of", "predicted", "proxies", "ratios", "write"]
