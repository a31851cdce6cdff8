"""Structured pruning: remove the least important channels of a model.

A model lists its channel groups (`Model.channel_groups`); nothing here knows an architecture.

measures     importance of channels, from weights and gradients
removal      a narrower model; weights and the optimiser's averages cut alike
ranking      the least important channels of all groups
plan         cycles of removals and training, targets, schedules
calibration  scales that make the importance of groups comparable
"""

from speechlab.pruning.measures import importance
from speechlab.pruning.removal import remove

__all__ = ["importance", "remove"]
