"""A report: one static page that compares evaluations, for people and for papers."""

from lola_ds.evaluate.report.page import write_report

__all__ = ["write_report"]
