"""`ray job submit … -- python jobs/extract.py --config RECIPE`: `sharelock extract RECIPE` on a cluster."""

from sharelock_ray.cli import run_job

if __name__ == "__main__":
    run_job("extract")
