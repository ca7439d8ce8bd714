"""`python -m tyr.plan ...`: what a run would compute, hold and write, before it runs.

Takes the words of `python -m tyr.run`, reads the model's configuration but no weights and no text,
measures two ceilings of this machine and prints a table. `tyr.run` stores the same plan as
plan.json, and summary.json puts its seconds beside the measured ones.
"""

from __future__ import annotations

from tyr.run import main, plan_task

if __name__ == "__main__":
    main(plan_task)
