"""What a run can be shipped as: a file each, with `write`, and `opened` or `check`; see export/job.py."""
