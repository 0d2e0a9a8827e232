"""Runs that are over, run anew: exactly as they were, or otherwise from some point on. See docs/replay.md.

A recording is all that a run's log holds, as a file. In a replay the code of today decides again; all that came
from outside (models, outcomes, people, bids, the clock) comes from the recording.
"""
