"""`ray job submit … -- python jobs/train.py --config RECIPE`: `sharelock train RECIPE` on a cluster."""

from sharelock_ray.cli import run_job

if __name__ == "__main__":
    run_job("train")
