"""TUNING: many trainings at once, over a space of settings (Ray Tune).

Chooses settings and compares results; a trial is an ordinary training.
"""

from sharelock_ray import engine as engine  # Before ray, which reads its environment as it is imported.
