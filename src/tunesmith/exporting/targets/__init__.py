"""Export targets, one module each, with `write` and either `opened` or `check`; see exporting/job.py."""
