"""What the paper claims: its printed tables (`published`), its claims, and the verdicts on them from errors."""

from mtrlib.claims.judging import AGREES, DISAGREES, NOT_MEASURED, OPEN, answer, released, sentences, summary
from mtrlib.claims.questions import findings

__all__ = ["AGREES", "DISAGREES", "NOT_MEASURED", "OPEN"]
__all__ += ["answer", "findings", "released", "sentences", "summary"]
