"""What selftest, reproduce, bench and cost estimates share to measure: engines by name, processes, and tables."""
