"""Reports, static pages that compare evaluations."""

from lola_ds.evaluate.report.page import write_report

__all__ = ["write_report"]
