"""The solvers: one adapter a file, one worker process a solve."""
