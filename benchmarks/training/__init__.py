"""Training engines side by side on one machine: python -m benchmarks.training --help."""
