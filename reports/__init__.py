"""Run records to tables, figures and verdicts."""
