"""Steady state: largest throughput under a latency limit, the front of both, what memory buys."""
