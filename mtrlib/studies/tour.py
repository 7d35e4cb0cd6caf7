"""The parameters of the notebook `tour`."""

from pydantic import Field

from mtrlib.studies.parameters import Parameters


class Tour(Parameters):
    """Parameters of the notebook `tour`."""

    shown: int = Field(ge=1, le=8)
