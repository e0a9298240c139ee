"""Experiment scripts: everything with a side effect lives here, outside the wheel."""
