"""Parts of `scripts/run_ablations.py`: what is to be run, and the programs that run it."""
