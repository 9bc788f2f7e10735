"""TUNING: trains many alignments on the same features, and keeps what came of each (Ray Tune, Optuna).

Says which settings come next and where they run; the training itself and its score live in `alignment` and
`evaluation`. What a trial left in its folder is the truth; the Optuna study mirrors it for samplers and dashboards.
"""
