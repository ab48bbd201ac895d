"""What the user reads at the end: HTML, Markdown, JSON, JUnit, the model card and the table in the terminal."""

from compress.pipeline.report.data import ReportData
from compress.pipeline.report.png import probe_samples
from compress.pipeline.report.render import render
from compress.pipeline.report.terminal import render_table

__all__ = ["ReportData", "probe_samples", "render", "render_table"]
