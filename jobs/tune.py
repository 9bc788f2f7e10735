"""`ray job submit … -- python jobs/tune.py --config RECIPE`: `sharelock tune RECIPE` on a cluster."""

from sharelock_ray.cli import run_job

if __name__ == "__main__":
    run_job("tune")
