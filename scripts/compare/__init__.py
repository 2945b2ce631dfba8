"""Parts of `scripts/compare_results.py`: reading runs, grouping them, statistics, and the four forms of the report."""
