"""`ray job submit … -- python jobs/evaluate.py --config RECIPE`: `sharelock evaluate RECIPE` on a cluster."""

from sharelock_ray.cli import run_job

if __name__ == "__main__":
    run_job("evaluate")
