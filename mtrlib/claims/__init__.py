"""What the paper claims: its printed tables (`published`), its claims, and the verdicts on them from errors."""

from mtrlib.claims.judging import AGREES, DISAGREES, NOT_MEASURED, OPEN, sentences, summary
from mtrlib.claims.questions import findings

__all__ = ["AGREES", "DISAGREES", "NOT_MEASURED", "OPEN", "findings", "sentences", "summary"]
