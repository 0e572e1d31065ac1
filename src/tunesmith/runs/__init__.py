"""The run folder: products, fingerprints, lock, log, and the archive that moves a run to another machine."""
