"""The parts of `scripts/benchmark_engine.py`.

machine.py  what a processor can do at most: the one that the goals were set on, and this one, measured
bounds.py   how many instructions and bytes a stage needs: BOUNDS
scenes.py   what is drawn and trained: SCENES, or a trained avatar; shell.py makes the head shells
stages.py   what is timed: STAGES; step.py is the body of train.py's loop
rivals.py   who does the same elsewhere: RIVALS; gsplat_reference.py is one of them
goals.py    what was aimed at, and the gate
report.py   rows, table, Markdown
"""
