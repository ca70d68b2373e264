"""`report.html`: one page that says how a run went, or how several compare, and needs nothing but itself."""

from server_app.report.build import write_comparison, write_report
from server_app.report.reading import RunRecord, read_run

__all__ = ["RunRecord", "read_run", "write_comparison", "write_report"]
