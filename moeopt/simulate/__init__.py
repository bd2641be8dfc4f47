"""Replay of real decode steps on a plan, and what the model predicts for them.

Decoding only: prefill and communication are outside, as everywhere here.
"""
