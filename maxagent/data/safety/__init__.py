"""What should not be learned: secrets, near-duplicates, pieces of test sets, endless repetition. Each is counted."""

from maxagent.data.safety.check import Checked, Safety, SafetyOptions, count_names
from maxagent.data.safety.decontaminate import EvaluationSet

__all__ = ["Checked", "EvaluationSet", "Safety", "SafetyOptions", "count_names"]
