"""`python -m benchmarks.soak`: a server under mixed load and faults, and an audit of what it did."""
