"""Block-wise work of any kind: launch, records, retries, status, verification and repair."""
