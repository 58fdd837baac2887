"""Observe, plan, record, execute: one pass a tick, under one lease."""
