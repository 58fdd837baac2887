"""Every statement, by noun. Functions take a connection inside a transaction first and return core's values,
never rows.

A write that others should know of also notifies the channel `penstock`, in the same transaction: the word
goes out when it is committed, and not at all when it is not.
"""
