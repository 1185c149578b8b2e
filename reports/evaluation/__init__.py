"""The report of an evaluation: a page that opens from disk, and markdown for a pull request."""

from reports.evaluation.page import EvaluationPageOptions, render_evaluation

__all__ = ["EvaluationPageOptions", "render_evaluation"]
