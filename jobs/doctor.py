"""`ray job submit … -- python jobs/doctor.py --config RECIPE`: `sharelock doctor RECIPE` on a cluster."""

from sharelock_ray.cli import run_job

if __name__ == "__main__":
    run_job("doctor")
