"""Everything that has to be seen on a GPU, in steps of which none can spoil another; `benchmarks/gpu.sh` runs it."""
