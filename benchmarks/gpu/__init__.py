"""GPU checks and benchmarks, in independent steps; `benchmarks/gpu.sh` runs them."""
